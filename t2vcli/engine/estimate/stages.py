"""The stages of a run, each put through the tracker: the engine's own functions on tensors without data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import nn

from t2vcli.engine.decode import decode_latents
from t2vcli.engine.denoise import denoise
from t2vcli.engine.device import DTYPES
from t2vcli.engine.estimate.allocator import footprint, requests
from t2vcli.engine.estimate.kernels import ConvWorkspace, CudaKernels, cuda_attention
from t2vcli.engine.estimate.pretend import DEVICE, pretended_device
from t2vcli.engine.estimate.tracker import CUDA_ROUNDING, EVERYTHING, TENSORS, WEIGHT, Allocation, Trace, Tracker
from t2vcli.engine.estimate.work import WorkCounter
from t2vcli.engine.guidance import unet_prediction, with_guidance
from t2vcli.engine.latents import encode_video, make_generator, noise_state
from t2vcli.engine.loading import Model, vae_scale
from t2vcli.engine.memory import PlacedModel
from t2vcli.engine.prompt import TextsOverTime, encode_prompt
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.work import Work

Stage = Literal["text encode", "video encode", "denoise", "decode"]

HOLDERS = 5
TRACED_STEPS = 3
TRACED_CHUNKS = 3
"""Denoising steps and chunks of frames that are run; what more there are repeats the last of them, block by block.

The last two have to be alike: the first step finds no weights brought ahead, as the others do where they are streamed.
"""


@dataclass(frozen=True)
class StageEstimate:
    """A stage's predicted memory on the device, in bytes, without its context.

    `live_bytes` is the peak of the tensors alone, `workspace_bytes` what kernels add to it (so that the sum is what
    torch.cuda.max_memory_allocated would say), `reserved_bytes` what the caching allocator holds for both at most, and
    `least_bytes` the least on which the stage gets through, with workspaces left out where they do not fit.
    `holders` are the largest at the peak of the tensors: each tensor, and all weights together.
    """

    name: Stage
    live_bytes: int
    workspace_bytes: int
    reserved_bytes: int
    least_bytes: int
    peak_at: str  # operation and module path
    holders: tuple[tuple[str, int], ...]
    to_device_bytes: int  # copied from the host in one round: a denoising step, a chunk of frames, the whole prompt
    to_host_bytes: int


def estimate(
    *,
    unet_config: Mapping[str, Any],
    vae_config: Mapping[str, Any],
    text_config: Mapping[str, Any],
    plan: MemoryPlan,
    frames: int,
    height: int,
    width: int,
    guided: bool,
    encode_video: bool,
    steps: int = 4,
    conv_workspace: ConvWorkspace = "nhwc",
    only: Collection[Stage] | None = None,
    text_chunks: int = 1,
    texts: int = 1,
) -> list[StageEstimate]:
    """Returns the stages' predicted memory for a job, from the checkpoint's config.json files. Nothing is allocated.

    `height` and `width` are in pixels. Runs the very functions that a real run does, so it takes seconds. `only` leaves
    the other stages out. The UNet is given `texts` over time, of `text_chunks` as many tokens as the text encoder has places.
    """
    job = _Job(frames, height, width, guided, steps, vae_scale(dict(vae_config)), text_chunks, texts)
    each_in_turn = plan.device == "cpu" and plan.offload == "none" and not plan.keeps_all_parts
    plan = replace(plan, device=DEVICE, offload="model" if each_in_turn else plan.offload)
    with pretended_device(cuda_attention):
        model = _model(unet_config, vae_config, text_config, plan)
        parts = (model.text_encoder, model.unet, model.vae)
        tracker = Tracker(
            names=_names(model),
            weights=(tensor for part in parts for tensor in (*part.parameters(), *part.buffers())),
            kernels=CudaKernels(DEVICE, conv_workspace),
            rounding={DEVICE: CUDA_ROUNDING},
        )
        with tracker:
            placed = PlacedModel(model)
            placed.place(plan)
            wanted = [
                (name, run)
                for name, run in _STAGES.items()
                if (only is None or name in only) and (encode_video or name != "video encode")
            ]
            marks = {name: run(placed, job, tracker) for name, run in wanted}
            placed.release()
    trace = tracker.trace()
    chunks = math.ceil(frames / plan.decode_chunk)
    rounds: dict[Stage, int] = {"text encode": 1, "video encode": chunks, "denoise": steps, "decode": chunks}
    return [_estimated(name, trace, bounds, rounds[name]) for name, bounds in marks.items()]


def work_of(
    *,
    unet_config: Mapping[str, Any],
    vae_config: Mapping[str, Any],
    text_config: Mapping[str, Any],
    plan: MemoryPlan,
    frames: int,
    height: int,
    width: int,
    stage: Stage,
) -> Work:
    """Returns what one round of a stage does for one sample: a denoising step, a chunk of `frames`, the prompt."""
    job = _Job(frames, height, width, guided=False, steps=1, scale=vae_scale(dict(vae_config)))
    plan = replace(plan, device=DEVICE)
    with pretended_device(cuda_attention):
        placed = PlacedModel(_model(unet_config, vae_config, text_config, plan))
        counter = WorkCounter(DEVICE)
        with counter:
            placed.place(plan)
            *_, start, end = _STAGES[stage](placed, job, counter)
            placed.release()
    return counter.between(start, end)


def _model(
    unet_config: Mapping[str, Any], vae_config: Mapping[str, Any], text_config: Mapping[str, Any], plan: MemoryPlan
) -> Model:
    return Model(
        text_encoder=_built(lambda: CLIPText(text_config), plan),
        unet=_built(lambda: UNet3DConditionModel.from_config(dict(unet_config)), plan),
        vae=_built(lambda: AutoencoderKL.from_config(dict(vae_config)), plan),
    )


class Marks(Protocol):
    """What watches a stage, and is told where its rounds end."""

    def mark(self) -> int: ...


@dataclass(frozen=True)
class _Job:
    frames: int
    height: int
    width: int
    guided: bool
    steps: int
    scale: int
    text_chunks: int = 1
    texts: int = 1

    @property
    def rows(self) -> int:
        return 2 if self.guided else 1

    def latents_shape(self, channels: int) -> tuple[int, int, int, int, int]:
        return (1, channels, self.frames, self.height // self.scale, self.width // self.scale)


def _built(make: Callable[[], Any], plan: MemoryPlan) -> Any:
    part = make().eval()
    for tensor in (*part.parameters(), *part.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(DTYPES[plan.dtype])
    return part


def _names(model: Model) -> dict[nn.Module, str]:
    parts = {"text_encoder": model.text_encoder, "unet": model.unet, "vae": model.vae}
    return {
        module: ".".join(filter(None, (part, path)))
        for part, whole in parts.items()
        for path, module in whole.named_modules()
    }


def _estimated(name: Stage, trace: Trace, marks: Sequence[int], rounds: int) -> StageEstimate:
    """Returns the estimate of a stage that began at the first mark and was ready at the second; the others end rounds."""
    before, end = marks[-2:]
    inward, outward = trace.copied(before, end)
    stage = trace.part(marks[0], end)
    more = rounds - (len(marks) - 2)
    if more:
        stage = stage.repeated(DEVICE, marks[-3] - end, before - end, times=more)
    tensors = stage.peak(DEVICE, TENSORS)
    taken = footprint(requests(stage.on(DEVICE)))
    return StageEstimate(
        name=name,
        live_bytes=tensors.nbytes,
        workspace_bytes=stage.peak(DEVICE, EVERYTHING).nbytes - tensors.nbytes,
        reserved_bytes=taken.reserved_bytes,
        least_bytes=taken.least_bytes,
        peak_at=tensors.at,
        holders=_holders(tensors.alive),
        to_device_bytes=inward,
        to_host_bytes=outward,
    )


def _holders(alive: Sequence[Allocation]) -> tuple[tuple[str, int], ...]:
    """Returns the largest of what is alive; all weights count as one."""
    weights = sum(block.nbytes for block in alive if block.op == WEIGHT)
    others = [(block.what, block.nbytes) for block in alive if block.op != WEIGHT]
    ranked = sorted([("weights", weights), *others], key=lambda holder: -holder[1])
    return tuple(holder for holder in ranked[:HOLDERS] if holder[1])


@torch.inference_mode()
def _encode_text(placed: PlacedModel, job: _Job, tracker: Marks) -> list[int]:
    marks = [tracker.mark()]
    length = placed.model.text_encoder.config.max_position_embeddings
    with placed.text_encoder() as text_encoder:
        marks.append(tracker.mark())
        ids = [torch.zeros(1, length, dtype=torch.long) for _ in range(job.rows)]
        torch.cat([encode_prompt(text_encoder, row, device=DEVICE) for row in ids])
        return [*marks, tracker.mark()]


def _encode_video(placed: PlacedModel, job: _Job, tracker: Marks) -> list[int]:
    marks = [tracker.mark()]
    plan = _plan(placed)
    frame = np.zeros((job.height, job.width, 3), np.uint8)
    count = min(job.frames, TRACED_CHUNKS * plan.decode_chunk)
    with placed.vae() as vae:
        marks.append(tracker.mark())
        encode_video(
            vae,
            iter([frame] * count),
            count=count,
            chunk=plan.decode_chunk,
            strip_bytes=plan.vae_strip_bytes,
            generator=make_generator(0),
            device=DEVICE,
            on_frames=lambda done: marks.append(tracker.mark()),
        )
        return marks


def _denoise(placed: PlacedModel, job: _Job, tracker: Marks) -> list[int]:
    start = tracker.mark()
    plan, unet = _plan(placed), placed.model.unet
    dtype = DTYPES[plan.dtype]
    length = job.text_chunks * placed.model.text_encoder.config.max_position_embeddings
    width = unet.config.cross_attention_dim
    words = torch.zeros(job.rows, job.texts, length, width, device=DEVICE, dtype=dtype)
    over_time = TextsOverTime(words, tuple(number * job.frames for number in range(job.texts)))
    embeds = words[:, 0] if job.texts == 1 else lambda: over_time.of(range(job.frames))
    scheduler = _Scheduler(min(job.steps, TRACED_STEPS))
    generator = make_generator(0)
    shape = job.latents_shape(unet.config.in_channels)
    state = noise_state(scheduler, generator, shape=shape, dtype=dtype, device=DEVICE)
    with placed.unet() as forward:
        predict_noise = unet_prediction(forward, embeds, together=plan.guidance_together)
        if job.guided:
            predict_noise = with_guidance(predict_noise, 7.5)
        marks = [start, tracker.mark()]
        for after in denoise(predict_noise, scheduler, state, generator):
            state = after  # as in a run, the state of before lives until here
            marks.append(tracker.mark())
        return marks


class _Scheduler:
    """A scheduler with DDIM's tensors but no table, which cannot be looked up at a timestep without a value."""

    init_noise_sigma = 1.0

    def __init__(self, steps: int) -> None:
        self.timesteps = torch.zeros(steps, dtype=torch.long, device=DEVICE)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample

    def step(self, noise_pred: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor) -> DDIMSchedulerOutput:
        original = (sample - 0.5 * noise_pred) / 0.5
        return DDIMSchedulerOutput(prev_sample=0.5 * original + 0.5 * noise_pred, pred_original_sample=original)


def _decode(placed: PlacedModel, job: _Job, tracker: Marks) -> list[int]:
    marks = [tracker.mark()]
    plan = _plan(placed)
    with placed.vae() as vae:
        latents = torch.zeros(job.latents_shape(vae.config.latent_channels), device=DEVICE, dtype=DTYPES[plan.dtype])
        pictures = decode_latents(
            vae, latents, chunk=plan.decode_chunk, device=DEVICE, strip_bytes=plan.vae_strip_bytes
        )
        marks.append(tracker.mark())
        for _ in itertools.islice(pictures, TRACED_CHUNKS):
            marks.append(tracker.mark())
        return marks


_STAGES: dict[Stage, Callable[[PlacedModel, _Job, Marks], list[int]]] = {
    "text encode": _encode_text,
    "video encode": _encode_video,
    "denoise": _denoise,
    "decode": _decode,
}


def _plan(placed: PlacedModel) -> MemoryPlan:
    assert placed.plan is not None
    return placed.plan
