"""A draft by one model, enlarged by another, in one go: the draft's frames are never rounded to 8 bits on the way."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from t2vcli.asking.job import Policy
from t2vcli.asking.work import Work
from t2vcli.engine.decode import decode_latents
from t2vcli.engine.memory import PlacedModel, cast, lent
from t2vcli.engine.sources import filled
from t2vcli.errors import InputError, NonFiniteError
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.course import course_of
from t2vcli.jobs.keep import Keeper, with_kept_plan
from t2vcli.jobs.models import parts_of_diffusers
from t2vcli.jobs.prepare import Prepared
from t2vcli.jobs.sample import conditioning, how_it_went, write_video
from t2vcli.jobs.stages import Made, Origin, ReadFrames, from_prompt, from_video
from t2vcli.planning.plan import MemoryPlan
from t2vcli.report import Report
from t2vcli.request import GenerateRequest, UpscaleRequest
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import target_of
from t2vcli.video.reader import read_metadata
from t2vcli.video.resize import resize_picture
from t2vcli.weights.models import equal_parts

if TYPE_CHECKING:
    from t2vcli.engine.picture_vae import VAE


@dataclass(frozen=True)
class Draft:
    """The first of two stages, when it is done. `vae` is its model's, `shared` if it is also the second's."""

    latents: torch.Tensor
    vae: VAE
    shared: bool

    def reader(self, *, width: int, height: int, report: Report) -> ReadFrames:
        """Returns the function that decodes the frames (height, width, 3) float32 in [0, 1], a few at a time."""

        def read(placed: PlacedModel) -> Iterator[np.ndarray]:
            plan = placed.plan
            assert plan is not None
            for pictures in self._decoded(plan, report):
                for picture in pictures.permute(0, 2, 3, 1).numpy():
                    yield resize_picture(picture, width=width, height=height)

        return read

    def _decoded(self, plan: MemoryPlan, report: Report) -> Iterator[torch.Tensor]:
        """Yields the frames. A VAE of its own is run in float32 if it overflows; of one that is shared the model takes care."""
        done = 0
        try:
            for pictures in self._decode(self.latents, plan):
                yield pictures
                done += len(pictures)
        except NonFiniteError as error:
            if self.shared or self.vae.dtype == torch.float32:
                raise
            report.warn(f"{str(error).partition(';')[0]}; the latents are sound, so the VAE is run in fp32")
            kept = self.vae.dtype
            cast(self.vae, torch.float32)  # while nothing of it is lent, which would come back in the type before
            try:
                yield from self._decode(self.latents[:, :, done:], plan)
            finally:
                cast(self.vae, kept)  # exact: the values are those of the narrower type

    def _decode(self, latents: torch.Tensor, plan: MemoryPlan) -> Iterator[torch.Tensor]:
        own = lent(self.vae, plan.device) if not self.shared and plan.device != "cpu" else filled(self.vae)
        with own:
            yield from decode_latents(
                self.vae, latents, chunk=plan.decode_chunk, device=plan.device, strip_bytes=plan.vae_strip_bytes
            )


def in_two_stages(
    work: Work,
    prepared: Sequence[Prepared],
    recipe: Mapping[str, Any],
    kept: Keeper,
    policy: Policy,
    around: Around,
) -> tuple[Made, dict[str, Any]]:
    """Returns the second stage's latents and model, and what its recipe tells of the first stage.

    Where the work keeps its draft, the first stage is also written as a video of its own.
    """
    request, upscale, report = work.first, work.last, around.report
    assert isinstance(request, GenerateRequest)
    assert isinstance(upscale, UpscaleRequest)
    told = kept.draft.went.told()
    begun = False

    def begin() -> Origin:
        nonlocal begun
        begun = True
        own = kept.draft
        report.ahead(course_of(work, prepared))
        made = from_prompt(request, with_kept_plan(prepared[0], own.went.plan), kept=own, around=around)
        told.update(how_it_went(made.attempts))
        if work.draft is not None:
            _write_draft(work.draft, made, request, recipe, policy, report)
        made.attempts.placed.release()
        model = made.attempts.placed.model
        shared = {name: getattr(model, name) for name in parts_in_common(work, prepared)}
        draft = Draft(made.latents, model.vae, shared="vae" in shared)
        report.say(
            f"second stage; of the first model stays: {', '.join(shared) or 'the VAE until its frames are read'}"
        )
        del made, model
        gc.collect()  # what is not shared leaves the host, too, before the second model is loaded
        return Origin(
            draft.latents.shape[2],
            draft.reader(width=upscale.width, height=upscale.height, report=report),
            shared,
        )

    made = from_video(upscale, prepared[1], begin, kept=kept, around=around)
    if request.save_embeds is not None and not begun:
        # The first stage is behind, and whether an earlier process was asked to write them is not known.
        placed = around.models.take(prepared[0], report)
        attempts = Attempts(placed, prepared[0].plan, prepared[0].below, report)
        conditioning(attempts, prepared[0], request, overwrite=policy.overwrite)
        placed.release()
    return made, told


def parts_in_common(work: Work, prepared: Sequence[Prepared]) -> list[str]:
    """Returns the parts with weights that the stages' models have in common, by content, if all use them in the same way."""
    first, second = prepared
    if first.plan.dtype != second.plan.dtype or {stage.request.weights for stage in work.stages} != {"full"}:
        return []
    differing = parts_of_diffusers(first) ^ parts_of_diffusers(second)
    return [part for part in equal_parts(first.files, second.files) if part not in differing]


def _write_draft(
    path: Path, made: Made, request: GenerateRequest, recipe: Mapping[str, Any], policy: Policy, report: Report
) -> None:
    """Writes the draft's own video, unless an earlier process of this run has done so."""
    own = {key: value for key, value in recipe.items() if key != "upscale"}
    place = target_of(path)
    if place.exists() and not policy.overwrite:
        with contextlib.suppress(InputError):
            if (read_metadata(place) or {}).get("request") == own["request"]:
                return
    done = write_video(
        path,
        made.latents,
        made.attempts,
        request,
        fps=request.fps,
        recipe=own,
        overwrite=policy.overwrite,
        bare=policy.bare,
        report=report,
    )
    report.say(f"the draft is {shown(target_of(done.path))}")
