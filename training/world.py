"""The drawn world that the embedded demo model learns: clips with captions, made with Pillow.

A clip shows one subject of one colour, in one place, with one motion. Everything is given in fractions of the
picture's side, so the same scene can be drawn at 64x64 (the demo preset) and at 128x128 (the demo-XL preset).
"""

from __future__ import annotations

import functools
import math
import random
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (250, 220, 40),
    "purple": (150, 60, 200),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SUBJECTS = ("ball", "square", "triangle", "star", "boat", "fish")
MOTIONS = ("left", "right", "up", "down")
PLACES = ("sea", "grass", "night", "desert", "snow")

# Pairs that a person could not tell from the background either.
_INVISIBLE = {("white", "snow"), ("black", "night")}

SUBJECT_WORDS = {
    "ball": ("ball", "ball", "circle"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "boat": ("boat", "boat", "ship"),
    "fish": ("fish",),
}
MOTION_WORDS = {
    "left": ("moving left", "moving left", "moving to the left", "going left", "drifting left", "sailing left"),
    "right": ("moving right", "moving right", "moving to the right", "going right", "drifting right", "sailing right"),
    "up": ("rising", "rising", "moving up", "going up", "floating up", "flying up"),
    "down": ("falling", "falling", "moving down", "going down", "sinking", "dropping"),
}
PLACE_WORDS = {
    "sea": ("on the sea", "on the sea", "in the sea", "at sea", "on the water", "in the ocean"),
    "grass": ("on the grass", "on the grass", "in the grass", "in a meadow", "on a green field"),
    "night": ("at night", "at night", "in the night sky", "under the stars", "in the dark"),
    "desert": ("in the desert", "in the desert", "on the sand", "in the sand"),
    "snow": ("in the snow", "in the snow", "on the snow", "in winter"),
}

TRAJECTORY_FRAMES = 16  # a subject crosses half of the picture in this many frames (2 s at 8 fps)


@dataclass(frozen=True)
class Scene:
    """One clip's content. Lengths and positions are fractions of the picture's side."""

    colour: str
    subject: str
    motion: str
    place: str
    radius: float = 0.21
    travel: float = 0.5  # distance covered in TRAJECTORY_FRAMES frames
    across: float = 0.5  # the coordinate that the motion leaves alone
    offset: float = 0.0  # shift of the middle of the path, along the motion

    @property
    def combination(self) -> tuple[str, str, str, str]:
        return (self.colour, self.subject, self.motion, self.place)

    def centre(self, frame: float) -> tuple[float, float]:
        """Returns the subject's centre (x, y) at `frame`, a number from 0 to TRAJECTORY_FRAMES - 1."""
        along = self.travel * (frame / (TRAJECTORY_FRAMES - 1) - 0.5) + self.offset
        match self.motion:
            case "left":
                return 0.5 - along, self.across
            case "right":
                return 0.5 + along, self.across
            case "up":
                return self.across, 0.5 - along
            case _:
                return self.across, 0.5 + along


def combinations() -> list[tuple[str, str, str, str]]:
    """Returns every (colour, subject, motion, place) of the world."""
    return [
        (c, s, m, p) for c in COLOURS for s in SUBJECTS for m in MOTIONS for p in PLACES if (c, p) not in _INVISIBLE
    ]


def is_held_out(combination: tuple[str, str, str, str]) -> bool:
    """Returns whether training never sees this combination (a fixed eighth of them, chosen by a hash of the words)."""
    return zlib.crc32(" ".join(combination).encode()) % 8 == 0


@functools.cache
def training_combinations() -> list[tuple[str, str, str, str]]:
    return [c for c in combinations() if not is_held_out(c)]


@functools.cache
def held_out_combinations() -> list[tuple[str, str, str, str]]:
    return [c for c in combinations() if is_held_out(c)]


def sample_scene(rng: random.Random, combination: tuple[str, str, str, str] | None = None) -> Scene:
    """Returns a random scene of the training set, or of the given combination."""
    colour, subject, motion, place = combination or rng.choice(training_combinations())
    horizontal = motion in ("left", "right")
    return Scene(
        colour,
        subject,
        motion,
        place,
        radius=rng.uniform(0.20, 0.25),
        travel=rng.uniform(0.44, 0.56),
        across=rng.uniform(0.42, 0.66) if horizontal else rng.uniform(0.32, 0.68),
        offset=rng.uniform(-0.06, 0.06),
    )


def caption(scene: Scene, rng: random.Random) -> str:
    """Returns one of the many ways to say `scene`; a few leave a part out, as people do."""
    subject = rng.choice(SUBJECT_WORDS[scene.subject])
    motion = rng.choice(MOTION_WORDS[scene.motion])
    place = rng.choice(PLACE_WORDS[scene.place])
    article = rng.choice(("a ", "a ", "the ", "one ", ""))
    noun = f"{article}{scene.colour} {subject}"
    if article == "a " and scene.colour == "orange":
        noun = f"an orange {subject}"
    roll = rng.random()
    if roll < 0.06:
        return rng.choice((f"{noun} {motion}", f"{noun} {place}", noun))
    if roll < 0.16:
        return f"{place}, {noun} {motion}"
    if roll < 0.26:
        return f"{noun} {place}, {motion}"
    if roll < 0.34:
        return f"{noun} is {motion} {place}"
    return f"{noun} {motion} {place}"


def plain_caption(scene: Scene) -> str:
    """Returns the first way to say `scene`, the one the evaluation uses."""
    article = "an" if scene.colour == "orange" else "a"
    motion, place = MOTION_WORDS[scene.motion][0], PLACE_WORDS[scene.place][0]
    return f"{article} {scene.colour} {scene.subject} {motion} {place}"


def swap_left_right(scene: Scene) -> Scene:
    """Returns the scene seen in a mirror (for flip augmentation)."""
    if scene.motion in ("left", "right"):
        return replace(scene, motion="right" if scene.motion == "left" else "left")
    return replace(scene, across=1 - scene.across)


def known_words() -> list[str]:
    """Returns every word that a caption can hold, sorted."""
    words: set[str] = {"a", "an", "the", "one", "is", ",", *COLOURS}
    for table in (SUBJECT_WORDS, MOTION_WORDS, PLACE_WORDS):
        for phrases in table.values():
            for phrase in phrases:
                words.update(phrase.split())
    return sorted(words)


# --- drawing -----------------------------------------------------------------------------------------------------


def _gradient(size: int, stops: list[tuple[float, tuple[int, int, int]]]) -> np.ndarray:
    y = (np.arange(size) + 0.5) / size
    channels = [np.interp(y, [s for s, _ in stops], [c[k] for _, c in stops]) for k in range(3)]
    return np.repeat(np.stack(channels, -1)[:, None, :], size, 1)


def _draw_background(place: str, size: int) -> Image.Image:
    horizon = 0.68
    stops: dict[str, list[tuple[float, tuple[int, int, int]]]] = {
        "sea": [
            (0, (150, 205, 240)),
            (horizon, (225, 240, 248)),
            (horizon + 0.001, (95, 185, 205)),
            (1, (25, 105, 150)),
        ],
        "grass": [
            (0, (165, 215, 250)),
            (horizon, (232, 244, 250)),
            (horizon + 0.001, (175, 215, 120)),
            (1, (110, 165, 75)),
        ],
        "night": [(0, (22, 26, 70)), (1, (62, 54, 112))],
        "desert": [
            (0, (252, 222, 178)),
            (horizon, (254, 240, 212)),
            (horizon + 0.001, (226, 186, 130)),
            (1, (190, 142, 92)),
        ],
        "snow": [
            (0, (196, 208, 226)),
            (horizon, (222, 228, 238)),
            (horizon + 0.001, (252, 253, 255)),
            (1, (226, 234, 246)),
        ],
    }
    image = Image.fromarray(np.rint(_gradient(size, stops[place])).astype(np.uint8))
    draw = ImageDraw.Draw(image)

    def disc(x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse([(x - r) * size, (y - r) * size, (x + r) * size, (y + r) * size], fill=fill)

    if place == "sea":
        disc(0.86, 0.13, 0.07, (255, 246, 205))
        for row, y in enumerate((0.76, 0.85, 0.94)):
            points = [((i / 48) * size, (y + 0.012 * math.sin(i / 48 * 25 + row * 2)) * size) for i in range(49)]
            draw.line(points, fill=(150, 212, 224), width=max(1, size // 64))
    elif place == "grass":
        disc(0.86, 0.13, 0.07, (255, 240, 170))
        for x, y in ((0.08, 0.80), (0.3, 0.9), (0.52, 0.78), (0.72, 0.92), (0.92, 0.82)):
            for dx in (-0.02, 0, 0.02):
                tip = ((x + 1.6 * dx) * size, (y - 0.05) * size)
                draw.line([(x * size, y * size), tip], fill=(84, 138, 58), width=max(1, size // 64))
    elif place == "night":
        stars = (
            (0.08, 0.2),
            (0.2, 0.42),
            (0.3, 0.1),
            (0.44, 0.28),
            (0.58, 0.08),
            (0.68, 0.36),
            (0.12, 0.66),
            (0.36, 0.78),
        )
        for x, y in (*stars, (0.62, 0.68), (0.8, 0.58), (0.93, 0.82), (0.94, 0.4)):
            disc(x, y, 0.011, (250, 246, 214))
        disc(0.85, 0.15, 0.08, (240, 236, 205))
    elif place == "desert":
        disc(0.14, 0.14, 0.08, (255, 250, 225))
        dune = [(0, 0.80), (0.25, 0.73), (0.5, 0.80), (0.75, 0.74), (1, 0.82), (1, 1), (0, 1)]
        draw.polygon([(x * size, y * size) for x, y in dune], fill=(208, 162, 108))
    elif place == "snow":
        for x, h in ((0.1, 0.16), (0.24, 0.11), (0.9, 0.17), (0.76, 0.1)):
            base = horizon + 0.02
            draw.polygon(
                [((x - h / 3) * size, base * size), ((x + h / 3) * size, base * size), (x * size, (base - h) * size)],
                fill=(120, 150, 148),
            )
    return image


@functools.cache
def _background(place: str, size: int, oversample: int) -> Image.Image:
    return _draw_background(place, size * oversample)


@functools.cache
def background(place: str, size: int) -> np.ndarray:
    """Returns the bare place, (size, size, 3) uint8."""
    return np.asarray(_background(place, size, 2).reduce(2))


def _outline_of(subject: str, facing: int) -> list[list[tuple[float, float]]]:
    """Returns the subject's polygons in units of its radius, the body first."""
    match subject:
        case "square":
            return [[(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]]
        case "triangle":
            return [[(0, -1.08), (1.08, 0.82), (-1.08, 0.82)]]
        case "star":
            points = []
            for i in range(10):
                r = 1.15 if i % 2 == 0 else 0.48
                angle = -math.pi / 2 + i * math.pi / 5
                points.append((r * math.cos(angle), r * math.sin(angle)))
            return [points]
        case "boat":
            hull = [(-1.15, 0.2), (1.15, 0.2), (0.75, 0.95), (-0.75, 0.95)]
            return [hull, [(0.08, -1.15), (0.08, 0.1), (0.85 * facing + 0.08, 0.1)]]
        case "fish":
            body = [(0.25 * facing + 0.85 * math.cos(a), 0.62 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 24)]
            tail = [(-0.4 * facing, 0.0), (-1.2 * facing, -0.62), (-1.2 * facing, 0.62)]
            return [body, tail]
        case _:
            return [[(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 32)]]


def draw_subject(draw: ImageDraw.ImageDraw, scene: Scene, x: float, y: float, size: int) -> None:
    """Draws the subject centred at (x, y), in pixels of a canvas of `size`."""
    rgb = COLOURS[scene.colour]
    edge = tuple(int(v * 0.55) for v in rgb) if scene.colour != "black" else (70, 70, 78)
    r = scene.radius * size
    facing = -1 if scene.motion == "left" else 1
    width = max(1, round(0.016 * size))
    shapes = _outline_of(scene.subject, facing)
    for index, shape in reversed(list(enumerate(shapes))):
        fill = rgb
        if scene.subject == "boat" and index == 1:
            fill = (250, 248, 238)
        points = [(x + px * r, y + py * r) for px, py in shape]
        draw.polygon(points, fill=fill, outline=edge, width=width)
    if scene.subject == "boat":
        draw.line([(x + 0.08 * r, y - 1.15 * r), (x + 0.08 * r, y + 0.2 * r)], fill=edge, width=width)
    if scene.subject == "fish":
        ex, ey, er = x + 0.7 * facing * r, y - 0.15 * r, 0.11 * r
        eye = (20, 20, 20) if scene.colour != "black" else (240, 240, 240)
        draw.ellipse([ex - er, ey - er, ex + er, ey + er], fill=eye)


def draw_frame(scene: Scene, frame: float, size: int = 64) -> np.ndarray:
    """Returns frame `frame` of the scene, (size, size, 3) uint8, box-filtered from twice the size."""
    canvas = _background(scene.place, size, 2).copy()
    x, y = scene.centre(frame)
    draw_subject(ImageDraw.Draw(canvas), scene, x * size * 2, y * size * 2, size * 2)
    return np.asarray(canvas.reduce(2))


def draw_clip(scene: Scene, frames: int = TRAJECTORY_FRAMES, first: float = 0, size: int = 64) -> np.ndarray:
    """Returns `frames` frames of the scene from frame `first` on, (frames, size, size, 3) uint8."""
    return np.stack([draw_frame(scene, first + i, size) for i in range(frames)])
