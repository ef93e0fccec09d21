"""A Work: what will be made, exactly. `work_for` is the way from a Job to it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli import inputs, runs
from t2vcli.asking.job import Command, Job
from t2vcli.errors import OutputError, UsageError
from t2vcli.loras import parse
from t2vcli.planning.windows import division_for
from t2vcli.request import Request, flag_name

if TYPE_CHECKING:
    from t2vcli.asking.again import Bases
    from t2vcli.asking.source import Source
    from t2vcli.planning.decide import Memory
    from t2vcli.planning.outlook import ForecastOf, Outlook
    from t2vcli.planning.windows import Division
    from t2vcli.presets import Preset
    from t2vcli.video.along import Along
    from t2vcli.video.formats import Format
    from t2vcli.video.sound import Sound

USUAL_VAE_SCALE = 8  # pixels a latent cell is wide, of every model known so far; the model's own is not read yet


@dataclass(frozen=True)
class Stage:
    """One model's part in a work.

    `preset` is what the request is from, None if it is taken up from a run folder. `divided` is how the clip is divided,
    where that is to be as it was before.
    """

    request: Request
    preset: Preset | None
    divided: Division | None = None


@dataclass(frozen=True)
class Work:
    """Everything that decides a run: one stage, or a draft and its upscale, and where the video goes.

    `command` is what the first stage does: "generate" a clip (after `source`, if there is one: its continuation) or
    "upscale" `source`. `frames` is how many each stage makes, those of `source` that are gone on from among them, and
    `fps` their rate. `draft` is where the first of two stages is written as a video of its own.

    `seed_drawn` and `output_chosen` say that nobody gave them; `taken_up`, that they are an unfinished run's.
    """

    command: Command
    stages: tuple[Stage, ...]
    frames: int
    fps: Fraction
    output: Path
    source: Source | None = None
    draft: Path | None = None
    seed_drawn: bool = False
    output_chosen: bool = False
    taken_up: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def first(self) -> Request:
        """Returns the request of the only stage, or of the draft."""
        return self.stages[0].request

    @property
    def last(self) -> Request:
        """Returns the request of the stage whose frames are written."""
        return self.stages[-1].request

    @property
    def seed(self) -> int:
        return self.first.seed

    @property
    def extends(self) -> bool:
        """Returns whether the clip goes on from `source`."""
        return self.command == "generate" and self.source is not None

    @property
    def target(self) -> Path:
        """Returns the file or folder that is there when it is done."""
        from t2vcli.video.formats import target_of

        return target_of(self.output)

    @property
    def folder(self) -> Path:
        """Returns the folder of its unfinished run."""
        return runs.folder_for(self.target)

    @property
    def deciding_fields(self) -> list[dict[str, Any]]:
        """Returns what decides the result, of each stage."""
        return [runs.deciding_fields(stage.request.model_dump(mode="json")) for stage in self.stages]

    def made(self, recipe: Mapping[str, Any]) -> bool:
        """Returns whether a video with this recipe is of this very work: its requests, and its input by content.

        Where nobody gave the seed it may be another.
        """
        upscale = recipe.get("upscale")
        requests = [recipe.get("request"), *([upscale.get("request")] if isinstance(upscale, dict) else [])]
        found = [runs.deciding_fields(each) if isinstance(each, dict) else {} for each in requests]
        source = recipe.get("source")
        sha256 = source.get("sha256") if isinstance(source, Mapping) else None
        if recipe.get("command") != self.command or not self.made_by(found):
            return False
        for stage, told in zip(self.stages, (recipe, upscale), strict=False):
            if stage.request.lora and not _same_loras(stage.request, told):
                return False
        if not all(
            inputs.are_in(told, stage.request) for told, stage in zip((recipe, upscale), self.stages, strict=False)
        ):
            return False
        return sha256 == (None if self.source is None else self.source.described["sha256"])

    def made_by(self, deciding: Sequence[Mapping[str, Any]]) -> bool:
        """Returns whether requests with these deciding fields are the work's, but for a seed that nobody gave."""
        seed = {"seed": None} if self.seed_drawn else {}
        return [{**each, **seed} for each in deciding] == [{**each, **seed} for each in self.deciding_fields]

    def along(self, container: Format) -> Along | None:
        """Returns what goes beside the pictures into a container: what the input has, and the sound that was given."""
        from t2vcli.video.along import Along

        own = None if self.source is None or self.extends else along_of(self.source, self.last, container)
        if self.last.audio is None:
            return own
        sound, _ = self._sound(self.last.audio)
        return replace(own or Along(sound.source, container=container), cut=sound)

    def about_sound(self) -> Iterator[str]:
        """Yields what is to be said of the sound that was given. Raises InputError if it is none."""
        if self.last.audio is not None:
            yield from self._sound(self.last.audio)[1]
            if self.source is not None and not self.extends and self.source.video.has_sound:
                yield f"the sound of {self.source.path} is left out"

    def _sound(self, audio: str) -> tuple[Sound, tuple[str, ...]]:
        from t2vcli.video.sound import fitted

        return fitted(Path(audio), self.frames / self.fps)

    def with_seed(self, seed: int) -> Work:
        """Returns the same work with another seed, the same in every stage."""
        from t2vcli.asking.values import changed

        stages = tuple(replace(stage, request=changed(stage.request, seed=seed)) for stage in self.stages)
        return replace(self, stages=stages)


def along_of(source: Source, request: Request, container: Format) -> Along:
    """Returns what goes along from an input into a container; its sound only if the request brings none."""
    return source.along(container, without=() if request.audio is None else ("audio",))


def _same_loras(request: Request, recipe: object) -> bool:
    """Returns whether a recipe's stage was made with the very files that a request's LoRAs are now."""
    from t2vcli.weights.adapters import adapters_here, same_adapters

    model = recipe.get("model") if isinstance(recipe, Mapping) else None
    told = model.get("adapters") if isinstance(model, Mapping) else None
    here = adapters_here(request.lora)
    return here is not None and same_adapters(told, here)


def work_for(job: Job, *, take_up: bool = True) -> Work:
    """Returns what a job makes. The video that it begins with is opened once, and every request is checked.

    With `take_up` an unfinished run of the same job gives the output and the seed, where those were not given.
    Raises UsageError, InputError or OutputError.
    """
    from t2vcli.asking import naming

    return naming.named(unnamed(job), job, take_up=take_up)


def unnamed(job: Job) -> Work:
    """Returns what a job makes, without an output. Raises UsageError, or InputError."""
    from t2vcli.asking import clip, larger

    def made(job: Job, bases: Bases | None = None) -> Work:
        return larger.enlarged(job, bases=bases) if job.command == "upscale" else clip.clip(job, bases)

    if job.from_clip is None:
        work = made(job)
    else:
        from t2vcli.asking.again import again, done_again

        over = again(job)
        work = done_again(made(over.job, over.bases), over)
    check_division(work)
    for stage in work.stages:
        inputs.check_there(stage.request)
        if stage.request.lora:
            from t2vcli.weights.adapters import check_lora

            for lora in stage.request.lora:
                check_lora(lora)
    remarks = (*work.remarks, *work.about_sound())
    return replace(work, seed_drawn=job.given("seed") is None and job.from_clip is None, remarks=remarks)


def check_division(work: Work) -> None:
    """Raises UsageError for windows or tiles that a request cannot have, before the model's own scale is known."""
    for stage in work.stages:
        division_for(stage.request, stage.preset, frames=work.frames, vae_scale=USUAL_VAE_SCALE)


def check_place(work: Work, *, overwrite: bool, draft: bool = True) -> Format:
    """Returns the kind of the output, after making sure that it can be written where it is to be, and the draft, too.

    Raises OutputError; UsageError if it is the input.
    """
    from t2vcli.video.files import refuse_input_as_output
    from t2vcli.video.sound import check_room
    from t2vcli.video.writer import check_writable

    last, first = work.last, work.first
    kind = check_writable(
        work.output, overwrite=overwrite, width=last.width, height=last.height, fps=work.fps, smooth=last.smooth
    )
    if work.draft is not None and draft:
        check_writable(work.draft, overwrite=overwrite, width=first.width, height=first.height, fps=work.fps)
    if work.source is not None:
        work.source.refuse_as_output(work.output)
    if work.last.audio is not None:
        refuse_input_as_output(work.target, Path(work.last.audio))
        check_room(work.output, kind)
    _check_saved(work, overwrite=overwrite or not draft)
    return kind


def _check_saved(work: Work, *, overwrite: bool) -> None:
    """Raises OutputError for a file beside the video that cannot be written, UsageError for one that is read, too."""
    from t2vcli.video.files import check_target

    read = [path for stage in work.stages for _, path in inputs.files_of(stage.request)]
    read += [Path(parse(lora).place) for stage in work.stages for lora in stage.request.lora]
    saved = [each for stage in work.stages for each in inputs.saved_by(stage.request)]
    places = [os.path.realpath(path) for _, path in saved]
    for name, path in saved:
        if os.path.exists(path) and any(os.path.exists(each) and path.samefile(each) for each in read):
            raise UsageError(f"{flag_name(name)} {path} is also read; write to another file")
        if places.count(os.path.realpath(path)) > 1:
            raise UsageError(f"{' and '.join(flag_name(each) for each, _ in saved)} are the same file; name another")
        if not os.path.isdir(path.parent):
            raise OutputError(f"{flag_name(name)} {path}: there is no folder {path.parent}; make it first")
        check_target(path, overwrite=overwrite, option=flag_name(name))


def planned(work: Work, forecast_of: ForecastOf | None = None, memories: Sequence[Memory | None] = ()) -> list[Outlook]:
    """Returns how each stage would run here, and in what other ways; in `memories`, where those are known. Raises UsageError."""
    from t2vcli.planning.forecast import table_forecast
    from t2vcli.planning.outlook import outlook_for

    return [
        outlook_for(
            stage.request, stage.preset, frames=work.frames, forecast_of=forecast_of or table_forecast, memory=memory
        )
        for stage, memory in itertools.zip_longest(work.stages, memories)
        if stage.preset is not None
    ]
