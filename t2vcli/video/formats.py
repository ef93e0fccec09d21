"""What t2v writes, by the output's extension: how each kind is encoded, how it reads back, and what it has room for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from t2vcli.errors import OutputError
from t2vcli.video.colors import Color
from t2vcli.video.ffmpeg import shown

PALETTE_BYTES = 512 << 20
"""How much of a video (4 bytes a pixel) is held to find the one palette of a GIF; longer ones have one for each frame."""

_SCALE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
_TAGGED = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_TO_BT709 = f"scale=out_color_matrix=bt709:out_range=tv:{_SCALE}"
_TAG_OPTIONS = (
    *("-color_range", "tv", "-colorspace", "bt709"),
    *("-color_primaries", "bt709", "-color_trc", "bt709"),
)
_BT709 = Color(range="tv", matrix="bt709", primaries="bt709", transfer="bt709")
_RGB = Color(range="pc", matrix="gbr")

# Steady dots instead of error diffusion: what stands still does not crawl, and the colours are nearer too.
_DITHER = "dither=bayer:bayer_scale=4"


@dataclass(frozen=True)
class Format:
    """One kind of output: `called` is its name in a sentence, `encoder`, `filters` and `options` make it with ffmpeg.

    `codec` to `color` are as `probe` reports a finished one. `long_filters` take the place of `filters` where those
    would hold more than PALETTE_BYTES. `needs_filters` and `decoder` are what an ffmpeg may lack besides the encoder.
    A frame's time is rounded to a multiple of `tick_s` seconds, 0: exact, and more than `most_fps` cannot be (0: any).
    `even` says which of width and height have to be. `own_tags`: it is not ffmpeg that puts the tags in.
    `sounds` and `subtitles` are the codecs that it has room for (None: any; `pcm_` stands for all that begin so),
    `keeps_tags` whether it does for the tags and chapters of another file. `sure_sounds` are those that its muxer takes
    in whatever form they come, if that is known. `languages` says whether it has a code of ISO 639-2, `marks_forced`
    whether its subtitles can be forced ones, `shows_first_subtitles` that the first of them are always default, and
    `has_handlers` that a track has a second name, that of its handler.
    """

    suffix: str
    called: str
    muxer: str
    encoder: str
    options: Callable[[int], tuple[str, ...]]
    filters: str
    codec: str
    profile: str
    pixel_format: str
    color: Color
    muxing: Callable[[Fraction], tuple[str, ...]] = lambda fps: ()
    long_filters: str = ""
    needs_filters: tuple[str, ...] = ()
    decoder: str = ""
    tick_s: Fraction = Fraction(0)
    most_fps: int = 0
    even: tuple[bool, bool] = (False, False)
    own_tags: bool = False
    keeps_tags: bool = True
    sounds: frozenset[str] | None = frozenset()
    subtitles: frozenset[str] | None = frozenset()
    sure_sounds: frozenset[str] = frozenset()
    languages: Callable[[str], bool] = lambda code: True
    marks_forced: bool = True
    shows_first_subtitles: bool = False
    has_handlers: bool = False
    along_options: tuple[str, ...] = ()
    along_muxing: tuple[str, ...] = ()

    def chain(self, *, width: int, height: int, count: int) -> str:
        """Returns the filters that make the encoder's frames of `count` RGB ones."""
        is_long = self.long_filters and 4 * width * height * count > PALETTE_BYTES
        return self.long_filters if is_long else self.filters

    def takes(self, kind: str, codec: str) -> bool:
        """Returns whether there is room for sound or subtitles (`kind`: audio, subtitle) in `codec` (ffmpeg's name)."""
        known = {"audio": self.sounds, "subtitle": self.subtitles}[kind]
        return known is None or codec in known or (codec.startswith("pcm_") and "pcm_" in known)

    def about_rate(self, fps: Fraction) -> str:
        """Returns a sentence if no two frames can be exactly 1 / `fps` seconds apart in this kind, else ""."""
        if not self.tick_s or (1 / fps / self.tick_s).denominator == 1:
            return ""
        unit = "hundredths" if self.tick_s == Fraction(1, 100) else "thousandths"
        ticks = int(1 / fps / self.tick_s)
        return (
            f"{self.called} counts time in {unit} of a second: its frames stay {ticks} or {ticks + 1} of them,"
            f" {float(fps):g} a second on average"
        )


def _timescale(fps: Fraction) -> tuple[str, ...]:
    """A whole number of ticks per frame, and fine ones."""
    return ("-video_track_timescale", str(fps.numerator * -(-90_000 // fps.numerator)))


# Players know these in an mp4. ffmpeg would also put Vorbis there, which they do not.
_SOUNDS = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "opus", "flac", "dts", "pcm_"})
_TEXTS = frozenset({"mov_text", "subrip", "srt", "ass", "ssa", "webvtt", "text"})
_SURE_SOUNDS = frozenset({"aac", "mp3", "ac3", "alac"})
# QuickTime's codes of languages, in the three letters that ffmpeg has for them (its table mov_mdhd_language_map).
_QUICKTIME_LANGUAGES = re.compile(
    r"eng|fra|ger|ita|dut|sve|spa|dan|por|nor|heb|jpn|ara|fin|gre|ice|mlt|tur|urd|hin|tha|kor|lit|pol|hun|est|lav"
    r"|rus|chi|iri|alb|ron|ces|slk|slv|yid|mac|bul|ukr|bel|uzb|kaz|aze|arm|geo|mol|kir|tgk|tuk|mon|pus|kur|kas|snd"
    r"|tib|nep|san|mar|ben|asm|guj|ori|mal|kan|tam|tel|bur|khm|lao|vie|ind|tgl|may|amh|tir|orm|som|swa|run|mlg|epo"
    r"|wel|baq|cat|lat|que|grn|aym|tat|uig|dzo|jav|nya|per|sin|smi"
)
_AS_MOV_TEXT = ("-c:a", "copy", "-strict", "-2", "-c:s", "mov_text")

MP4 = Format(
    suffix=".mp4",
    called="an mp4",
    muxer="mp4",
    encoder="libx264",
    options=lambda crf: (
        "-profile:v",
        "high",
        "-preset",
        "medium",
        "-crf",
        str(crf),
        "-pix_fmt",
        "yuv420p",
        *_TAG_OPTIONS,
    ),
    filters=f"{_TO_BT709},format=yuv420p,{_TAGGED}",
    codec="h264",
    profile="High",
    pixel_format="yuv420p",
    color=_BT709,
    muxing=lambda fps: (*_timescale(fps), "-movflags", "+faststart+use_metadata_tags"),
    even=(True, True),
    sounds=_SOUNDS,
    subtitles=_TEXTS,
    sure_sounds=_SURE_SOUNDS | {"opus", "flac"},
    languages=lambda code: len(code) == 3 and code.isascii() and code.islower(),
    shows_first_subtitles=True,
    has_handlers=True,
    along_options=_AS_MOV_TEXT,
    along_muxing=("-write_tmcd", "0"),
)
MOV = Format(
    suffix=".mov",
    called="a mov",
    muxer="mov",
    encoder="prores_ks",
    options=lambda crf: ("-profile:v", "hq", "-vendor", "apl0", "-pix_fmt", "yuv422p10le", *_TAG_OPTIONS),
    filters=f"{_TO_BT709},format=yuv422p10le,{_TAGGED}",
    codec="prores",
    profile="HQ",
    pixel_format="yuv422p10le",
    color=_BT709,
    muxing=lambda fps: (*_timescale(fps), "-movflags", "+use_metadata_tags"),
    even=(True, False),
    sounds=_SOUNDS,
    subtitles=_TEXTS,
    sure_sounds=_SURE_SOUNDS,
    languages=lambda code: _QUICKTIME_LANGUAGES.fullmatch(code) is not None,
    marks_forced=False,
    shows_first_subtitles=True,
    has_handlers=True,
    along_options=_AS_MOV_TEXT,
    along_muxing=("-write_tmcd", "0"),
)
WEBM = Format(
    suffix=".webm",
    called="a webm",
    muxer="webm",
    encoder="libvpx-vp9",
    # VP9's scale goes to 63 where H.264's goes to 51
    options=lambda crf: (
        *("-crf", str(round(crf * 63 / 51)), "-b:v", "0", "-deadline", "good", "-cpu-used", "2", "-row-mt", "1"),
        *("-pix_fmt", "yuv420p", *_TAG_OPTIONS),
    ),
    filters=f"{_TO_BT709},format=yuv420p,{_TAGGED}",
    codec="vp9",
    profile="Profile 0",
    pixel_format="yuv420p",
    color=_BT709,
    tick_s=Fraction(1, 1000),
    even=(True, True),
    sounds=frozenset({"opus", "vorbis"}),
    sure_sounds=frozenset({"opus", "vorbis"}),
    along_options=("-c:a", "copy"),
)
MKV = Format(
    suffix=".mkv",
    called="an mkv",
    muxer="matroska",
    encoder="ffv1",
    options=lambda crf: ("-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", "bgr0"),
    filters="format=bgr0",
    codec="ffv1",
    profile="",
    pixel_format="bgr0",
    color=_RGB,
    tick_s=Fraction(1, 1000),
    sounds=None,
    subtitles=None,
    sure_sounds=_SURE_SOUNDS | {"opus", "flac", "vorbis", "pcm_s16le"},
    along_options=("-c:a", "copy", "-c:s", "copy"),
)
GIF = Format(
    suffix=".gif",
    called="a gif",
    muxer="gif",
    encoder="gif",
    options=lambda crf: (),
    filters=f"split[a][b];[a]palettegen[p];[b][p]paletteuse={_DITHER}",
    long_filters=f"split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse={_DITHER}:new=1",
    needs_filters=("palettegen", "paletteuse"),
    codec="gif",
    profile="",
    pixel_format="bgra",
    color=_RGB,
    muxing=lambda fps: ("-loop", "0"),
    tick_s=Fraction(1, 100),
    most_fps=50,
    own_tags=True,
    keeps_tags=False,
)
WEBP = Format(
    suffix=".webp",
    called="an animated webp",
    muxer="webp",
    encoder="libwebp",  # libwebp_anim makes one frame of two equal ones
    options=lambda crf: ("-quality", "90", "-pix_fmt", "yuv420p"),
    filters=f"scale=out_color_matrix=bt601:out_range=tv:{_SCALE},format=yuv420p",  # WebP is BT.601, whatever the size
    codec="webp_anim",
    profile="",
    pixel_format="yuva420p",
    color=Color(range="tv", matrix="bt470bg"),
    decoder="webp_anim",
    muxing=lambda fps: ("-loop", "0"),
    tick_s=Fraction(1, 1000),
    most_fps=90,
    own_tags=True,
    keeps_tags=False,
)
PNG = Format(
    suffix=".png",
    called="a folder of PNGs",
    muxer="image2",
    encoder="png",
    options=lambda crf: ("-pix_fmt", "rgb24"),
    filters="format=rgb24",
    codec="png",
    profile="",
    pixel_format="rgb24",
    color=_RGB,
    own_tags=True,
    keeps_tags=False,
)
FORMATS = {kind.suffix: kind for kind in (MP4, WEBM, MOV, MKV, GIF, WEBP, PNG)}

_NUMBER = re.compile(r"%(?:0([1-9]))?d")


def keeping(kind: str, codec: str) -> list[Format]:
    """Returns the kinds of output that have room for sound or subtitles in `codec`, the one with most room first."""
    return [output for output in (MKV, MP4, MOV, WEBM) if output.takes(kind, codec)]


def format_of(path: Path) -> Format:
    """Returns the kind of output that `path` names by its extension; pictures by a pattern such as out/%04d.png.

    Raises OutputError, naming all kinds or the right form of a pattern, for anything else.
    """
    name, kind = shown(path), FORMATS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(
            f"{name} does not end in .mp4, and t2v writes .mp4 (H.264), .webm (VP9), .mov (ProRes), .mkv (lossless),"
            f" .gif, .webp and folder/%04d.png; name it {shown(path.stem or 'out')}.mp4"
        )
    if kind is PNG:
        way_out = (
            f"name a folder and the number's place in it, as in -o {shown(path.stem.split('%')[0] or 'out')}/%04d.png"
        )
        if not _NUMBER.search(path.name):
            raise OutputError(f"{name} would be one picture, and a video is many: {way_out}")
        if path.name.count("%") != 1 or "%" not in path.stem:
            raise OutputError(f"{name} has to hold exactly one %d or %04d, and no other %: {way_out}")
        if path.parent.name in ("", ".."):
            raise OutputError(f"{name} would put its pictures among other files: {way_out}")
    return kind


def target_of(path: Path) -> Path:
    """Returns what is there when `path` is written: the file itself, or the folder of a pattern of pictures."""
    return path.parent if format_of(path) is PNG else path


def size_on_disk(place: Path) -> int:
    """Returns how many bytes an output takes: the file, or all the pictures of a folder. Raises OSError."""
    files = list(place.iterdir()) if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files)


def picture_names(pattern: str) -> re.Pattern[str]:
    """Returns what the names of a pattern's pictures look like: those of frame-%04d.png are frame-0001.png and so on."""
    before, after = _NUMBER.split(pattern)[0], _NUMBER.split(pattern)[-1]
    found = _NUMBER.search(pattern)
    digits = f"[0-9]{{{found[1] if found and found[1] else 1},}}"
    return re.compile(re.escape(before) + digits + re.escape(after))
