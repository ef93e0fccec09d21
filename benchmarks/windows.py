"""Measures clips of the embedded model that are made in windows, loops, tiles and continuations.

    python -m benchmarks.windows --part blends|overlaps|noise|one-pass|loop|tiles|vae|joint ... [--keep FOLDER]

Prints one Markdown table a part; docs/windows.md holds them and says what the columns are. With --keep, every clip is kept
as .npy with a contact sheet, and made no second time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy import ndimage

from t2vcli.asking.job import Policy
from t2vcli.asking.source import Source
from t2vcli.engine.decode import as_frames, decode_latents
from t2vcli.engine.latents import encode_video
from t2vcli.engine.loading import load_model
from t2vcli.engine.memory import PlacedModel
from t2vcli.jobs.around import Around
from t2vcli.jobs.keep import Book, Keeper
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.sample import decoded_frames
from t2vcli.jobs.stages import Made, Origin, from_prompt, from_video
from t2vcli.planning.windows import Axis
from t2vcli.presets import load_preset
from t2vcli.record import RunRecord
from t2vcli.report import Silent
from t2vcli.request import AnyRequest, GenerateRequest, UpscaleRequest, build_request
from t2vcli.sizes import MIB
from t2vcli.video import Frame
from t2vcli.video.reader import probe
from t2vcli.video.resize import resize_frame
from t2vcli.video.sheet import contact_sheet, write_png
from training import world
from training.detector import ASPECTS, detect

FRAMES, WINDOW, OVERLAP = 64, 16, 8
SCHEDULES = ("alternate", "fixed")
SCENES = (
    world.Scene("red", "boat", "right", "sea"),
    world.Scene("yellow", "star", "down", "night"),
    world.Scene("purple", "fish", "left", "desert"),
    world.Scene("green", "square", "up", "snow"),
    world.Scene("blue", "ball", "right", "grass"),
    world.Scene("orange", "triangle", "left", "sea"),
)
ABOVE_BACKGROUND = 42  # levels by which a pixel differs from the bare place where the subject is; as in the detector
CELL = 8  # pixels that a latent cell is wide and high

Measures = dict[str, float]


@dataclass(frozen=True)
class Studio:
    """Makes clips (F, H, W, 3) uint8 with the jobs' own functions, in this process."""

    steps: int
    scenes: tuple[tuple[int, world.Scene], ...]  # with their seeds
    keep: Path | None

    def generated(self, seed: int, scene: world.Scene, source: Path | None = None, **values: Any) -> Frame:
        """Returns a clip from the scene's caption; the new frames only, where it goes on with the pictures in `source`."""
        preset = load_preset("demo")
        request = _request(GenerateRequest, preset.name, seed, scene, {"steps": self.steps, **values})

        def make() -> Made:
            prepared = prepare(request, preset, frames=request.known_frames + request.frames, report=Silent())
            extended = Source(source, probe(source)) if source else None
            return from_prompt(request, prepared, kept=_kept(), around=Around(), extended=extended)

        return self._made(request, make, skipped=request.known_frames, of=probe(source).frames if source else None)

    def upscaled(self, seed: int, scene: world.Scene, clip: Frame, **values: Any) -> Frame:
        """Returns the clip enlarged by demo-XL."""
        preset = load_preset("demo-XL")
        request = _request(UpscaleRequest, preset.name, seed, scene, {"steps": self.steps, **values})

        def read(placed: PlacedModel) -> Iterator[Frame]:
            yield from enlarged(clip, request.width)

        def make() -> Made:
            prepared = prepare(request, preset, frames=len(clip), report=Silent())
            return from_video(request, prepared, lambda: Origin(len(clip), read), kept=_kept(), around=Around())

        return self._made(request, make)

    def _made(
        self,
        request: GenerateRequest | UpscaleRequest,
        make: Callable[[], Made],
        *,
        skipped: int = 0,
        of: int | None = None,
    ) -> Frame:
        described = request.model_dump_json() + (f" of {of}" if of else "")
        name = hashlib.sha256(described.encode()).hexdigest()[:16]
        path = self.keep / f"{name}.npy" if self.keep else None
        if path is not None and path.exists():
            kept: Frame = np.load(path)
            return kept
        made = make()
        latents = made.latents[:, :, skipped:]
        clip = made.attempts.run("decoding", lambda placed: np.stack(list(decoded_frames(placed, latents))))
        if path is not None:
            np.save(path, clip)
            sheet = contact_sheet(clip, count=len(clip), columns=16, most=64, scale=1 if request.width > 64 else 2)
            write_png(path.with_suffix(".png"), sheet)
            with (path.parent / "clips.txt").open("a", encoding="utf-8") as index:
                index.write(f"{path.stem} {request.model_dump_json(exclude_defaults=True)}\n")
        return clip


def _request(
    kind: type[AnyRequest], preset: str, seed: int, scene: world.Scene, values: Mapping[str, Any]
) -> AnyRequest:
    prompt = world.plain_caption(scene)
    whole = {**load_preset(preset).values_for(kind), "preset": preset, "prompt": prompt, "seed": seed, **values}
    return build_request(kind, whole)


def _kept() -> Keeper:
    record = RunRecord(
        id="", command="generate", identity={}, how={}, seed_drawn=False, offline=True, output="none.mp4"
    )
    return Keeper(Book(record), [], Policy(), Silent())  # without a run: it keeps nothing


def enlarged(clip: Frame, side: int) -> list[Frame]:
    return [resize_frame(frame, width=side, height=side) for frame in clip]


# Measures


def steps_of(clip: Frame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns the mean absolute difference, in levels of 255, from each frame to the next (F - 1,)."""
    return np.asarray(np.abs(np.diff(clip.astype(np.float64), axis=0)).mean(axis=(1, 2, 3)))


def seams_of(frames: int, window: int, overlap: int) -> list[int]:
    """Returns the steps (0: from the first frame to the second) at which a window of the fixed schedule begins or ends."""
    spans = Axis(window, overlap).spans(frames)
    edges = {span[0] - 1 for span in spans} | {span[-1] for span in spans}
    return sorted(edge for edge in edges if 0 <= edge < frames - 1)


def background_of(clip: Frame, place: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Returns where (F, H, W) the bare place is seen, two pixels or more from anything else."""
    bare = world.background(place, clip.shape[1]).astype(np.int16)
    seen = np.abs(clip.astype(np.int16) - bare).max(axis=-1) <= ABOVE_BACKGROUND
    kept = [ndimage.binary_erosion(frame, iterations=2, border_value=1) for frame in seen]
    return np.stack(kept)


def background_steps(clip: Frame, place: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns `steps_of` the pixels that show the bare place before and after the step."""
    bare = background_of(clip, place)
    difference = np.abs(np.diff(clip.astype(np.float64), axis=0)).mean(axis=-1)
    return np.array([each[now & after].mean() for each, now, after in zip(difference, bare, bare[1:], strict=False)])


def flicker_of(clip: Frame, place: str) -> float:
    """Returns the mean absolute second difference in time, in levels, of pixels that show the bare place three times."""
    bare = background_of(clip, place)
    second = np.abs(np.diff(clip.astype(np.float64), n=2, axis=0)).mean(axis=-1)
    return float(second[bare[:-2] & bare[1:-1] & bare[2:]].mean())


def detail_of(clip: Frame) -> float:
    """Returns the mean absolute difference of neighbouring pixels of a frame, in levels: blends that blur lower it."""
    pixels = clip.astype(np.float64)
    return float((np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=2)).mean()) / 2)


def drift_of(clip: Frame) -> float:
    """Returns how far the mean colour of the last 16 frames is from that of the first, in levels, over the channels."""
    first, last = (part.astype(np.float64).mean(axis=(0, 1, 2)) for part in (clip[:16], clip[-16:]))
    return float(np.abs(last - first).mean())


def seen_in(clip: Frame, scene: world.Scene) -> Measures:
    """Returns in which share of the pieces of 16 frames each aspect of the scene is seen."""
    pieces = [detect(clip[start : start + 16]) for start in range(0, max(len(clip) - 15, 1), 16)]
    return {name: float(np.mean([getattr(p, name) == getattr(scene, name) for p in pieces])) for name in ASPECTS}


def long_clip(clip: Frame, scene: world.Scene, overlap: int) -> Measures:
    """Returns what is measured of a long clip, made in windows or not."""
    seams = seams_of(len(clip), WINDOW, overlap)
    steps, bare = steps_of(clip), background_steps(clip, scene.place)
    return {
        "seams, all": float(steps[seams].mean() / np.delete(steps, seams).mean()) if seams else np.nan,
        "seams, place": float(bare[seams].mean() / np.delete(bare, seams).mean()) if seams else np.nan,
        "largest step": float(steps.max() / steps.mean()),
        "step": float(steps.mean()),
        "flicker": flicker_of(clip, scene.place),
        "drift": drift_of(clip),
        "detail": detail_of(clip),
        **seen_in(clip, scene),
    }


def mean_of(measures: Sequence[Measures]) -> Measures:
    return {name: float(np.mean([each[name] for each in measures])) for name in measures[0]}


Row = tuple[str, Measures]


def show(rows: Iterator[Row]) -> None:
    """Prints the rows as a Markdown table, each as soon as it is known."""
    for number, (name, measures) in enumerate(rows):
        if number == 0:
            print("| | " + " | ".join(measures) + " |\n|---|" + "---:|" * len(measures), flush=True)
        cells = [
            "" if np.isnan(value) else f"{value:.3g}" if value < 0.1 else f"{value:.2f}" for value in measures.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


# The parts


def windowed(studio: Studio, *, frames: int = FRAMES, overlap: int = OVERLAP, **values: Any) -> Measures:
    clips = [
        (scene, studio.generated(seed, scene, frames=frames, window=WINDOW, overlap=overlap, **values))
        for seed, scene in studio.scenes
    ]
    return mean_of([long_clip(clip, scene, overlap) for scene, clip in clips])


def in_one_pass(studio: Studio, frames: int) -> Measures:
    clips = [(scene, studio.generated(seed, scene, frames=frames, window="off")) for seed, scene in studio.scenes]
    return mean_of([long_clip(clip, scene, OVERLAP) for scene, clip in clips])


def _divided(studio: Studio, ways: Sequence[tuple[int, str, str]]) -> Iterator[Row]:
    for overlap, blend, schedule in ways:
        values: dict[str, Any] = {"overlap": overlap, "blend": blend, "window_schedule": schedule}
        yield f"overlap {overlap}, {blend}, {schedule}", windowed(studio, **values)


def blends(studio: Studio) -> Iterator[Row]:
    """At an overlap of half the window, where the weights of `linear` are those of `pyramid`."""
    return _divided(studio, [(OVERLAP, *way) for way in itertools.product(("pyramid", "uniform"), SCHEDULES)])


def overlaps(studio: Studio) -> Iterator[Row]:
    pyramids = [(overlap, "pyramid", "alternate") for overlap in (2, 4, 8, 12)]
    return _divided(studio, [*pyramids, (4, "linear", "alternate"), (4, "uniform", "alternate")])


def noise(studio: Studio) -> Iterator[Row]:
    for kind in ("whole", "per-frame", "freenoise"):
        yield kind, windowed(studio, noise=kind)


def one_pass(studio: Studio) -> Iterator[Row]:
    yield "16 frames, one pass", in_one_pass(studio, 16)
    for frames in (24, 32, 48):
        yield f"{frames} frames, one pass", in_one_pass(studio, frames)
        yield f"{frames} frames, windows", windowed(studio, frames=frames)


def loop(studio: Studio) -> Iterator[Row]:
    for frames in (16, 32):
        variants: list[tuple[str, dict[str, Any]]] = [
            (f"{frames} frames, no loop", {"overlap": OVERLAP if frames > WINDOW else None})
        ]
        variants += [(f"{frames} frames, loop, overlap {n}", {"loop": True, "overlap": n}) for n in (0, 4, 8)]
        for name, values in variants:
            measured = []
            for seed, scene in studio.scenes:
                clip = studio.generated(seed, scene, frames=frames, window=WINDOW, **values)
                steps, back = steps_of(clip), steps_of(np.stack([clip[-1], clip[0]]))[0]
                measured.append(
                    {
                        "last to first / mean step": float(back / steps.mean()),
                        "largest step / mean step": float(steps.max() / steps.mean()),
                        "step": float(steps.mean()),
                        "flicker": flicker_of(clip, scene.place),
                        **seen_in(clip, scene),
                    }
                )
            yield name, mean_of(measured)


def joint(studio: Studio) -> Iterator[Row]:
    """Clips that are gone on with; the joint is the step from the last frame of the old one to the first new frame.

    At its end a clip of 16 frames has the subject where no clip of the world goes on, halfway it has not.
    """
    for old, new in ((8, 8), (16, 8), (16, 24)):
        for context in (0, 1, 4, 8, 12):
            if context <= old:
                measured = [_goes_on(studio, seed, scene, (old, context, new)) for seed, scene in studio.scenes]
                name = f"context {context}" if context else "another clip put behind"
                yield f"{old} frames, then {new}: {name}", mean_of(measured)


def _goes_on(studio: Studio, seed: int, scene: world.Scene, counts: tuple[int, int, int]) -> Measures:
    old, context, new = counts
    source = studio.generated(seed, scene, frames=16)[:old]
    values: dict[str, Any] = {"window": WINDOW, "overlap": OVERLAP} if new + context > WINDOW else {}
    if context:
        with tempfile.TemporaryDirectory() as folder:
            for number, frame in enumerate(source):
                Image.fromarray(frame).save(Path(folder) / f"{number:04}.png")
            clip = studio.generated(seed + 100, scene, Path(folder), frames=new, context=context, **values)
    else:
        clip = studio.generated(seed + 100, scene, frames=new, **values)
    inside = np.concatenate([steps_of(source), steps_of(clip)])
    across = np.stack([source[-1], clip[0]])
    step = steps_of(across)[0]
    return {
        "joint / mean step": float(step / inside.mean()),
        "joint / largest step": float(step / inside.max()),
        "joint / mean step, place": float(
            background_steps(across, scene.place)[0] / background_steps(source, scene.place).mean()
        ),
        **seen_in(clip, scene),
    }


SIDE, TILE, XL_FRAMES = 256, 128, 8


def tile_seams(clip: Frame, overlap: int) -> float:
    """Returns the mean gradient across the edges of the fixed tiles over that across all other cells' edges."""
    spans = Axis(TILE // CELL, overlap // CELL).spans(SIDE // CELL)
    edges = {cell for span in spans for cell in (span[0], span[-1] + 1) if 0 < cell < SIDE // CELL}
    others = [cell for cell in range(1, SIDE // CELL) if cell not in edges]
    pixels = clip.astype(np.float64)

    def across(cells: Sequence[int]) -> float:
        at = np.array(cells) * CELL
        rows, columns = pixels[:, at] - pixels[:, at - 1], pixels[:, :, at] - pixels[:, :, at - 1]
        return float(np.abs(rows).mean() + np.abs(columns).mean())

    return across(sorted(edges)) / across(others)


def tiles(studio: Studio) -> Iterator[Row]:
    """Demo clips enlarged to 256x256 by demo-XL, at strength 0.6 where nothing else is said."""
    variants: list[tuple[str, dict[str, Any]]] = [("whole frames", {"tile": "off"})]
    for overlap, blend, schedule in (
        (0, "pyramid", "fixed"),
        (0, "pyramid", "alternate"),
        (16, "pyramid", "alternate"),
        (32, "pyramid", "alternate"),
        (32, "pyramid", "fixed"),
        (32, "linear", "alternate"),
        (32, "uniform", "alternate"),
        (64, "pyramid", "alternate"),
    ):
        values: dict[str, Any] = {"tile_overlap": overlap, "blend": blend, "window_schedule": schedule}
        variants.append((f"overlap {overlap}, {blend}, {schedule}", values))
    weaker = {"steps": 2 * studio.steps, "strength": 0.3}  # as many steps as at 0.6
    variants += [(f"{name}, strength 0.3", {**values, **weaker}) for name, values in (variants[0], variants[4])]
    inputs = [studio.generated(seed, scene, frames=16)[:XL_FRAMES] for seed, scene in studio.scenes]
    large = [np.stack(enlarged(clip, SIDE)) for clip in inputs]

    def measures(clips: Sequence[Frame], lap: int) -> Measures:
        return mean_of(
            [
                {
                    # The picture itself may have edges there: what it has after plain enlarging is divided out.
                    "seams": tile_seams(clip, lap) / tile_seams(plain, lap),
                    "detail": detail_of(clip),
                    "flicker": flicker_of(clip, scene.place),
                    "from the input, RMS": float(np.sqrt(np.square(clip.astype(np.float64) - plain).mean())),
                    **{name: value for name, value in seen_in(clip, scene).items() if name != "motion"},
                }
                for (_, scene), clip, plain in zip(studio.scenes, clips, large, strict=True)
            ]
        )

    yield "the input, Lanczos", measures(large, 32)
    for name, values in variants:
        clips = [
            studio.upscaled(seed, scene, clip, width=SIDE, height=SIDE, **{"tile": f"{TILE}x{TILE}", **values})
            for (seed, scene), clip in zip(studio.scenes, inputs, strict=True)
        ]
        yield name, measures(clips, values.get("tile_overlap", 32))


def vae(studio: Studio) -> Iterator[Row]:
    """The VAE at 256x256 in pieces, against the whole: in levels of 255, before rounding to uint8."""
    preset = load_preset("demo")
    seed, scene = studio.scenes[0]
    prepared = prepare(_request(GenerateRequest, preset.name, seed, scene, {}), preset, frames=16, report=Silent())
    model: Any = load_model(prepared.files, prepared.dtype).vae
    ways: dict[str, tuple[int | None, Callable[[], None]]] = {
        "whole": (None, model.disable_tiling),
        "strips of 1 MiB": (MIB, model.disable_tiling),
        "strips of 64 KiB": (MIB // 16, model.disable_tiling),
        "diffusers' tiles of 64x64": (None, model.enable_tiling),
    }
    measured: dict[str, list[Measures]] = {name: [] for name in ways}
    for seed, scene in studio.scenes:
        frame = resize_frame(studio.generated(seed, scene, frames=16)[0], width=SIDE, height=SIDE)
        made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, (strip_bytes, tiling) in ways.items():
            tiling()
            latents = _encoded(model, frame, strip_bytes)
            picture = _decoded(model, made["whole"][0] if made else latents, strip_bytes)
            made[name] = latents, picture
            measured[name].append(_differences(*made["whole"], *made[name]))
    del measured["whole"]
    yield from ((name, mean_of(each)) for name, each in measured.items())


@torch.inference_mode()
def _encoded(model: AutoencoderKL, frame: Frame, strip_bytes: int | None) -> torch.Tensor:
    return encode_video(model, iter([frame]), count=1, chunk=1, generator=None, device="cpu", strip_bytes=strip_bytes)


def _decoded(model: AutoencoderKL, latents: torch.Tensor, strip_bytes: int | None) -> torch.Tensor:
    return next(decode_latents(model, latents, chunk=1, device="cpu", strip_bytes=strip_bytes))


def _differences(
    whole_latents: torch.Tensor, whole: torch.Tensor, latents: torch.Tensor, picture: torch.Tensor
) -> Measures:
    levels, cells = (picture - whole) * 255, latents - whole_latents
    rounded, rounded_whole = (as_frames(each) for each in (picture, whole))
    return {
        "decoded, largest": float(levels.abs().max()),
        "decoded, RMS": float(levels.square().mean().sqrt()),
        "values that differ, %": float((rounded != rounded_whole).float().mean() * 100),
        "encoded, largest": float(cells.abs().max()),
        "encoded, RMS": float(cells.square().mean().sqrt()),
    }


PARTS: dict[str, Callable[[Studio], Iterator[Row]]] = {
    "blends": blends,
    "overlaps": overlaps,
    "noise": noise,
    "one-pass": one_pass,
    "loop": loop,
    "tiles": tiles,
    "vae": vae,
    "joint": joint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scenes", type=int, nargs="+", default=range(len(SCENES)), help="which of them, from 0")
    parser.add_argument("--keep", type=Path, help="a folder for the clips, and for those made before")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    scenes = tuple((number + 1, SCENES[number]) for number in arguments.scenes)
    studio = Studio(arguments.steps, scenes, arguments.keep)
    for part in arguments.part:
        print(f"\n{part}\n", flush=True)
        show(PARTS[part](studio))


if __name__ == "__main__":
    main()
