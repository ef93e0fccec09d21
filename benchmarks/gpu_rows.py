"""What benchmarks.gpu_check measures: the rows, each a function from a Bench to JSON values, and what they share.

A row's "ok" says whether what it looked at is right; rows that only measure have none.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

from benchmarks.memory_table import MODELSCOPE
from t2vcli.engine.checkpoint import read_state, write_state
from t2vcli.engine.decode import as_frames, decode_latents
from t2vcli.engine.denoise import denoise
from t2vcli.engine.device import DTYPES
from t2vcli.engine.guidance import PredictNoise, unet_prediction, with_guidance
from t2vcli.engine.latents import DenoiseState, make_generator, noise_state
from t2vcli.engine.layerwise.transfers import LayerWeights
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.loading import Model
from t2vcli.engine.memory import PlacedModel, by_blocks, lent, memory_shortage
from t2vcli.engine.prompt import encode_prompt
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.jobs.attempt import Attempts
from t2vcli.planning.forecast import table_forecast, traffic
from t2vcli.planning.plan import CONTEXT_BYTES, FRAMES_AT_ONCE, GPU_RUNGS, MemoryPlan, choose_plan, with_prediction
from t2vcli.planning.shape import Shape
from t2vcli.report import Silent
from t2vcli.sizes import GIB, MIB

ARCHITECTURE = "modelscope-1.7b"
STEPS = 4  # of which the first is not counted
GUIDANCE = 7.5
CARDS_GIB = (4, 6, 8, 12)
ALL_ON_THE_CARD = "all on the card"

JOBS = {
    "ms-1.7b 16x256x256": Shape(16, 256, 256, guided=True, encodes_video=False),
    "zeroscope 24x576x320": Shape(24, 576, 320, guided=True, encodes_video=False),
    "zeroscope-XL 24x1024x576": Shape(24, 1024, 576, guided=True, encodes_video=False),
}
SMALL = Shape(8, 128, 128, guided=True, encodes_video=False)  # what must be right is looked at here

FARTHEST = {"fp16": 0.05, "bf16": 0.3}
"""How far diffusers' forward itself may be from float32, as a part of the latents' deviation, before the row is wrong."""

TINY: dict[str, dict[str, Any]] = {
    "unet": {
        **MODELSCOPE["unet"],
        "block_out_channels": [32, 64],
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    },
    "vae": {
        **MODELSCOPE["vae"],
        "block_out_channels": [8, 16, 16, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "text_encoder": {
        **MODELSCOPE["text_encoder"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 100,
    },
}


# What is run


def random_model(configs: dict[str, dict[str, Any]], dtype: torch.dtype, device: str) -> Model:
    """Returns a model with random weights in host memory, drawn on the device. Values of order one stay of order one."""
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "text_encoder": CLIPText(configs["text_encoder"]),
            "unet": UNet3DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
        }
    torch.manual_seed(0)
    for part in parts.values():
        for module in part.modules():
            is_norm = isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
            for name, weight in [*module.named_parameters(recurse=False)]:
                values = torch.empty(weight.shape, dtype=dtype, device=device)
                if weight.ndim > 1:
                    values.normal_(std=1 / math.sqrt(math.prod(weight.shape[1:])))
                else:
                    values.fill_(1.0 if is_norm and name == "weight" else 0.0)
                setattr(module, name, torch.nn.Parameter(values.cpu(), requires_grad=False))
            for name, buffer in [*module.named_buffers(recurse=False)]:
                if buffer.is_meta:  # positions
                    setattr(module, name, torch.arange(buffer.numel()).view(buffer.shape))
        part.eval()
    return Model(**parts)


def a_scheduler() -> Any:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(STEPS)
    return scheduler


@dataclass
class Bench:
    """What the rows share: where they run, and the model of the type that was asked for last."""

    device: str
    tiny: bool = False
    compiles: bool = False
    _models: dict[str, Model] = field(default_factory=dict)

    @property
    def on_card(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def half(self) -> str:
        """Returns the type that a run here takes by itself."""
        return "fp16" if self.on_card else "fp32"

    def model(self, dtype: str) -> Model:
        if dtype not in self._models:
            self._models.clear()  # two are more than many hosts hold
            configs = TINY if self.tiny else MODELSCOPE
            self._models[dtype] = random_model(configs, DTYPES[dtype], self.device)
        return self._models[dtype]

    def shape(self, shape: Shape) -> Shape:
        return replace(shape, frames=4, width=64, height=64) if self.tiny else shape

    def plans(self, dtype: Any, shape: Shape) -> dict[str, MemoryPlan]:
        """Returns every way to run on a card, by what tells it from the others, fastest first."""
        base = MemoryPlan(
            device=self.device, dtype=dtype, offload="none", decode_chunk=1, vae_tiling=False, forward_chunking=None
        )
        plans = [replace(base, level=rung.level, **rung.changes) for rung in GPU_RUNGS]
        plans[0] = replace(plans[0], decode_chunk=FRAMES_AT_ONCE)
        plans.insert(1, replace(plans[0], forward="layerwise"))
        plans += [replace(base, offload="group"), replace(base, offload="sequential")]
        if self.tiny:  # chunks that cut something of a model so small
            plans = [
                plan
                if plan.chunk_bytes is None
                else replace(plan, chunk_bytes=plan.chunk_bytes // 512, vae_strip_bytes=MIB // 8)
                for plan in plans
            ]
        else:
            forecast = table_forecast(ARCHITECTURE, shape)
            plans = [with_prediction(plan, forecast) for plan in plans]
        return {plan.summary().partition(", ")[2] or ALL_ON_THE_CARD: plan for plan in plans}

    def first_state(self, model: Model, scheduler: Any, shape: Shape, dtype: str) -> DenoiseState:
        cells = (1, model.unet.config.in_channels, shape.frames, shape.height // 8, shape.width // 8)
        return noise_state(scheduler, make_generator(1), shape=cells, dtype=DTYPES[dtype], device=self.device)

    def begin_stage(self) -> None:
        if self.on_card:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, int] | None:
        """Returns the most that torch has held since `begin_stage`; None where nobody counts."""
        if not self.on_card:
            return None
        torch.cuda.synchronize(self.device)
        return {
            "allocated_bytes": torch.cuda.max_memory_allocated(self.device),
            "reserved_bytes": torch.cuda.max_memory_reserved(self.device),
        }

    def tidy(self) -> None:
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def placed(self, plan: MemoryPlan) -> Iterator[PlacedModel]:
        """Has the model set up as planned while the block runs."""
        placed = PlacedModel(self.model(plan.dtype))
        try:
            placed.place(plan)
            yield placed
        finally:
            placed.release()
            self.tidy()

    @contextlib.contextmanager
    def limited(self, size: int) -> Iterator[None]:
        """Has torch take no more than `size` bytes of the card while the block runs."""
        self.tidy()
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            self.tidy()


class Clock:
    """Marks moments: on a card as events of its stream, elsewhere by the wall."""

    def __init__(self, bench: Bench) -> None:
        self._on_card = bench.on_card
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._on_card:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def spans_s(self) -> list[float]:
        """Returns the seconds between the marks."""
        if self._on_card and self._marks:
            self._marks[-1].synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(self._marks)]
        return [b - a for a, b in itertools.pairwise(self._marks)]


def best_s(bench: Bench, work: Callable[[], Any], rounds: int = 5) -> float:
    """Returns the seconds of the fastest of so many rounds, after one that is not counted."""
    clock = Clock(bench)
    work()
    clock.mark()
    for _ in range(rounds):
        work()
        clock.mark()
    return max(min(clock.spans_s()), 1e-9)


@torch.inference_mode()
def encoded(bench: Bench, placed: PlacedModel) -> torch.Tensor:
    """Returns the features of random words, without and with a prompt, (2, L, D)."""
    generator, config = torch.Generator().manual_seed(1), placed.model.text_encoder.config
    words = [
        torch.randint(config.vocab_size, (1, config.max_position_embeddings), generator=generator) for _ in range(2)
    ]
    with placed.text_encoder() as text_encoder:
        return torch.cat([encode_prompt(text_encoder, ids, device=bench.device) for ids in words])


@contextlib.contextmanager
def guided(placed: PlacedModel, embeds: torch.Tensor) -> Iterator[PredictNoise]:
    """Yields the guided prediction of the UNet, as planned."""
    assert placed.plan is not None
    with placed.unet() as forward:
        yield with_guidance(unet_prediction(forward, embeds, together=placed.plan.guidance_together), GUIDANCE)


def stepped(
    bench: Bench, placed: PlacedModel, embeds: torch.Tensor, shape: Shape, clock: Clock | None = None
) -> torch.Tensor:
    """Returns the latents (1, C, F, h, w) after STEPS steps as planned; `clock` is marked before each and after the last."""
    plan = placed.plan
    assert plan is not None
    scheduler = a_scheduler()
    first = bench.first_state(placed.model, scheduler, shape, plan.dtype)
    latents = first.latents
    with guided(placed, embeds) as predict:
        if clock is not None:
            clock.mark()
        for state in denoise(predict, scheduler, first, make_generator(1)):
            latents = state.latents
            if clock is not None:
                clock.mark()
    return latents


def latents_by(bench: Bench, plan: MemoryPlan, shape: Shape) -> torch.Tensor:
    """Returns the latents of a plan's run, on the host in float32."""
    with bench.placed(plan) as placed:
        return stepped(bench, placed, encoded(bench, placed), shape).cpu().float()


def apart(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the root mean square of the difference, as a part of the expected values' standard deviation."""
    return float((result - expected).square().mean().sqrt() / expected.std())


# Rows: what the machine is


def machine(bench: Bench) -> dict[str, Any]:
    """What the card is, and what it can do at best: products of matrices, its own memory, the bus, launches."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": bench.device}
    if bench.on_card:
        torch.zeros(1, device=bench.device)  # makes the context
        free, total = torch.cuda.mem_get_info(bench.device)
        found |= {
            "gpu": torch.cuda.get_device_name(bench.device),
            "capability": list(torch.cuda.get_device_capability(bench.device)),
            "total_bytes": total,
            # The context alone, on a card that nobody else uses
            "others_and_context_bytes": total - free - torch.cuda.memory_reserved(bench.device),
            "assumed_context_bytes": CONTEXT_BYTES,
        }
    side, dtype = (64, torch.float32) if bench.tiny else (8192, torch.float16)
    a = torch.randn(side, side, device=bench.device, dtype=dtype)
    found["matmul_flops_per_s"] = 2 * side**3 / best_s(bench, lambda: a @ a)
    found["memory_bytes_per_s"] = 2 * a.nbytes / best_s(bench, lambda: a.clone())
    size = MIB if bench.tiny else 256 * MIB
    there = torch.empty(size, dtype=torch.uint8, device=bench.device)
    pageable = torch.zeros(size, dtype=torch.uint8)
    for name, host in {"pageable": pageable, **({"pinned": pageable.pin_memory()} if bench.on_card else {})}.items():

        def in_(host: torch.Tensor = host) -> None:
            there.copy_(host, non_blocking=True)

        def out(host: torch.Tensor = host) -> None:
            host.copy_(there, non_blocking=True)

        found[f"{name}_to_device_bytes_per_s"] = size / best_s(bench, in_)
        found[f"{name}_to_host_bytes_per_s"] = size / best_s(bench, out)
    small = torch.ones(1, device=bench.device)
    found["launch_s"] = best_s(bench, lambda: [small.add_(1) for _ in range(100)]) / 100
    return found


# Rows: what must be right


def right(bench: Bench, dtype: str) -> dict[str, Any]:
    """Every way to run beside diffusers' forward in float32: none may be much farther than diffusers' own in this type.

    That one in float32 is streamed where the card cannot hold it.
    """
    shape = bench.shape(SMALL)
    exact_plans = bench.plans("fp32", shape)
    reference = ALL_ON_THE_CARD
    try:
        exact = latents_by(bench, exact_plans[reference], shape)
    except Exception as error:
        if memory_shortage(error) is None:
            raise
        reference = "offload sequential"
    if reference != ALL_ON_THE_CARD:
        exact = latents_by(bench, exact_plans[reference], shape)
    found = {name: apart(latents_by(bench, plan, shape), exact) for name, plan in bench.plans(dtype, shape).items()}
    own = found[ALL_ON_THE_CARD]
    bound = 1.5 * own + 1e-5
    again = apart(latents_by(bench, bench.plans(dtype, shape)[ALL_ON_THE_CARD], shape), exact)
    return {
        "ok": own <= FARTHEST[dtype] and max(found.values()) <= bound,
        "bound": bound,
        "float32_run": reference,
        "apart_from_float32": found,
        "the_same_when_run_again": again == own,
    }


def resumed(bench: Bench) -> dict[str, Any]:
    """A state that is written and read again goes on to the same latents."""
    shape, dtype = bench.shape(SMALL), bench.half
    with bench.placed(bench.plans(dtype, shape)[ALL_ON_THE_CARD]) as placed, tempfile.TemporaryDirectory() as folder:
        embeds = encoded(bench, placed)
        whole = stepped(bench, placed, embeds, shape)
        path = Path(folder) / "state.pt"
        with guided(placed, embeds) as predict:
            scheduler = a_scheduler()
            first = bench.first_state(placed.model, scheduler, shape, dtype)
            halfway = next(itertools.islice(denoise(predict, scheduler, first, make_generator(1)), STEPS // 2, None))
            written = io.BytesIO()
            write_state(written, halfway)
            path.write_bytes(written.getvalue())
            read = read_state(path).on(bench.device)
            *_, last = denoise(predict, a_scheduler(), read, make_generator(1))
        return {"ok": bool(torch.equal(last.latents, whole)), "apart": apart(last.latents.float(), whole.float())}


def decoded_on_the_host(bench: Bench) -> dict[str, Any]:
    """A frame of the same latents, decoded on the card, whole and in strips, and on the CPU in float32."""
    shape = replace(bench.shape(SMALL), frames=1)
    model = bench.model(bench.half)
    cells = (1, model.vae.config.latent_channels, 1, shape.height // 8, shape.width // 8)
    latents = torch.randn(cells, generator=torch.Generator().manual_seed(1)).to(model.vae.dtype)
    with lent(model.vae, bench.device):
        made = {
            name: next(decode_latents(model.vae, latents, chunk=1, device=bench.device, strip_bytes=strip_bytes))
            for name, strip_bytes in (("whole", None), ("in strips", MIB // 8 if bench.tiny else MIB))
        }
    expected = next(decode_latents(bench.model("fp32").vae, latents.float(), chunk=1, device="cpu"))
    levels = {name: 255 * float((each - expected).abs().mean()) for name, each in made.items()}
    return {"ok": max(levels.values()) < 1.0, "mean_levels_of_8_bits": levels}


def memory_runs_out(bench: Bench) -> dict[str, Any]:
    """A real shortage: torch may take only what the chunked plan needs, and the run begins with everything on the card."""
    shape = JOBS["zeroscope 24x576x320"]
    ways = _rungs(bench, shape)
    enough = next(plan.predicted_bytes or 0 for plan in ways if plan.chunk_bytes == 8 * MIB)
    with bench.limited(int(1.1 * enough)):
        attempts = Attempts(PlacedModel(bench.model("fp16")), ways[0], ways[1:], Silent())
        embeds = attempts.run("encoding", lambda placed: encoded(bench, placed))
        latents = attempts.run("denoising", lambda placed: stepped(bench, placed, embeds, shape))
        finite = bool(torch.isfinite(latents).all())
        attempts.placed.release()
    return {"ok": finite and bool(attempts.notes), "ends_with": attempts.plan.summary(), "notes": attempts.notes}


def small_card(bench: Bench, size_gib: int) -> dict[str, Any]:
    """What t2v would choose on a card of that size, run with no more memory than that leaves."""
    shape = JOBS["zeroscope-XL 24x1024x576"]
    room = size_gib * GIB - CONTEXT_BYTES
    plan, below = choose_plan(
        _rungs(bench, shape),
        forecast=table_forecast(ARCHITECTURE, shape),
        free_bytes=room,
        why=f"a card of {size_gib} GiB",
        asked=False,
    )
    with bench.limited(room):
        attempts = Attempts(PlacedModel(bench.model("fp16")), plan, below, Silent())
        bench.begin_stage()
        clock = Clock(bench)
        embeds = attempts.run("encoding", lambda placed: encoded(bench, placed))
        attempts.run("denoising", lambda placed: stepped(bench, placed, embeds, shape, clock))
        peaks = bench.peaks()
        attempts.placed.release()
    return {
        "ok": not attempts.notes,
        "chosen": plan.as_dict(),
        "notes": attempts.notes,
        "step_s": statistics.median(clock.spans_s()[1:]),
        "peaks": peaks,
    }


def _rungs(bench: Bench, shape: Shape) -> list[MemoryPlan]:
    """Returns the ways that t2v chooses from by itself."""
    plans = bench.plans("fp16", shape).values()
    return [plan for plan in plans if plan.offload in ("none", "model") and plan.forward == "diffusers"]


# Rows: how long, and how much


def planned(bench: Bench, job: str, name: str) -> dict[str, Any]:
    """One way to run one job: seconds and peak of each stage, beside what was predicted."""
    shape = bench.shape(JOBS[job])
    plan = bench.plans(bench.half, shape)[name]
    stages: dict[str, Any] = {}
    with bench.placed(plan) as placed:
        bench.begin_stage()
        clock = Clock(bench)
        clock.mark()
        embeds = encoded(bench, placed)
        clock.mark()
        stages["text encode"] = {"seconds": clock.spans_s()[0], "peaks": bench.peaks()}
        bench.begin_stage()
        clock = Clock(bench)
        latents = stepped(bench, placed, embeds, shape, clock)
        first_s, *others_s = clock.spans_s()
        stages["denoise"] = {
            "first_step_s": first_s,
            "step_s": statistics.median(others_s),
            "peaks": bench.peaks(),
        }
        bench.begin_stage()
        clock = Clock(bench)
        with placed.vae() as vae:
            pictures = decode_latents(
                vae,
                latents,
                chunk=plan.decode_chunk,
                device=bench.device,
                strip_bytes=plan.vae_strip_bytes,
                convert=as_frames,
            )
            clock.mark()
            for _ in itertools.islice(pictures, 4):
                clock.mark()
        chunks_s = clock.spans_s()
        frame_s = statistics.median(chunks_s[1:] or chunks_s) / min(plan.decode_chunk, shape.frames)
        stages["decode"] = {"frame_s": frame_s, "peaks": bench.peaks()}
    found: dict[str, Any] = {"plan": plan.as_dict(), "stages": stages}
    if not bench.tiny:
        for told in table_forecast(ARCHITECTURE, shape)(plan) or ():
            stages[told.name]["predicted_allocated_bytes"] = told.live_bytes
            stages[told.name]["predicted_reserved_bytes"] = told.reserved_bytes
        moved = traffic(ARCHITECTURE, shape, plan)
        found["moved_a_step_bytes"] = moved.to_device_bytes + moved.to_host_bytes
    return found


def overlap(bench: Bench, job: str) -> dict[str, Any]:
    """Whether weights arrive beside the work: a forward with all of them on the card, one that streams them, and only the copies."""
    shape, model = bench.shape(JOBS[job]), bench.model(bench.half)
    call = _inputs(bench, model, shape)
    chunk_bytes = (8 * MIB) // (512 if bench.tiny else 1)
    with torch.inference_mode():
        with (
            lent(model.unet, bench.device),
            contextlib.closing(LayerwiseUNet(model.unet, device=bench.device, chunk_bytes=chunk_bytes)) as ours,
        ):
            resident_s = best_s(bench, lambda: ours(*call), 3)
        bench.tidy()
        with contextlib.closing(
            LayerwiseUNet(model.unet, device=bench.device, chunk_bytes=chunk_bytes, resident_bytes=0)
        ) as ours:
            streamed_s = best_s(bench, lambda: ours(*call), 3)
            moved = ours.streamed_bytes
        blocks = list(by_blocks(model.unet).values())
        with contextlib.closing(LayerWeights(blocks, device=bench.device, resident_bytes=0, far=True)) as weights:

            def bring() -> None:
                for number in range(len(blocks)):
                    with weights.present(number):
                        pass

            copies_s = best_s(bench, bring, 3)
    shorter = min(resident_s, copies_s)
    return {
        "resident_forward_s": resident_s,
        "streamed_forward_s": streamed_s,
        "copies_alone_s": copies_s,
        "moved_bytes": moved,
        # 1: as long as the longer of both takes; 0: as both one after the other
        "overlapped": max(0.0, min(1.0, (resident_s + copies_s - streamed_s) / shorter)),
    }


def plain_script(bench: Bench, job: str) -> dict[str, Any]:
    """The script of diffusers' documentation on the same card: its pipeline, all on the card, one frame decoded at a time."""
    shape, model = bench.shape(JOBS[job]), bench.model(bench.half)
    with bench.placed(bench.plans(bench.half, shape)["offload model"]) as placed:
        negative, prompt = encoded(bench, placed).chunk(2)
    clock = Clock(bench)
    with lent(model.unet, bench.device), lent(model.vae, bench.device):
        # The text encoder has done its part; the pipeline asks only where it is
        pipe = TextToVideoSDPipeline(
            vae=model.vae, text_encoder=None, tokenizer=None, unet=model.unet, scheduler=a_scheduler()
        )
        pipe.set_progress_bar_config(disable=True)
        bench.begin_stage()
        clock.mark()
        pipe(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            num_frames=shape.frames,
            width=shape.width,
            height=shape.height,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
            generator=make_generator(1),
            callback=lambda *_: clock.mark(),
            callback_steps=1,
        )
        first_s, *others_s = clock.spans_s()
        peaks = bench.peaks()
    bench.tidy()
    return {"first_step_s": first_s, "step_s": statistics.median(others_s), "peaks": peaks}


def layouts(bench: Bench) -> dict[str, Any]:
    """t2v's own forward in either memory format, diffusers' beside it, and where it was asked for its blocks compiled."""
    shape, model = bench.shape(JOBS["ms-1.7b 16x256x256"]), bench.model(bench.half)
    call = _inputs(bench, model, shape)
    found: dict[str, Any] = {}
    with lent(model.unet, bench.device), torch.inference_mode():
        expected = model.unet(*call).sample.float()
        found["diffusers"] = {"forward_s": best_s(bench, lambda: model.unet(*call), 3)}
        for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
            with contextlib.closing(LayerwiseUNet(model.unet, device=bench.device, layout=layout)) as ours:
                result = ours(*call).float()

                def forward(ours: LayerwiseUNet = ours) -> torch.Tensor:
                    return ours(*call)

                found[name] = {"forward_s": best_s(bench, forward, 3), "apart": apart(result, expected)}
        if bench.compiles:
            found["diffusers, blocks compiled"] = _compiled(bench, model.unet, *call)
    return found


def _inputs(bench: Bench, model: Model, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what a guided forward takes: sample, timestep and words."""
    config, dtype = model.unet.config, model.unet.dtype
    cells = (2, config.in_channels, shape.frames, shape.height // 8, shape.width // 8)
    return (
        torch.randn(cells, dtype=dtype, device=bench.device),
        torch.tensor(500, device=bench.device),
        torch.randn(2, 77, config.cross_attention_dim, dtype=dtype, device=bench.device),
    )


def _compiled(bench: Bench, unet: Any, *call: torch.Tensor) -> dict[str, Any]:
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    started_s = time.perf_counter()
    for block in blocks:
        block.compile(dynamic=False)
    try:
        unet(*call)
        took_s = time.perf_counter() - started_s
        return {"compiling_s": took_s, "forward_s": best_s(bench, lambda: unet(*call), 3)}
    finally:
        for block in blocks:
            block._compiled_call_impl = None


@dataclass(frozen=True)
class Row:
    name: str
    run: Callable[[Bench], dict[str, Any]]


def rows_of(bench: Bench) -> list[Row]:
    """Returns the rows, the most telling first."""
    first, *others = list(JOBS) if not bench.tiny else list(JOBS)[:1]
    names = list(bench.plans(bench.half, bench.shape(SMALL)))
    rows = [Row("machine", machine)]
    rows += [_row(f"right in {dtype}", right, dtype) for dtype in (("fp16", "bf16") if bench.on_card else ("bf16",))]
    rows += [Row("a state read again", resumed), Row("decoded on the host", decoded_on_the_host)]
    rows += _rows_of_job(first, names)
    rows += [Row("layouts", layouts)]
    if bench.on_card and not bench.tiny:
        rows += [Row("memory runs out", memory_runs_out)]
        rows += [_row(f"a card of {size} GiB", small_card, size) for size in CARDS_GIB]
    for job in others:
        rows += _rows_of_job(job, names)
    return rows


def _rows_of_job(job: str, plans: Sequence[str]) -> list[Row]:
    return [
        *(_row(f"{job}: {name}", planned, job, name) for name in plans),
        _row(f"{job}: diffusers' script", plain_script, job),
        _row(f"{job}: copies beside work", overlap, job),
    ]


def _row(name: str, run: Callable[..., dict[str, Any]], *arguments: Any) -> Row:
    return Row(name, lambda bench: run(bench, *arguments))
