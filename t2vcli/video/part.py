"""Which frames of a video are taken: all, or those from a start on, for a time, or up to a number."""

from __future__ import annotations

import bisect
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from t2vcli.errors import UsageError
from t2vcli.video.ffmpeg import shown
from t2vcli.video.rates import average_rate
from t2vcli.video.reader import VideoInfo

_SLACK_S = Fraction(1, 1000)  # so that the sum of two times rounded to milliseconds finds its frame


def part_of(
    video: VideoInfo,
    path: Path,
    *,
    start: float | None = None,
    duration: float | None = None,
    max_frames: int | None = None,
) -> VideoInfo:
    """Returns `video` with the frames shown from `start` on, for `duration` (seconds), at most `max_frames`; 1 or more.

    It is counted from the file's first frame, whatever part `video` already was. Where the rate varies, `fps` is the
    part's own average. Raises UsageError, calling the file `path`, if `start` is not within it.
    """
    since = Fraction(str(start or 0))
    first = _frames_before(video, since)
    if first >= video.file_frames:
        raise UsageError(
            f"--start {start:g} is past the last frame of {shown(path)}, which is {video.file_duration_s:.3f} s long"
        )
    end = video.file_frames
    if duration is not None:
        end = max(first + 1, min(end, _frames_before(video, since + Fraction(str(duration)))))
    if max_frames is not None:
        end = min(end, first + max_frames)
    fps = video.fps
    if video.variable_rate:
        times = (*video.times_s, video.file_duration_s)
        fps = average_rate(end - first, Fraction(times[end] - times[first]))
    frames = end - first
    return replace(video, fps=fps, frames=frames, skipped=first, duration_s=float(frames / fps))


def _frames_before(video: VideoInfo, time_s: Fraction) -> int:
    """Returns how many frames of the file are shown before `time_s`."""
    if video.times_s:
        return bisect.bisect_left(video.times_s, float(time_s - _SLACK_S))
    return min(video.file_frames, max(0, math.ceil((time_s - _SLACK_S) * video.fps)))
