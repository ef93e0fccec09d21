"""From when a file's frames are shown to its frame rate: the true one, though containers round times and leave gaps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

_STANDARD_RATES = sorted(
    {Fraction(n) for n in range(1, 241)} | {Fraction(n * 1000, 1001) for n in (12, 15, 24, 30, 48, 60, 120, 240)}
)
_MILLISECOND = Fraction(1, 1000)
_ROUNDED = (Fraction(1, 100), Fraction(1, 1000))
"""The time bases of GIF and of Matroska, FLV and the like: ticks that have nothing to do with the frame rate."""

_MPEG = Fraction(1, 90_000)

_MOST_GAPS = 10
"""A rate is a constant one with gaps where at most one step in so many is none of its own (or just one)."""


@dataclass(frozen=True)
class Timing:
    """How fast frames follow each other. Unless `variable`, `fps` is exact, and frame n is shown at n / `fps` seconds,
    but for what `gaps` say: how often time was left out, or jumped, before the next frame.

    `times_s` is when each frame is shown after the first, where n / `fps` does not tell it; `lasts_s` is until when the
    last one is.
    """

    fps: Fraction
    variable: bool
    gaps: int
    times_s: tuple[float, ...]
    lasts_s: float


def find_timing(
    times: Sequence[int],
    last_duration: int,
    time_base: Fraction,
    hints: Sequence[float] = (),
    noted: Fraction | None = None,
    *,
    untimed: int = 0,
) -> Timing:
    """Returns the timing of frames shown at `times` (in ticks of `time_base` seconds), one or more, in the order shown.

    The first `untimed` have none in the file: what stands there was guessed.

    `hints` are rates that ffmpeg took from the container or guessed, `noted` is one that t2v wrote down. Times are exact
    in most mp4 files, but whole milliseconds in Matroska, hundredths in GIF, and in what was remuxed from them: there 24
    frames per second come as 42, 41, 42, ... A rate whose rounded times the file holds is not a varying one.
    """
    fps, gaps = None, 0
    if untimed >= len(times) and time_base not in _ROUNDED:  # a bare stream: the decoder knows its rate
        untimed = 0
    if untimed < len(times):
        fps, gaps = _constant_rate(times[untimed:], last_duration, time_base, hints, noted)
    elif hints:
        fps = _nearest(hints[0])[0]
    if fps is None and not untimed and time_base in _ROUNDED and (guessed := _guessed(times)):
        rate, found = _constant_rate(times[guessed:], last_duration, time_base, hints, noted)
        if rate in _STANDARD_RATES and _as_guessed(times[: guessed + 1], 1 / (rate * time_base)):
            fps, gaps, untimed = rate, found, guessed
    if fps is not None and untimed:
        first = times[untimed] if untimed < len(times) else 0
        times = [*(first - round((untimed - n) / (fps * time_base)) for n in range(untimed)), *times[untimed:]]
    if fps is None:
        steps = [max(0, later - earlier) for earlier, later in itertools.pairwise(times)]
        times_s = _summed([float(step * time_base) for step in steps])
        lasts = sum(steps) * time_base + last_duration * time_base
        return Timing(average_rate(len(times), lasts), True, 0, times_s, float(lasts))
    if not gaps:
        return Timing(fps, False, 0, (), float(len(times) / fps))
    steps_s = [(later - earlier) * time_base for earlier, later in itertools.pairwise(times)]
    times_s = _summed([float(step if 2 * step * fps > 1 else 1 / fps) for step in steps_s])
    return Timing(fps, False, gaps, times_s, times_s[-1] + float(1 / fps))


def _guessed(times: Sequence[int]) -> int:
    """Returns how many frames at the beginning are all as far from the next; 0 if all are."""
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return next((number for number, step in enumerate(steps) if step != steps[0]), 0)


def _as_guessed(times: Sequence[int], period: Fraction) -> bool:
    """Returns whether these are one rounded `period` (both in ticks) apart, and together less than one away from true.

    A demuxer puts what has no time before what has one, by its duration: Matroska has no times before zero, but in what
    was cut or shifted there are such frames.
    """
    off = abs(times[1] - times[0] - period)
    return 0 < off < 1 and off * (len(times) - 1) < period


def average_rate(frames: int, seconds: Fraction) -> Fraction:
    """Returns frames per second with a denominator of at most 1001; 25 where they take no time."""
    average = frames / seconds if seconds > 0 else Fraction(25)
    return max(average.limit_denominator(1001), Fraction(1, 1001))


def _summed(steps_s: Sequence[float]) -> tuple[float, ...]:
    return tuple(itertools.accumulate(steps_s, initial=0.0))


def _constant_rate(
    times: Sequence[int],
    last_duration: int,
    time_base: Fraction,
    hints: Sequence[float],
    noted: Fraction | None,
) -> tuple[Fraction | None, int]:
    """Returns the one rate that the times are of, None if there is none, and how many gaps they have."""
    rounded = time_base in _ROUNDED
    if len(times) == 1:
        if noted and rounded:
            return noted, 0
        if last_duration > 0 and not rounded:
            return _tidy(1 / (last_duration * time_base), hints), 0
        return (_nearest(hints[0])[0] if hints else Fraction(25)), 0
    if noted and rounded and _gaps(times, 1 / (noted * time_base), tolerance=Fraction(1)) == 0:
        return noted, 0
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    in_milliseconds = _whole_milliseconds(times, time_base)
    if min(steps) == max(steps) > 0 and not rounded:
        exact = 1 / (steps[0] * time_base)
        if rate := _rounded_period(steps[0] * time_base, time_base):
            return rate, 0
        if exact in _STANDARD_RATES or not (in_milliseconds or time_base == _MPEG):
            return exact, 0
    usual = sorted(steps)[len(steps) // 2]
    if usual < 1:
        return None, 0
    candidates = list(dict.fromkeys(_candidates(times, steps, usual, time_base, hints)))
    tolerances = [Fraction(1)]
    if time_base < _MILLISECOND:
        tolerances.insert(0 if in_milliseconds else 1, _MILLISECOND / time_base + 1)
    tolerances.append(2 * max(Fraction(1), _MILLISECOND / time_base))  # VP8 moves frames aside for those not shown
    for most in (0, max(1, len(steps) // _MOST_GAPS) if len(steps) > 2 else 0):
        for tolerance in tolerances:
            for rate in candidates:
                period = 1 / (rate * time_base)
                if period < 2 * tolerance and not (period == usual and tolerance == 1):
                    continue
                gaps = _gaps(times, period, tolerance=tolerance if period >= 2 * tolerance else Fraction(0), most=most)
                if gaps is not None:
                    return rate, gaps
    return None, 0


def _candidates(
    times: Sequence[int], steps: Sequence[int], usual: int, time_base: Fraction, hints: Sequence[float]
) -> Iterator[Fraction]:
    """Yields the rates that the times may be of, the likeliest first."""
    regular = [step for step in steps if abs(step - usual) <= usual // 2]  # without the gaps
    average = len(regular) / (sum(regular) * time_base)
    for hint in hints:
        if hint > 0:
            yield from _nearest(hint)
    yield from _nearest(float(average))
    yield from (average.limit_denominator(most) for most in (1, 2, 3, 4, 6, 12, 100, 1001) if average > Fraction(1, 2))
    yield average
    yield 1 / (usual * time_base)


def _rounded_period(period_s: Fraction, time_base: Fraction) -> Fraction | None:
    """Returns the standard rate whose period was rounded, up or down, to this one; None if it is of none.

    Many AVI files hold a period in whole microseconds, animated PNGs one in 1/100000 s: each frame lasts as long.
    """
    unit_s = time_base if time_base == Fraction(1, 100_000) else Fraction(1, 1_000_000)
    nearest = _nearest(float(1 / period_s))[0]
    return nearest if (period_s / unit_s).denominator == 1 and abs(1 / nearest - period_s) < unit_s else None


def _nearest(rate: float) -> list[Fraction]:
    return sorted(_STANDARD_RATES, key=lambda standard: abs(float(standard) - rate))[:3]


def _tidy(rate: Fraction, hints: Sequence[float]) -> Fraction:
    """Returns the standard rate that a rate out of one rounded duration is of, else that rate."""
    for hint in (*hints, float(rate)):
        near = _nearest(hint)[0] if hint > 0 else rate
        if abs(1 / near - 1 / rate) < _MILLISECOND / 10:
            return near
    return rate


def _whole_milliseconds(times: Sequence[int], time_base: Fraction) -> bool:
    """Returns whether the frames are whole milliseconds apart: they have been through a container that rounds so."""
    ticks = _MILLISECOND / time_base
    return ticks > 1 and all(abs(time - times[0] - round((time - times[0]) / ticks) * ticks) <= 1 for time in times)


def _gaps(times: Sequence[int], period: Fraction, *, tolerance: Fraction, most: int = 0) -> int | None:
    """Returns how often time jumps in what else is one frame each `period` ticks; None if it is not, or over `most`.

    Between two jumps all frames are where they should be, give or take the rounding of each: `tolerance` in all.
    """
    # In whole numbers of 1/scale ticks: fractions would be slow for half a million frames.
    scale = period.denominator * tolerance.denominator
    each, allowed = int(period * scale), int(tolerance * scale)
    gaps, low, high, due = 0, 0, 0, times[0] * scale
    for earlier, later in itertools.pairwise(times):
        due += each
        late = later * scale - due
        low, high = min(low, late), max(high, late)
        if high - low > allowed:
            off = abs((later - earlier) * scale - each)
            if gaps == most or off <= max(allowed, each // 4):  # a rate that is not quite the right one drifts away
                return None
            gaps += 1
            low, high, due = 0, 0, later * scale
    return gaps
