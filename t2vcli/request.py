"""What to make: one frozen value that the flags, a preset's YAML and the metadata inside an mp4 all spell the same way.

A field is called `guidance_scale` here and in YAML, and `--guidance-scale` on the command line.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from t2vcli import embeddings
from t2vcli.choices import Blend, DType, Forward, Memory, Noise, Offload, PromptWeights, Schedule, Spacing, Weights
from t2vcli.emphasis import weighted
from t2vcli.errors import UsageError
from t2vcli.loras import as_written
from t2vcli.prompts import check_prompt_at, check_text, check_within, texts_at
from t2vcli.schedulers import SCHEDULERS
from t2vcli.sizes import parse_card_size, parse_size

MAX_SEED = 2**63 - 1
MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_LEVEL = 15  # of a UNet: models have four
MAX_FRAMES = 10_000
MAX_SECONDS = 1_000_000
MIN_CHUNK_BYTES = 64 * 1024  # smaller ones make hundreds of thousands of calls and save nothing more
TABLES = ("ays", "even")  # of timesteps, by name
MAX_RATE_PART = 1_001_000  # the encoder rounds a rate whose numerator or denominator is larger


_RATE = re.compile(r"\s*[+-]?(?:[0-9]+(?:/[0-9]+)?|[0-9]*\.[0-9]+|[0-9]+\.)\s*")


def parse_fps(value: object) -> Fraction:
    """Returns the frame rate as an exact fraction, from 8, 23.976, "30000/1001" or a Fraction.

    The three NTSC rates are commonly rounded to 23.976, 29.97 and 59.94; they are read as the exact n * 1000/1001.
    """
    text = str(value)
    try:
        # A long text or an exponent would make an astronomically large fraction; Python also reads other scripts' digits.
        if len(text) > 40 or not _RATE.fullmatch(text):
            raise ValueError
        rate = value if isinstance(value, Fraction) else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError("must be a number of frames per second such as 8, 23.976 or 30000/1001") from None
    for whole in (24, 30, 60, 120):
        exact = Fraction(whole * 1000, 1001)
        if abs(rate - exact) < Fraction(1, 200) and rate != whole:
            return exact
    return rate


def parse_seconds(value: object) -> object:
    """Returns the seconds in 90, "1.5", "1:30" or "0:01:30.5"; what is no text as it is. Raises ValueError."""
    if not isinstance(value, str):
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not re.fullmatch(r"([0-9]{1,3}:)?([0-9]{1,7}:)?[0-9]{1,7}(\.[0-9]{1,9})?", value):
        raise ValueError("must be seconds, or minutes and seconds, such as 90, 1.5 or 1:30")
    whole = Fraction(0)
    for part in value.split(":"):
        whole = whole * 60 + Fraction(part)
    return float(whole)


def can_be_kept(rate: Fraction) -> bool:
    """Returns whether an mp4 can have exactly this frame rate."""
    return max(rate.numerator, rate.denominator) <= MAX_RATE_PART


def check_fps(value: object) -> Fraction:
    rate = parse_fps(value)
    if not 0 < rate <= 240:
        raise ValueError("must be above 0 and at most 240")
    if not can_be_kept(rate):
        raise ValueError(f"cannot be kept exactly; the nearest that can is {rate.limit_denominator(1001)}")
    return rate


def _check_side(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 16 or value > MAX_SIDE:
            raise ValueError(f"must be between 16 and {MAX_SIDE} pixels")
        if value % 8:
            low = value - value % 8
            raise ValueError(f"must be a multiple of 8; the nearest are {low} and {low + 8}")
    return value


def _check_seed(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= MAX_SEED:
        raise ValueError(f"must be from 0 to {MAX_SEED}; leave it out for one drawn at random")
    return value


def _check_scheduler(value: object) -> object:
    if isinstance(value, str) and value in SCHEDULERS:
        return value
    near = difflib.get_close_matches(str(value), SCHEDULERS, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? The" if near else "the"
    raise ValueError(f"is not a scheduler; {hint} names are {', '.join(SCHEDULERS)}")


def _numbers(value: object, *, names: str, least: int, low: float, high: float) -> object:
    """Returns text of several numbers with commas and no spaces. Raises ValueError for others, or numbers out of bounds."""
    text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        return value
    most = names.count(",") + 1
    try:
        numbers = [float(part) for part in text.split(",")] if len(text) < 100 else []
    except ValueError:
        numbers = []
    if not least <= len(numbers) <= most or not all(low <= number <= high for number in numbers):
        raise ValueError(f"must be {names}, numbers from {low:g} to {high:g}")
    return ",".join(f"{number:g}" for number in numbers)


def _check_freeu(value: object) -> object:
    if value is None:
        return None
    text = _numbers(value, names="B1,B2,S1,S2", least=4, low=0.01, high=10)
    return None if text == "1,1,1,1" else text


def _check_apg(value: object) -> object:
    if value is None:
        return None
    text = _numbers(value, names="ETA or ETA,NORM", least=1, low=0, high=1e6)
    text = text.removesuffix(",0") if isinstance(text, str) else text
    return None if text == "1" else text


def _check_timesteps(value: object) -> object:
    """Returns auto, ays, even, or whole numbers that fall, as text with commas and no spaces."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or text in ("auto", *TABLES):
        return text
    parts = [part.strip() for part in text.split(",")]
    if len(text) > 10 * MAX_STEPS or not all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        raise ValueError(f"must be auto, {', '.join(TABLES)}, or numbers from high to low such as 999,759,519,279")
    numbers = [int(part) for part in parts]
    rising = next((pair for pair in itertools.pairwise(numbers) if pair[0] <= pair[1]), None)
    if rising:
        raise ValueError(f"must fall from one to the next; {rising[1]} follows {rising[0]}")
    if len(numbers) > MAX_STEPS:
        raise ValueError(f"must be {MAX_STEPS} numbers at most")
    return ",".join(map(str, numbers))


def timesteps_named(value: object) -> tuple[int, ...]:
    """Returns the timesteps that are named one by one; none for auto, a table's name, and what is no such value."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ()
    numbers = str(value).split(",")
    return tuple(map(int, numbers)) if all(re.fullmatch(r"\s*[0-9]{1,6}\s*", number) for number in numbers) else ()


def _check_device(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", value):
        raise ValueError("is not a device; use auto, cpu, cuda, cuda:N or mps")
    return value


def fps_text(rate: Fraction) -> str:
    """Returns "8" or "30000/1001"."""
    return str(rate)


def _check_duration(value: float | None) -> float | None:
    if value == 0:
        raise ValueError("must be above 0 seconds")
    return value


def _check_forward_chunk(value: object) -> object:
    if value is None or value == "auto":
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
        raise ValueError("must be a whole number from 1 to 100000, or auto for the largest that divides every level")
    return value


def _check_vram(value: object) -> object:
    return None if value is None else parse_card_size(value)


def _check_chunk_size(value: object) -> object:
    size = None if value is None else parse_size(value)
    if size is not None and size < MIN_CHUNK_BYTES:
        raise ValueError(f"must be at least {MIN_CHUNK_BYTES // 1024}KiB")
    return size


def _as_switch(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML's reading of `on` and `off`


def _check_tensor_file(value: object) -> object:
    if isinstance(value, str):
        check_text(value)
        if not value.lower().endswith(".safetensors"):
            raise ValueError("must be a .safetensors file")
    return value


def _check_sound_file(value: object) -> object:
    """Returns the path of a sound, None for "": without the one of a recipe."""
    return None if value == "" else value


def _check_window(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if value in ("auto", "off"):
        return value
    if value is False:  # YAML's reading of `off`
        return "off"
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_FRAMES:
        raise ValueError(f"must be a number of frames from 1 to {MAX_FRAMES}, auto or off")
    return value


def _tile_sides(tile: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", tile)
    if sides is None:
        raise ValueError("must be a width and a height such as 1024x576, auto or off")
    width, height = int(sides[1]), int(sides[2])
    for side in (width, height):
        _check_side(side)
    return width, height


def _check_tile(value: object) -> object:
    if value is False:  # YAML's reading of `off`
        return "off"
    if isinstance(value, str) and value not in ("auto", "off"):
        _tile_sides(value)
    return value


def _check_tile_overlap(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and (value < 0 or value % 8):
        raise ValueError("must be 0 or more pixels and a multiple of 8")
    return value


Fps = Annotated[Fraction, BeforeValidator(check_fps), PlainSerializer(fps_text, return_type=str)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Side = Annotated[int, BeforeValidator(_check_side)]
DeviceName = Annotated[str, BeforeValidator(_check_device)]
SchedulerName = Annotated[str, BeforeValidator(_check_scheduler)]
Text = Annotated[str, BeforeValidator(check_text)]
SoundFile = Annotated[Text | None, BeforeValidator(_check_sound_file)]
TensorFile = Annotated[str, BeforeValidator(_check_tensor_file)]
Embeddings = Annotated[tuple[str, ...], BeforeValidator(embeddings.as_written)]
PromptsAt = Annotated[tuple[str, ...], BeforeValidator(check_prompt_at)]


@dataclass(frozen=True)
class Traits:
    """What a field is for, said where it is declared, so that no list can forget one.

    `stage`: of two stages, the one that a flag of `generate --upscale` sets. `decides`: whether it decides what is made,
    or only how. `in_presets`: whether a preset may hold it. `is_file`: whether it names what is read when it is made,
    `is_output`: what is written beside it.
    """

    stage: Literal["draft", "last", "both"] = "both"
    decides: bool = True
    in_presets: bool = True
    is_file: bool = False
    is_output: bool = False


BOTH, DRAFT, LAST = Traits(), Traits(stage="draft"), Traits(stage="last")
FILES, DRAFT_FILES = Traits(in_presets=False, is_file=True), Traits(stage="draft", in_presets=False, is_file=True)
LAST_FILES = Traits(stage="last", in_presets=False, is_file=True)
DRAFT_SAVED = Traits(stage="draft", decides=False, in_presets=False, is_output=True)
LAST_SAVED = Traits(stage="last", decides=False, in_presets=False, is_output=True)
OF_A_RUN, DRAFT_OF_A_RUN = Traits(in_presets=False), Traits(stage="draft", in_presets=False)
HOW = Traits(decides=False)
DEVICE = Traits(decides=False, in_presets=False)
NAME = Traits(decides=False, in_presets=False)  # of what the values are from


class Request(BaseModel):
    """What `generate` and `upscale` have in common. Sizes in pixels, `fps` in frames per second."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    preset: Annotated[Text, NAME]
    model: Annotated[Text, DRAFT]
    revision: Annotated[Text | None, DRAFT] = None
    variant: Annotated[Text | None, DRAFT] = None
    lora: Annotated[
        tuple[str, ...], BeforeValidator(as_written), DRAFT
    ] = ()  # loras.py; added to the model in this order

    prompt: Annotated[Text, OF_A_RUN] = ""
    negative_prompt: Annotated[Text, BOTH] = ""
    prompt_weights: Annotated[PromptWeights, BeforeValidator(_as_switch), BOTH] = "auto"
    long_prompt: Annotated[bool, BOTH] = False
    # Tensors in place of what t2v makes of words and seed, and where its own are to go (engine/exchange.py)
    prompt_embeds: Annotated[TensorFile | None, FILES] = None
    negative_prompt_embeds: Annotated[TensorFile | None, FILES] = None
    latents: Annotated[TensorFile | None, DRAFT_FILES] = None
    save_embeds: Annotated[TensorFile | None, DRAFT_SAVED] = None
    save_latents: Annotated[TensorFile | None, LAST_SAVED] = None
    embedding: Annotated[Embeddings, FILES] = ()  # learned words, "FILE:NAME" each
    prompt_at: Annotated[PromptsAt, OF_A_RUN] = ()  # what takes the prompt's place at later frames, "FRAME:TEXT" each
    width: Annotated[Side, DRAFT]
    height: Annotated[Side, DRAFT]
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS), DRAFT]
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), DRAFT]
    scheduler: Annotated[SchedulerName, DRAFT]
    seed: Annotated[int, BeforeValidator(_check_seed), DRAFT_OF_A_RUN]
    eta: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), DRAFT] = 0.0
    spacing: Annotated[Spacing, DRAFT] = "auto"  # of the timesteps; auto: as the model's own configuration has it
    timesteps: Annotated[str, BeforeValidator(_check_timesteps), DRAFT] = "auto"  # one by one, or those of a table
    timestep_scaling: Annotated[Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None, DRAFT] = None
    clip_skip: Annotated[Annotated[int, Field(ge=1, le=48)] | None, BOTH] = None
    noise: Annotated[Noise, BOTH] = "whole"

    # Better pictures at the same cost (engine/guidance.py, layerwise): None and 0 leave the plain run as it is.
    cfg_rescale: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), DRAFT] = 0.0
    apg: Annotated[str | None, BeforeValidator(_check_apg), DRAFT] = None
    freeu: Annotated[str | None, BeforeValidator(_check_freeu), DRAFT] = None

    # Fewer operations. Guidance from and until which share of the steps that run (arXiv:2404.07724); deep features made at
    # every `cache`-th of them and used again at the others (DeepCache, arXiv:2312.00858), but at each of the first so many.
    guidance_from: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), DRAFT] = 0.0
    guidance_until: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), DRAFT] = 1.0
    cache: Annotated[int, Field(ge=1, le=MAX_STEPS), DRAFT] = 1
    cache_level: Annotated[int, Field(ge=0, le=MAX_LEVEL), DRAFT] = 0
    cache_first: Annotated[int, Field(ge=1, le=MAX_STEPS), DRAFT] = 1

    # Long clips and large frames (windows.py). Overlaps in frames and in pixels; None: a share of the window or tile.
    window: Annotated[int | Literal["auto", "off"], BeforeValidator(_check_window), BOTH] = "auto"
    overlap: Annotated[Annotated[int, Field(ge=0, le=MAX_FRAMES)] | None, BOTH] = None
    blend: Annotated[Blend, BOTH] = "pyramid"
    window_schedule: Annotated[Schedule, BOTH] = "alternate"
    loop: Annotated[bool, BOTH] = False
    tile: Annotated[str, BeforeValidator(_check_tile), LAST] = "auto"
    tile_overlap: Annotated[Annotated[int, BeforeValidator(_check_tile_overlap)] | None, LAST] = None
    smooth: Annotated[Fps | None, LAST] = None
    audio: Annotated[SoundFile, LAST_FILES] = None  # whose sound goes beside the pictures

    # None: the plan decides.
    dtype: Annotated[DType, BOTH] = "auto"
    device: Annotated[DeviceName, DEVICE] = "auto"
    memory: Annotated[Memory, HOW] = "auto"
    vram: Annotated[int | None, BeforeValidator(_check_vram), DEVICE] = None
    offload: Annotated[Offload | None, HOW] = None
    vae_slicing: Annotated[bool | None, HOW] = None
    vae_tiling: Annotated[bool, BOTH] = False
    forward_chunking: Annotated[int | Literal["auto"] | None, BeforeValidator(_check_forward_chunk), HOW] = None
    chunk_size: Annotated[int | None, BeforeValidator(_check_chunk_size), HOW] = None
    forward: Annotated[Forward, HOW] = "auto"
    weights: Annotated[Weights, BOTH] = "full"

    @property
    def tile_sides(self) -> tuple[int, int] | None:
        """Returns the tiles' (width, height) in pixels where the request names them."""
        return None if self.tile in ("auto", "off") else _tile_sides(self.tile)

    @model_validator(mode="after")
    def _overlaps_are_smaller(self) -> Self:
        if self.overlap is not None and isinstance(self.window, int) and self.overlap >= self.window:
            raise ValueError(f"--overlap {self.overlap} must be below --window {self.window}")
        if self.tile_overlap is not None and self.tile_sides and self.tile_overlap >= min(self.tile_sides):
            raise ValueError(f"--tile-overlap {self.tile_overlap} must be below the sides of --tile {self.tile}")
        return self

    @property
    def freeu_factors(self) -> tuple[float, float, float, float] | None:
        """Returns FreeU's factors b1, b2, s1, s2."""
        if self.freeu is None:
            return None
        b1, b2, s1, s2 = map(float, self.freeu.split(","))
        return b1, b2, s1, s2

    @property
    def apg_numbers(self) -> tuple[float, float] | None:
        """Returns the eta and the norm of adaptive projected guidance, a norm of 0 for any."""
        if self.apg is None:
            return None
        eta, _, norm = self.apg.partition(",")
        return float(eta), float(norm or 0)

    @property
    def steps_run(self) -> int:
        """Returns how many of the steps run."""
        return self.steps

    def is_guided(self, step: int) -> bool:
        """Returns whether step `step` of those that run, from 0, is in the interval with guidance."""
        return self.guidance_from <= step / self.steps_run < self.guidance_until

    @property
    def texts(self) -> dict[str, str]:
        """Returns every text that the model is given, by what it is called; "" for one in whose place there are embeddings."""
        at = {f"prompt at frame {frame}": text for frame, text in texts_at(self.prompt_at)}
        texts = {"prompt": self.prompt, **at, "negative prompt": self.negative_prompt}
        brought = {"prompt": self.prompt_embeds, "negative prompt": self.negative_prompt_embeds}
        return {name: text if brought.get(name) is None else "" for name, text in texts.items()}

    @model_validator(mode="after")
    def _tensors_stand_alone(self) -> Self:
        if self.prompt_embeds is not None and self.prompt_at:
            raise ValueError(
                "--prompt-embeds takes the place of the prompts, those of --prompt-at too; give one of them"
            )
        if self.latents is not None and self.noise != "whole":
            raise ValueError(
                f"--latents is the noise that the clip begins with, and --noise {self.noise} has no effect"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_sound(self) -> Self:
        for name, text in self.texts.items():
            try:
                weighted(text, self.prompt_weights)
            except ValueError as error:
                raise ValueError(f"the {name} {error}") from None
        return self

    @model_validator(mode="after")
    def _interval_holds_steps(self) -> Self:
        if self.guidance_from >= self.guidance_until:
            raise ValueError(
                f"--guidance-from {self.guidance_from:g} must be below --guidance-until {self.guidance_until:g}"
                " (for no guidance at all: --guidance-scale 1)"
            )
        if self.steps_run and not any(map(self.is_guided, range(self.steps_run))):
            raise ValueError(
                f"from --guidance-from {self.guidance_from:g} until --guidance-until {self.guidance_until:g} lies none"
                f" of the {self.steps_run} steps; widen the interval, or take more --steps"
            )
        return self

    @model_validator(mode="after")
    def _cache_has_an_effect(self) -> Self:
        run = self.steps_run
        if run and self.cache > run:
            raise ValueError(f"--cache {self.cache} must be at most the number of steps that run, {run}")
        if run and self.cache > 1 and self.cache_first >= run:
            raise ValueError(
                f"--cache-first {self.cache_first} leaves none of the {run} steps that run to use features again;"
                f" use {'--cache 1' if run == 1 else f'{run - 1} or less'}"
            )
        return self

    @model_validator(mode="after")
    def _spacing_has_an_effect(self) -> Self:
        if self.spacing != "auto" and not SCHEDULERS[self.scheduler].takes_spacing:
            takers = ", ".join(name for name, choice in SCHEDULERS.items() if choice.takes_spacing)
            raise ValueError(
                f"--spacing {self.spacing} has no effect with --scheduler '{self.scheduler}'; those that have it:"
                f" {takers}"
            )
        return self

    @model_validator(mode="after")
    def _timesteps_suit(self) -> Self:
        named = timesteps_named(self.timesteps)
        if self.timesteps == "auto":
            return self
        takers = [
            name
            for name, each in SCHEDULERS.items()
            if each.takes_timesteps and (bool(named) or each.consistency == (self.timesteps == "even"))
        ]
        if self.scheduler not in takers:
            raise ValueError(
                f"--timesteps {self.timesteps} does not go with --scheduler '{self.scheduler}'; those that take it:"
                f" {', '.join(takers)}"
            )
        if self.spacing != "auto":
            raise ValueError(f"--spacing {self.spacing} and --timesteps {self.timesteps} exclude each other")
        if named and len(named) != self.steps:
            raise ValueError(
                f"--timesteps names {len(named)} and --steps is {self.steps}; name as many, or take --timesteps auto"
            )
        return self

    @model_validator(mode="after")
    def _scaling_has_an_effect(self) -> Self:
        if self.timestep_scaling is not None and not SCHEDULERS[self.scheduler].consistency:
            takers = " or ".join(name for name, choice in SCHEDULERS.items() if choice.consistency)
            raise ValueError(
                f"--timestep-scaling {self.timestep_scaling:g} has no effect with --scheduler '{self.scheduler}';"
                f" use {takers}"
            )
        return self

    @model_validator(mode="after")
    def _eta_has_an_effect(self) -> Self:
        if self.eta and not SCHEDULERS[self.scheduler].takes_eta:
            takers = " or ".join(name for name, choice in SCHEDULERS.items() if choice.takes_eta)
            raise ValueError(f"--eta {self.eta:g} has no effect with --scheduler '{self.scheduler}'; use {takers}")
        return self


class GenerateRequest(Request):
    """A clip from a prompt. With `context` it goes on with another, whose last so many frames the new ones are held to."""

    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES), DRAFT]
    fps: Annotated[Fps, DRAFT]
    context: Annotated[Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None, DRAFT_OF_A_RUN] = None

    @property
    def known_frames(self) -> int:
        return self.context or 0

    @model_validator(mode="after")
    def _prompts_are_within(self) -> Self:
        check_within(self.prompt_at, self.frames)
        return self

    @model_validator(mode="after")
    def _smooth_is_faster(self) -> Self:
        check_smooth(self.smooth, self.fps)
        return self


class UpscaleRequest(Request):
    """A clip from another clip, at another size; frame count and rate are the input's.

    Of the input, the frames from `start` on, for `duration` (both in seconds), at most `max_frames`; None: all.
    `strength` follows diffusers: at 1.0 the input is all noise, and `min(int(steps * strength), steps)` steps run.
    """

    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), DRAFT]
    start: Annotated[Seconds | None, DRAFT_OF_A_RUN] = None
    duration: Annotated[Seconds | None, AfterValidator(_check_duration), DRAFT_OF_A_RUN] = None
    max_frames: Annotated[Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None, DRAFT_OF_A_RUN] = None

    @property
    def steps_run(self) -> int:
        return min(int(self.steps * self.strength), self.steps)

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Self:
        if self.steps_run < 1:
            least = next((n for n in range(1, MAX_STEPS + 1) if int(n * self.strength)), None)
            way_out = f"--steps {least}" if least else f"--strength {math.ceil(1000 / self.steps) / 1000:g}"
            raise ValueError(
                f"--steps {self.steps} at --strength {self.strength:g} leaves no step to run; use {way_out} or more"
            )
        return self


AnyRequest = TypeVar("AnyRequest", bound=Request)


def _traits() -> dict[str, Traits]:
    found: dict[str, Traits] = {}
    for kind in (GenerateRequest, UpscaleRequest):
        for name, field in kind.model_fields.items():
            marks = [mark for mark in field.metadata if isinstance(mark, Traits)]
            if len(marks) != 1:
                raise TypeError(f"{kind.__name__}.{name} must be declared with its Traits")
            found[name] = marks[0]
    return found


WORDS_SEED_AND_SOUND = frozenset({"prompt", "negative_prompt", "seed", "audio"})


def decides_how_it_runs(field: str) -> bool:
    """Returns whether a field may change how a request is divided and planned: words, seed and sound do not."""
    return field not in WORDS_SEED_AND_SOUND


TRAITS = _traits()
"""The traits of every field of a request."""


def check_smooth(smooth: Fraction | None, fps: Fraction) -> None:
    """Raises ValueError if a clip of `fps` frames per second cannot be smoothed to `smooth`."""
    if smooth is not None and smooth <= fps:
        raise ValueError(f"--smooth {fps_text(smooth)} must be above the clip's own {fps_text(fps)} frames per second")


def flag_name(field: str) -> str:
    return "--from" if field == "from_clip" else "--" + field.replace("_", "-")


def build_request(
    kind: type[AnyRequest], values: Mapping[str, Any], sources: Mapping[str, str] | None = None
) -> AnyRequest:
    """Returns the validated request. `sources` says where a value came from when it was no flag (for the message).

    Raises UsageError with one sentence per wrong value.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError("; ".join(describe_problem(e, values, sources or {}) for e in error.errors())) from None


def describe_problem(problem: Any, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Returns one sentence for one entry of pydantic's `ValidationError.errors()`."""
    message: str = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not problem["loc"]:
        return message
    if problem["type"] != "value_error":
        message = f"must be {message}"
    field = str(problem["loc"][0])
    where = sources.get(field)
    name = f"{field} in {where}" if where else flag_name(field)
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{name} does not exist"
    shown = values.get(field)
    if isinstance(shown, list | tuple) and all(isinstance(each, str) for each in shown):
        shown = ", ".join(shown)
    shown = repr(shown) if isinstance(shown, str) else shown
    if isinstance(shown, str) and len(shown) > 60:
        shown = shown[:57] + "...'"
    return f"{name} {shown} {message}"
