"""Reads off a clip's frames what it shows and how steady it is, with no network.

Everything is measured against the bare places that training/world.py draws, so it works for this world alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from training import world

ASPECTS = ("colour", "subject", "motion", "place")
NONE = "none"
# A pixel belongs to the subject from this difference to the bare place on, in levels of the strongest channel. A sail
# differs from the lower sky by 19 to 40 levels only, so 42 lost the sails of sharp boats.
_THRESHOLD = 24
# Less overlap with the best template than this is no shape of the world. Over 200 clips each, drawn ones reach 0.81 or
# more and the VAE's reconstructions 0.78 or more.
_LEAST_OVERLAP = 0.70
_GRID = 32


@dataclass(frozen=True)
class Seen:
    """What the detector reads off a clip; "none" is an answer, too."""

    colour: str
    subject: str
    motion: str
    place: str


@dataclass(frozen=True)
class Steadiness:
    """How much a clip trembles. Drawn clips are not at zero in all of it, because outlines fall between pixels."""

    flicker: float  # 1 - overlap (IoU) of the outlines of neighbouring frames, brought together; 0 to 1
    jitter: float  # root mean square of the second difference of the subject's centre, in pixels of a 64x64 picture
    shimmer: float  # mean change of background pixels from frame to frame, in levels (0 to 255)


def detect(frames: np.ndarray) -> Seen:
    """Returns what a clip (F, S, S, 3) uint8 shows."""
    place, masks = _masks(frames)
    if not any(m.any() for m in masks):
        return Seen(NONE, NONE, NONE, place)
    return Seen(_colour(frames, masks), _subject(masks), _motion(masks), place)


def steadiness(frames: np.ndarray) -> Steadiness | None:
    """Returns how steady a clip (F, S, S, 3) uint8 is, or None if there is no subject to be steady."""
    _, masks = _masks(frames)
    size = frames.shape[1]
    if sum(bool(m.any()) for m in masks) < 3:
        return None
    overlaps = [_overlap_brought_together(a, b) for a, b in itertools.pairwise(masks)]
    shown = [ndimage.center_of_mass(m) for m in masks if m.any()]
    seconds = np.diff(np.array(shown), n=2, axis=0) * 64 / size
    away = [ndimage.binary_dilation(m, iterations=size // 16) for m in masks]
    changes = []
    for i in range(len(frames) - 1):
        bare = ~(away[i] | away[i + 1])
        if bare.any():
            changes.append(np.abs(frames[i + 1].astype(np.float32) - frames[i].astype(np.float32))[bare].mean())
    return Steadiness(
        flicker=1 - float(np.mean(overlaps)),
        jitter=float(np.sqrt(np.square(seconds).sum(-1).mean())),
        shimmer=float(np.mean(changes)) if changes else 0.0,
    )


def _overlap_brought_together(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the overlap of two masks after `b` was moved onto `a`, 0 if one of them is empty."""
    if not (a.any() and b.any()):
        return 0.0
    there, here = (np.array(ndimage.center_of_mass(m)) for m in (a, b))
    moved = ndimage.shift(b.astype(np.float32), there - here, order=1)
    return float(np.minimum(a, moved).sum() / np.maximum(a, moved).sum())


def _masks(frames: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """Returns the place, and the subject's mask in each frame (all False where there is none)."""
    size = frames.shape[1]
    place = _nearest_place(frames)
    bare = world.background(place, size).astype(np.int16)
    masks = [_largest_region(np.abs(f.astype(np.int16) - bare).max(-1) > _THRESHOLD) for f in frames]
    return place, [m if m.sum() > 0.01 * size * size else np.zeros_like(m) for m in masks]


def _nearest_place(frames: np.ndarray) -> str:
    size = frames.shape[1]
    distances = {}
    for place in world.PLACES:
        difference = np.abs(frames.astype(np.int16) - world.background(place, size).astype(np.int16)).max(-1)
        distances[place] = float(np.minimum(difference, 60).mean())
    return min(distances, key=lambda place: distances[place])


def _largest_region(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 3)  # closing would eat at the picture's border
    closed = ndimage.binary_closing(padded, iterations=2)[3:-3, 3:-3]  # keeps a sail with its hull
    # Filled before it is opened: of a white subject before a white sky only the outline is left, a thin one.
    labels, count = ndimage.label(ndimage.binary_opening(ndimage.binary_fill_holes(closed)))
    if count == 0:
        return np.zeros_like(mask)
    sizes = ndimage.sum_labels(np.ones_like(mask), labels, range(1, count + 1))
    return np.asarray(labels == 1 + int(np.argmax(sizes)))


def _colour(frames: np.ndarray, masks: Sequence[np.ndarray]) -> str:
    names = list(world.COLOURS)
    palette = np.array([world.COLOURS[n] for n in names], np.float32)
    votes = np.zeros(len(names))
    for frame, mask in zip(frames, masks, strict=True):
        inner = ndimage.binary_erosion(mask, iterations=2)
        pixels = frame[inner if inner.any() else mask].astype(np.float32)
        if len(pixels):
            distance = np.square(pixels[:, None] - palette[None]).sum(-1)
            votes += np.bincount(distance.argmin(1), minlength=len(names))
    return names[int(votes.argmax())]


def _motion(masks: Sequence[np.ndarray]) -> str:
    """Returns the main direction of the centroid's path, from a straight line fitted through it."""
    size = masks[0].shape[0]
    points = [(i, *ndimage.center_of_mass(m)) for i, m in enumerate(masks) if m.any()]
    if len(points) < 3:
        return NONE
    times, ys, xs = np.array(points).T
    dx, dy = (np.polyfit(times, v, 1)[0] * (len(masks) - 1) / size for v in (xs, ys))
    if max(abs(dx), abs(dy)) < 0.08:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


@cache
def _templates() -> dict[str, list[np.ndarray]]:
    """Returns each subject's silhouettes (both ways round, where that differs), brought to one size and place."""
    found: dict[str, list[np.ndarray]] = {}
    for subject in world.SUBJECTS:
        for motion in ("left", "right"):
            scene = world.Scene("red", subject, motion, "sea", radius=0.3)
            canvas = Image.new("RGB", (128, 128))
            world.draw_subject(ImageDraw.Draw(canvas), scene, 64, 64, 128)
            mask = np.asarray(canvas).max(-1) > 0
            found.setdefault(subject, []).append(_normalised(mask))
    return found


def _normalised(mask: np.ndarray) -> np.ndarray:
    """Returns the mask resampled to _GRID x _GRID with its centroid in the middle and a fixed area."""
    cy, cx = ndimage.center_of_mass(mask)
    scale = np.sqrt(mask.sum() / (0.25 * _GRID * _GRID))  # source pixels per grid cell
    offsets = (np.arange(_GRID) - (_GRID - 1) / 2) * scale
    grid = np.meshgrid(cy + offsets, cx + offsets, indexing="ij")
    return ndimage.map_coordinates(mask.astype(np.float32), grid, order=1)


def shape_overlaps(masks: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns each subject's overlap (IoU) with the masks that do not touch the border, the mean over them."""
    sums = dict.fromkeys(world.SUBJECTS, 0.0)
    counted = 0
    for mask in masks:
        edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        if not mask.any() or edges.any():
            continue
        counted += 1
        shape = _normalised(mask)
        for subject, templates in _templates().items():
            sums[subject] += max(float(np.minimum(shape, t).sum() / np.maximum(shape, t).sum()) for t in templates)
    return {s: v / max(1, counted) for s, v in sums.items()}


def _subject(masks: Sequence[np.ndarray]) -> str:
    overlaps = shape_overlaps(masks)
    best = max(overlaps, key=lambda s: overlaps[s])
    return best if overlaps[best] >= _LEAST_OVERLAP else NONE
