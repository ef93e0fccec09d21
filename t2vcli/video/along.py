"""What goes along from an input into an output beside the pictures: sound bit for bit, subtitles, chapters and tags."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from t2vcli.errors import InputError
from t2vcli.video import ffmpeg
from t2vcli.video.ffmpeg import QUIET, file_url, how_it_ended, input_arguments, messages, shown
from t2vcli.video.formats import MKV, MP4, Format, keeping
from t2vcli.video.reader import Stream, VideoInfo
from t2vcli.video.sound import ENCODERS, Sound
from t2vcli.video.tags import METADATA_KEY, OWN_KEYS

_TRIAL_LIMIT_S = 60.0
_MAX_TAG_BYTES = 64 * 1024
_MOST_NAMED = 4
"""How many streams of a kind, dropped for one reason, have a sentence each."""

# What says how the input was packed, not what it is; a timecode would make a track of its own.
_PACKING = {"major_brand", "minor_version", "compatible_brands", "encoder", "timecode", *OWN_KEYS} - {"comment"}
COMMENT_OF_SOURCE = "source_comment"


@dataclass(frozen=True)
class Label:
    """What a track is called and marked as in the output; "" is left as it is. `flags` are ffmpeg's dispositions."""

    title: str = ""
    language: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Along:
    """What to take from `source`: streams by their number there, whether its chapters, and its tags.

    `labels` are what the streams are called and marked as, sounds first. Its times are `delay_s` later in the output, so that sound stays with the pictures. `dropped` says in sentences what
    is not taken, and why. `cut` is a sound that is encoded anew, to be as long as the pictures. `retold` are those of the subtitles that only an mp4 can hold as they are.
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
    labels: tuple[Label, ...] = ()
    cut: Sound | None = None

    def opened(self) -> list[str]:
        """Returns ffmpeg's arguments that open what is needed as inputs; none if only the tags go along."""
        cut = self.cut.opened() if self.cut else []
        if not (self.sounds or self.subtitles or self.chapters):
            return cut
        return ["-itsoffset", f"{float(self.delay_s):.6f}", *input_arguments(self.source), *cut]

    def put(self, number: int) -> list[str]:
        """Returns ffmpeg's arguments that put what goes along from the inputs from `number` on into the container."""
        as_it_is = bool(self.sounds or self.subtitles or self.chapters)
        cut = self.cut.put(number + as_it_is, self.container) if self.cut else []
        if not as_it_is:
            return [*cut, "-map_chapters", "-1"] if cut else []
        maps = [part for index in self.sounds + self.subtitles for part in ("-map", f"{number}:{index}")]
        chapters = ["-map_chapters", str(number) if self.chapters else "-1"]
        text = [
            part
            for place, index in enumerate(self.subtitles)
            if index in self.retold
            for part in (f"-c:s:{place}", "srt")
        ]
        options = [*self.container.along_options, *text, *self._labelled(), *chapters, *self.container.along_muxing]
        return [*maps, *options, *cut]

    def _labelled(self) -> list[str]:
        """Returns ffmpeg's arguments that label each track: left alone, it may make another one the default."""
        places = [f"a:{place}" for place in range(len(self.sounds))]
        places += [f"s:{place}" for place in range(len(self.subtitles))]
        arguments = ["-disposition:v:0", "default"] if self.labels else []
        for place, label in zip(places, self.labels, strict=False):
            flags = "+".join(flag.replace(" ", "_").replace("-", "_") for flag in label.flags)
            arguments += [f"-disposition:{place}", flags or "0"]
            if label.title:  # players look for it in either place
                arguments += [f"-metadata:s:{place}", f"title={label.title}"]
                arguments += (
                    [f"-metadata:s:{place}", f"handler_name={label.title}"] if self.container.has_handlers else []
                )
            if label.language:
                arguments += [f"-metadata:s:{place}", f"language={label.language}"]
        return arguments


def along_with(source: Path, video: VideoInfo, *, container: Format = MP4, without: Collection[str] = ()) -> Along:
    """Returns what can go along from `source`, of which `video` is all or a part, into a `container`.

    Streams of a kind in `without` are left out, and nothing is said of them.
    Streams as they are only with the whole: of a part they would last longer than its pictures, so that its first sound
    is cut, and encoded anew. Each of the others is tried on a first second.
    """
    tags, dropped = _kept_tags(video.tags)
    if not container.keeps_tags:
        dropped = [f"the tags are dropped: {_no_room(container)}"] if tags else []
        tags = {}
    streams = [s for s in video.streams if not (s.codec == "bin_data" and video.chapters)]  # the chapters' own titles
    streams = [stream for stream in streams if stream.kind not in without]
    cut = None if video.whole or "audio" in without else _cut(source, video, container)
    if cut is not None:
        streams = [stream for stream in streams if stream.index != cut.stream]
    reasons = {stream.index: _obstacle(video, stream, container) for stream in streams}
    unsure = [stream for stream in streams if not (reasons[stream.index] or _surely_fits(video, stream, container))]
    reasons |= _misfits(source, tuple(unsure), container)
    kept: dict[str, list[Stream]] = {"audio": [], "subtitle": []}
    left: dict[tuple[str, str], list[Stream]] = {}
    for stream in streams:
        if reason := reasons[stream.index]:
            left.setdefault((stream.kind, reason), []).append(stream)
        else:
            kept[stream.kind].append(stream)
    for (kind, reason), alike in left.items():
        each = [f"{_called(stream, video.streams)} dropped: {reason}" for stream in alike]
        dropped += each if len(each) <= _MOST_NAMED else [f"{len(each):,} {kind} streams are dropped: {reason}"]
    labels, lost = _labels(kept["audio"], kept["subtitle"], video.streams, container)
    dropped += lost
    if video.chapters and not container.keeps_tags:
        dropped.append(f"the chapters are dropped: {_no_room(container)}")
    elif video.chapters and not video.whole:
        dropped.append("the chapters are dropped: only a part of the video is taken")
    return Along(
        source,
        sounds=tuple(stream.index for stream in kept["audio"]),
        subtitles=tuple(stream.index for stream in kept["subtitle"]),
        chapters=video.whole and video.chapters and container.keeps_tags,
        delay_s=-video.starts_s,
        tags=tags,
        dropped=tuple(dropped),
        container=container,
        retold=_retold(video.streams, container),
        labels=labels,
        cut=cut,
    )


def _cut(source: Path, video: VideoInfo, container: Format) -> Sound | None:
    """Returns the first sound of a video as it is in the part that is taken; None where there is none, or no room."""
    own = next((stream for stream in video.streams if stream.kind == "audio"), None)
    if own is None or container not in ENCODERS:
        return None
    begins = video.times_s[video.skipped] if video.times_s else float(video.skipped / video.fps)
    start = video.starts_s + Fraction(str(round(begins, 6)))
    return Sound(source, start, video.frames / video.fps, own.index)


def _surely_fits(video: VideoInfo, stream: Stream, container: Format) -> bool:
    """Returns whether the muxer is known to take it. Of a file that is cut anywhere the sound may begin without its form."""
    return stream.sampled and not video.forgiving and stream.codec in container.sure_sounds


# ISO 639-2 has two codes for some languages: for use in bibliographies, and from the language's own name.
_TWINS = (
    ("alb", "sqi"),
    ("arm", "hye"),
    ("baq", "eus"),
    ("bur", "mya"),
    ("chi", "zho"),
    ("cze", "ces"),
    ("dut", "nld"),
    ("fre", "fra"),
    ("geo", "kat"),
    ("ger", "deu"),
    ("gre", "ell"),
    ("ice", "isl"),
    ("mac", "mkd"),
    ("mao", "mri"),
    ("may", "msa"),
    ("per", "fas"),
    ("rum", "ron"),
    ("slo", "slk"),
    ("sve", "swe"),
    ("tib", "bod"),
    ("wel", "cym"),
    ("iri", "gle"),
)


def _labels(
    sounds: Sequence[Stream], subtitles: Sequence[Stream], streams: tuple[Stream, ...], container: Format
) -> tuple[tuple[Label, ...], list[str]]:
    """Returns how the tracks are labelled in the container, and a sentence for each label that it has no room for."""
    labels, lost = [], []
    keeps = f"{MKV.called} (-o NAME{MKV.suffix}) keeps"
    for stream in (*sounds, *subtitles):
        name, plural = _name(stream, streams)
        title = stream.title if len(stream.title.encode("utf-8", "replace")) <= _MAX_TAG_BYTES else ""
        if stream.title and not title:
            lost.append(
                f"{name} {'lose their' if plural else 'loses its'} title: it is over {_MAX_TAG_BYTES // 1024} KiB"
            )
        language = "" if stream.language == "und" else stream.language
        code = language if container.languages(language) else _twin(language, container)
        if language and not code:
            lose = "lose their" if plural else "loses its"
            lost.append(
                f"{name} {lose} language: {container.called} has no code for {shown(language[:20])}; {keeps} it"
            )
        if stream.kind == "subtitle" and stream.forced and not container.marks_forced:
            are = "are" if plural else "is"
            lost.append(f"{name} {are} not marked as forced: {container.called} has no room for that; {keeps} it")
        labels.append(Label(title, code, stream.flags))
    if subtitles and container.shows_first_subtitles and not any(stream.default for stream in subtitles):
        name, _ = _name(subtitles[0], streams)
        lost.append(f"{name} will be shown from the start, as always in {container.called}; {keeps} them off")
    return tuple(labels), lost


def _twin(language: str, container: Format) -> str:
    """Returns the other code of the language, if there is one for which the container has room; else ""."""
    pair = next((pair for pair in _TWINS if language in pair), ())
    return next((code for code in pair if code != language and container.languages(code)), "")


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
    name, plural = _name(stream, streams)
    return f"{name} {'are' if plural else 'is'}"


def _name(stream: Stream, streams: tuple[Stream, ...]) -> tuple[str, bool]:
    """Returns "the sound", or "sound 2 (fra)" where there are several, and the like; and whether it is a plural."""
    names = {"audio": "sound", "subtitle": "subtitles", "cover": "cover picture", "video": "second video stream"}
    name = names.get(stream.kind, f"{stream.kind} stream")
    alike = [other for other in streams if other.kind == stream.kind]
    if len(alike) == 1:
        return f"the {name}", name == "subtitles"
    language = f" ({shown(stream.language[:20])})" if stream.language not in ("", "und") else ""
    return f"{name} {alike.index(stream) + 1}{language}", name == "subtitles"


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
