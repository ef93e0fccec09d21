"""What a person should know of an input before it is made anew: what will be converted, changed or left out."""

from __future__ import annotations

from pathlib import Path

from t2vcli.report import counted
from t2vcli.video.along import Along
from t2vcli.video.colors import can_convert
from t2vcli.video.ffmpeg import shown
from t2vcli.video.reader import VideoInfo

_NOTICED_S = 0.04
"""From when on sound is noticed to be out of step (ITU-R BT.1359)."""


def remarks_on(source: Path, video: VideoInfo, along: Along) -> list[str]:
    """Returns a sentence for each thing; those that may spoil the result begin with "warning: "."""
    name, lines = shown(source), []
    if source.is_dir():
        lines.append(
            f"{name} is a folder of {counted(video.file_frames, 'picture')}: taken as {float(video.fps):g} frames per second"
        )
    if not video.whole:
        last = video.skipped + video.frames
        lines.append(f"frames {video.skipped + 1:,} to {last:,} of {video.file_frames:,} are taken")
    if video.variable_rate:
        lines.append(
            f"the frame rate of {name} varies: each frame is taken once, at the average of {float(video.fps):g} per second"
            + _out_of_step(video, along)
        )
    if video.gaps:
        lines.append(_about_gaps(name, video, along))
    others = [stream.size for stream in video.streams if stream.kind == "video"]
    if others:
        lines.append(
            f"{name} holds {1 + len(others)} videos: the default one, {video.stream_size}, is taken,"
            f" and not {' or '.join(others)}"
        )
    lines += about_damage(source, video)
    lines += _about_colors(name, video)
    if video.interlaced:
        lines.append(
            f"warning: {name} is interlaced, and its fields stay woven: moving edges have combs;"
            " deinterlace it first (ffmpeg -i IN -vf bwdif OUT)"
        )
    if video.transparent:
        lines.append(f"the transparent parts of {name} are laid over black")
    if along.sounds and video.starts_s > _NOTICED_S:
        lines.append(f"the first {float(video.starts_s):.2f} s of the sound, before the first picture, are not heard")
    if along.cut and along.cut.source == source:
        lines.append("the sound is cut with its pictures, and encoded again")
    return [*lines, *along.dropped]


def about_damage(source: Path, video: VideoInfo) -> list[str]:
    """Returns a warning for a video of which a decoder had to make the best; else nothing."""
    if not video.flaws:
        return []
    return [
        f"warning: ffmpeg found errors in {shown(source)} ({video.flaws}): it may have been cut, joined or damaged there, and"
        " pictures may be missing or show blocks"
    ]


def _out_of_step(video: VideoInfo, along: Along) -> str:
    """Returns how far the pictures of an even rate are from their sound at the worst, "" where nobody would notice."""
    if not along.sounds:
        return ""
    worst = max(abs(time - number / float(video.fps)) for number, time in enumerate(video.times_s))
    return f"; it is up to {worst:.2f} s out of step with the sound" if worst > _NOTICED_S else ""


def _about_gaps(name: str, video: VideoInfo, along: Along) -> str:
    left_out_s = video.file_duration_s - float(video.file_frames / video.fps)
    times = "once" if video.gaps == 1 else f"{video.gaps:,} times"
    return (
        f"{name} leaves out time {times}, {left_out_s:.2f} s in all: the pictures after it follow at once,"
        f" at its {float(video.fps):g} per second" + _out_of_step(video, along)
    )


def _about_colors(name: str, video: VideoInfo) -> list[str]:
    color = video.color
    if not (color.hdr or color.wide):
        return []
    if not can_convert():
        what = f"{color.hdr} HDR" if color.hdr else f"in {color.wide} colours"
        return [
            f"warning: {name} is {what}, which this ffmpeg cannot convert (it lacks zscale): it will look flat and pale"
        ]
    if color.hdr:
        return [f"warning: {name} is {color.hdr} HDR: it is tone-mapped to standard range, which changes its look"]
    return [f"{name} is in {color.wide} colours: they are converted to BT.709"]
