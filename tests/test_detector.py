"""The detector that scores the embedded model: right on what is drawn, and able to say that a shape is none of its own."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import ndimage

from training import world
from training.detector import NONE, detect, steadiness
from training.evaluate import interval, psnr, scenes_for, ssim


@pytest.mark.parametrize("size", [64, 128])
def test_everything_of_drawn_clips_is_read_right(size: int) -> None:
    """Of each subject at each place one clip, and white boats before pale skies, whose sails are the hardest to see."""
    rng = random.Random(5)
    combinations = [
        (rng.choice(["red", "yellow", "purple"]), subject, motion, place)
        for subject in world.SUBJECTS
        for motion, place in zip(("left", "right", "up", "down", "left"), world.PLACES, strict=True)
    ]
    combinations += [
        ("white", "boat", motion, place) for motion in ("left", "up") for place in ("sea", "grass", "desert")
    ]
    combinations += [("white", "square", "left", "grass"), ("black", "fish", "right", "snow")]
    for combination in combinations:
        clip = world.draw_clip(world.sample_scene(rng, combination), frames=16, size=size)[::3]
        seen = detect(clip)
        assert (seen.colour, seen.subject, seen.motion, seen.place) == combination


@pytest.mark.parametrize("place", ["sea", "desert"])
def test_a_sail_without_an_outline_is_still_a_sail(place: str) -> None:
    """A model's outlines have gaps, so that nothing can be filled: the sail must be seen by its own pale colour."""
    scene = world.Scene("red", "boat", "left", place)
    clip = world.draw_clip(scene, frames=8).copy()
    for number, frame in enumerate(clip):
        _, y = scene.centre(number)
        sail = frame[: int(64 * (y + 0.03))]
        sail[np.abs(sail.astype(int) - world.background(place, 64)[: len(sail)]).max(-1) > 12] = (250, 248, 238)
    assert detect(clip).subject == "boat"


def test_a_blob_is_none_of_the_shapes() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        noise = ndimage.gaussian_filter(rng.standard_normal((64, 64)), 4)
        y, x = np.mgrid[:64, :64] - 31.5
        blob = noise / noise.std() - (np.hypot(x / 26, y / 12) ** 2) > -0.9  # long, ragged
        clip = np.stack(
            [np.where(np.roll(blob, i, 1)[..., None], [220, 40, 40], world.background("grass", 64)) for i in range(8)]
        )
        assert detect(clip.astype(np.uint8)).subject == NONE


def test_an_empty_place_shows_nothing() -> None:
    clip = np.repeat(world.background("night", 64)[None], 8, 0)
    seen = detect(clip)
    assert (seen.colour, seen.subject, seen.motion, seen.place) == (NONE, NONE, NONE, "night")
    assert steadiness(clip) is None


def test_steadiness_tells_what_trembles() -> None:
    drawn = world.draw_clip(world.Scene("red", "star", "right", "sea"))
    calm = steadiness(drawn)
    assert calm is not None
    assert calm.flicker < 0.06
    assert calm.jitter < 0.6
    assert calm.shimmer < 0.1
    shaken = steadiness(np.stack([np.roll(f, 2 * (i % 2), 0) for i, f in enumerate(drawn)]))
    assert shaken is not None
    assert shaken.jitter > 2
    noisy = steadiness((drawn + np.random.default_rng(0).integers(-6, 7, drawn.shape)).clip(0, 255).astype(np.uint8))
    assert noisy is not None
    assert noisy.shimmer > 3
    cut = drawn.copy()
    for i in range(0, 16, 2):
        x, _ = world.Scene("red", "star", "right", "sea").centre(i)
        cut[i, :, int(x * 64) + 3 :] = world.background("sea", 64)[:, int(x * 64) + 3 :]  # a third of it comes and goes
    flickering = steadiness(cut)
    assert flickering is not None
    assert flickering.flicker > 0.25


def test_what_settings_are_chosen_on_is_not_what_they_are_reported_on() -> None:
    reported = {s.combination for s in scenes_for(200)}
    tuned = {s.combination for s in scenes_for(200, tuning=True)}
    assert not reported & tuned
    assert all(world.is_held_out(c) for c in reported)
    assert len(reported) == len(world.held_out_combinations())  # each once before any comes twice


def test_measures_of_likeness() -> None:
    drawn = world.draw_clip(world.Scene("red", "star", "right", "sea"), 4)
    off = (drawn.astype(int) + 10).clip(0, 255).astype(np.uint8)
    assert ssim(drawn, drawn) == pytest.approx(1)
    assert psnr(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 16, np.uint8)) == pytest.approx(24.05, abs=0.01)
    assert (
        ssim(drawn, np.stack([np.asarray(ndimage.gaussian_filter(f, (2, 2, 0))) for f in drawn])) < ssim(drawn, off) < 1
    )
    low, high = interval(90, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)  # Wilson's, from the literature's tables
    assert interval(100, 100)[1] == pytest.approx(1)
