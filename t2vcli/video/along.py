"""What goes along from an input into an output beside the pictures: sound bit for bit, subtitles, chapters and tags."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from t2vcli.errors import InputError
from t2vcli.video import ffmpeg
from t2vcli.video.ffmpeg import QUIET, file_url, how_it_ended, input_arguments, messages, shown
from t2vcli.video.formats import MKV, MP4, Format, keeping
from t2vcli.video.reader import Stream, VideoInfo
from t2vcli.video.tags import METADATA_KEY, RATE_KEY

_TRIAL_LIMIT_S = 60.0
_MAX_TAG_BYTES = 64 * 1024
_MOST_NAMED = 4
"""How many streams of a kind, dropped for one reason, have a sentence each."""

# What says how the input was packed, not what it is; a timecode would make a track of its own.
_PACKING = {"major_brand", "minor_version", "compatible_brands", "encoder", "timecode", METADATA_KEY, RATE_KEY}
COMMENT_OF_SOURCE = "source_comment"


@dataclass(frozen=True)
class Along:
    """What to take from `source`: streams by their number there, whether its chapters, and its tags.

    Its times are `delay_s` later in the output, so that sound stays with the pictures. `dropped` says in sentences what
    is not taken, and why. `retold` are those of the subtitles that only an mp4 can hold as they are.
    """

    source: Path
    sounds: tuple[int, ...] = ()
    subtitles: tuple[int, ...] = ()
    chapters: bool = False
    delay_s: Fraction = Fraction(0)
    tags: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    container: Format = MP4
    retold: tuple[int, ...] = ()

    def opened(self) -> list[str]:
        """Returns ffmpeg's arguments that open the source as an input; none if only its tags go along."""
        if not (self.sounds or self.subtitles or self.chapters):
            return []
        return ["-itsoffset", f"{float(self.delay_s):.6f}", *input_arguments(self.source)]

    def put(self, number: int) -> list[str]:
        """Returns ffmpeg's arguments that put what goes along from input `number` into the container."""
        if not self.opened():
            return []
        maps = [part for index in self.sounds + self.subtitles for part in ("-map", f"{number}:{index}")]
        chapters = ["-map_chapters", str(number) if self.chapters else "-1"]
        text = [
            part
            for place, index in enumerate(self.subtitles)
            if index in self.retold
            for part in (f"-c:s:{place}", "srt")
        ]
        return [*maps, *self.container.along_options, *text, *chapters, *self.container.along_muxing]


def along_with(source: Path, video: VideoInfo, *, container: Format = MP4) -> Along:
    """Returns what can go along from `source`, of which `video` is all or a part, into a `container`.

    Streams only with the whole: of a part they would last longer than its pictures. Each is tried on a first second.
    """
    tags, dropped = _kept_tags(video.tags)
    if not container.keeps_tags:
        dropped = [f"the tags are dropped: {_no_room(container)}"] if tags else []
        tags = {}
    streams = [s for s in video.streams if not (s.codec == "bin_data" and video.chapters)]  # the chapters' own titles
    reasons = {stream.index: _obstacle(video, stream, container) for stream in streams}
    reasons |= _misfits(source, tuple(stream for stream in streams if not reasons[stream.index]), container)
    kept: dict[str, list[int]] = {"audio": [], "subtitle": []}
    left: dict[tuple[str, str], list[Stream]] = {}
    for stream in streams:
        if reason := reasons[stream.index]:
            left.setdefault((stream.kind, reason), []).append(stream)
        else:
            kept[stream.kind].append(stream.index)
    for (kind, reason), alike in left.items():
        each = [f"{_called(stream, video.streams)} dropped: {reason}" for stream in alike]
        dropped += each if len(each) <= _MOST_NAMED else [f"{len(each):,} {kind} streams are dropped: {reason}"]
    if video.chapters and not container.keeps_tags:
        dropped.append(f"the chapters are dropped: {_no_room(container)}")
    elif video.chapters and not video.whole:
        dropped.append("the chapters are dropped: only a part of the video is taken")
    return Along(
        source,
        sounds=tuple(kept["audio"]),
        subtitles=tuple(kept["subtitle"]),
        chapters=video.whole and video.chapters and container.keeps_tags,
        delay_s=-video.starts_s,
        tags=tags,
        dropped=tuple(dropped),
        container=container,
        retold=_retold(video.streams, container),
    )


def _retold(streams: tuple[Stream, ...], container: Format) -> tuple[int, ...]:
    """Returns the subtitles that go into Matroska as SubRip: it has no place for an mp4's own kind."""
    return tuple(stream.index for stream in streams if stream.codec == "mov_text") if container is MKV else ()


def _no_room(container: Format) -> str:
    return f"{container.called} has no room for them; {MP4.called} (-o NAME{MP4.suffix}) keeps them"


def _obstacle(video: VideoInfo, stream: Stream, container: Format) -> str:
    """Returns why a stream cannot go along, "" if it can as far as is known without a trial."""
    if stream.kind not in ("audio", "subtitle"):
        return "only pictures, sound and subtitles are kept"
    if not video.whole:
        return "only a part of the video is taken"
    return "" if container.takes(stream.kind, stream.codec) else _does_not_fit(stream, container)


def _does_not_fit(stream: Stream, container: Format, why: str = "") -> str:
    others = [kind for kind in keeping(stream.kind, stream.codec) if kind is not container]
    what = "them" if stream.kind == "subtitle" else "it"
    way_out = f"; {others[0].called} (-o NAME{others[0].suffix}) keeps {what}" if others else ""
    cause = f" ({why})" if why else ""
    return f"{stream.codec} cannot be in {container.called}{cause}{way_out}"


def _misfits(source: Path, streams: tuple[Stream, ...], container: Format) -> dict[int, str]:
    """Returns which of the streams ffmpeg cannot put into the container, by their number, and why.

    The first second of all is tried at once, into nothing; only if that is refused each by itself. Raises InputError if
    it cannot be tried: that says nothing of what fits.
    """
    if not streams:
        return {}
    try:
        file = os.stat(source)
    except OSError as error:
        raise InputError(f"{shown(source)} cannot be read any more ({error.strerror})") from None
    whole = (file.st_mtime_ns, file.st_size, file.st_ino)
    why = _refusal(source, streams, container, whole)
    if why is None:
        return {}
    if len(streams) > 1:
        alone = {stream: _refusal(source, (stream,), container, whole) for stream in streams}
        return {stream.index: _does_not_fit(stream, container, why) for stream, why in alone.items() if why is not None}
    return {streams[0].index: _does_not_fit(streams[0], container, why)}


# What a muxer says of a codec that it does not know, which says no more than "cannot be in".
_NOT_KNOWN = ("codec not currently supported in container", "are supported for WebM")
_NOT_OF_THE_STREAM = (errno.ENOSPC, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOENT)


@functools.lru_cache(maxsize=64)
def _refusal(source: Path, streams: tuple[Stream, ...], container: Format, whole: tuple[int, ...]) -> str | None:
    """Returns why ffmpeg's muxer refuses the streams together, "" if it does not know their codec; None if it takes them.

    `whole` tells one content of the file from another. Raises InputError for every other end.
    """
    only = Along(
        source,
        sounds=tuple(stream.index for stream in streams if stream.kind == "audio"),
        subtitles=tuple(stream.index for stream in streams if stream.kind == "subtitle"),
        container=container,
        retold=_retold(streams, container),
    )
    done = ffmpeg.run(
        [
            *(*QUIET, "level+error", "-y", *only.opened(), *only.put(0)),
            *("-t", "1", "-f", container.muxer, file_url(os.devnull)),
        ],
        limit_s=_TRIAL_LIMIT_S,
    )
    if done.status == 0 and not done.hung:
        return None
    said = [line.text for line in messages(done.log) if line.source.partition(" @ ")[0] == container.muxer]
    if said and not done.hung and done.status > 0 and 256 - done.status not in _NOT_OF_THE_STREAM:
        return "" if said[0].endswith(_NOT_KNOWN) else shown(said[0][:200])
    ended = f"no answer within {_TRIAL_LIMIT_S:g} seconds" if done.hung else how_it_ended(done.status, done.log)
    raise InputError(
        f"ffmpeg could not try whether the {_all_called(streams)} of {shown(source)} can be in {container.called}"
        f" ({ended}); try again"
    )


def _all_called(streams: Sequence[Stream]) -> str:
    kinds = {stream.kind for stream in streams}
    return "sound and subtitles" if len(kinds) > 1 else "sound" if "audio" in kinds else "subtitles"


def _called(stream: Stream, streams: tuple[Stream, ...]) -> str:
    """Returns "the sound is", or "sound 2 (fra) is" where there are several, and the like."""
    names = {"audio": "sound", "subtitle": "subtitles", "cover": "cover picture", "video": "second video stream"}
    name = names.get(stream.kind, f"{stream.kind} stream")
    alike = [other for other in streams if other.kind == stream.kind]
    verb = "are" if name == "subtitles" else "is"
    if len(alike) == 1:
        return f"the {name} {verb}"
    language = f" ({stream.language})" if stream.language not in ("", "und") else ""
    return f"{name} {alike.index(stream) + 1}{language} {verb}"


def _kept_tags(tags: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Returns the tags as they are to be written, and a sentence for each that is too long."""
    ours = METADATA_KEY in tags
    kept, dropped = {}, []
    for name, value in tags.items():
        if name.lower() in _PACKING or (ours and name.lower() == "comment"):
            continue
        if len(value.encode("utf-8", "replace")) > _MAX_TAG_BYTES:
            dropped.append(f"the tag {ffmpeg.shown(name[:60])} is dropped: it is over {_MAX_TAG_BYTES // 1024} KiB")
            continue
        kept[COMMENT_OF_SOURCE if name.lower() == "comment" else name] = value
    return kept, dropped
