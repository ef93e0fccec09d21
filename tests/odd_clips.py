"""Videos whose packets are not their frames, or whose times are not their rate: as they come out of recorders and cutters.

Each is made with ffmpeg from a moving test picture; what no encoder of ffmpeg's makes (field pictures, packed frames, empty
slots) is put together here, byte by byte.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import clips


def source(rate: str = "24", seconds: float = 4) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"testsrc2=s=64x64:r={rate}:d={seconds:g}")


SOUND = ("-f", "lavfi", "-i", "sine=d=4")
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "24")
OPEN_GOP = ("-c:v", "libx264", "-x264-params", "open-gop=1:bframes=3:scenecut=0:keyint=24:min-keyint=24")
HEVC = ("-c:v", "libx265", "-x265-params", "open-gop=1:keyint=24:min-keyint=24:log-level=none")
MPEG2 = ("-c:v", "mpeg2video", "-g", "12", "-bf", "2")
VFR = ("-fps_mode", "passthrough")


def made(path: Path, *arguments: str) -> Path:
    clips.ffmpeg(*arguments, f"file:{path}")
    return path


def copied(path: Path, of: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    return made(path, *before, "-i", f"file:{of}", *options, "-c", "copy")


def without_the_first(path: Path, of: Path, share: Fraction = Fraction(1, 3)) -> Path:
    """Leaves out the first packets of an MPEG-TS: a recording that begins anywhere."""
    data = of.read_bytes()
    path.write_bytes(data[int(len(data) // 188 * share) * 188 :])
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


# Each returns the path of a video and its rate, None where that truly varies.
Odd = Callable[[Path], tuple[Path, str | None]]
ODD: dict[str, Odd] = {}


def odd(make: Odd) -> Odd:
    ODD[make.__name__.replace("_", " ")] = make
    return make


def _alt_ref(folder: Path) -> Path:
    log = ("-passlogfile", str(folder / "log"))
    vp8 = (
        "-c:v",
        "libvpx",
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "25",
        "-arnr-maxframes",
        "7",
        "-b:v",
        "100k",
        "-cpu-used",
        "5",
        *log,
    )
    made(folder / "first.webm", *source(), *vp8, "-pass", "1")
    return made(folder / "altref.webm", *source(), *vp8, "-pass", "2")


@odd
def vp8_with_frames_not_shown(folder: Path) -> tuple[Path, str]:
    return _alt_ref(folder), "24"


@odd
def vp8_with_frames_not_shown_in_ivf(folder: Path) -> tuple[Path, str]:
    return copied(folder / "a.ivf", _alt_ref(folder)), "24"


def _h264_ts(folder: Path) -> Path:
    repeated = ("-x264-params", "repeat-headers=1")
    return made(folder / "whole.ts", *source(), *SOUND, *H264, *repeated, "-c:a", "aac", "-shortest")


@odd
def h264_from_between_key_frames(folder: Path) -> tuple[Path, str]:
    return without_the_first(folder / "a.ts", _h264_ts(folder)), "24"


@odd
def hevc_from_between_key_frames(folder: Path) -> tuple[Path, str]:
    return without_the_first(folder / "a.ts", made(folder / "w.ts", *source(), *HEVC)), "24"


@odd
def mpeg2_from_between_key_frames(folder: Path) -> tuple[Path, str]:
    return without_the_first(folder / "a.ts", made(folder / "w.ts", *source("25"), *MPEG2)), "25"


@odd
def hevc_from_between_key_frames_in_matroska(folder: Path) -> tuple[Path, str]:
    whole = made(folder / "w.ts", *source(), *HEVC)
    return copied(folder / "a.mkv", whole, "-ss", "1.3", "-copyinkf"), "24"


@odd
def mpeg2_cut_at_an_open_gop(folder: Path) -> tuple[Path, str]:
    whole = made(folder / "w.ts", *source("24", 2), *MPEG2)
    return copied(folder / "a.ts", whole, before=("-ss", "1")), "24"


@odd
def mpeg2_cut_at_an_open_gop_in_mpeg_ps(folder: Path) -> tuple[Path, str]:
    whole = made(folder / "w.mpg", *source("25"), *MPEG2)
    return copied(folder / "a.mpg", whole, before=("-ss", "1.3")), "25"


@odd
def h264_cut_at_an_open_gop(folder: Path) -> tuple[Path, str]:
    whole = made(folder / "w.ts", *source(), *OPEN_GOP)
    return copied(folder / "a.mkv", whole, before=("-ss", "1.1")), "24"


@odd
def hevc_cut_at_an_open_gop(folder: Path) -> tuple[Path, str]:
    whole = made(folder / "w.ts", *source("30000/1001"), *HEVC)
    return copied(folder / "a.mp4", whole, before=("-ss", "1.1")), "30000/1001"


@odd
def a_recording_twice(folder: Path) -> tuple[Path, str]:
    whole = _h264_ts(folder)
    return joined(folder / "a.ts", whole, whole), "24"


@odd
def two_recordings_from_between_key_frames(folder: Path) -> tuple[Path, str]:
    part = without_the_first(folder / "part.ts", _h264_ts(folder))
    return joined(folder / "a.ts", part, part), "24"


def _segments(folder: Path) -> list[Path]:
    hls = ("-f", "hls", "-hls_time", "1", "-hls_list_size", "0", "-hls_segment_filename", str(folder / "seg%d.ts"))
    clips.ffmpeg(*source(), *SOUND, *H264, "-c:a", "aac", *hls, str(folder / "list.m3u8"))
    return [folder / f"seg{number}.ts" for number in range(4)]


@odd
def one_hls_segment(folder: Path) -> tuple[Path, str]:
    return _segments(folder)[2], "24"


@odd
def hls_segments_with_one_missing(folder: Path) -> tuple[Path, str]:
    first, second, _, last = _segments(folder)
    return joined(folder / "a.ts", first, second, last), "24"


@odd
def times_before_zero_in_mp4(folder: Path) -> tuple[Path, str]:
    shifted = ("-output_ts_offset", "-0.5", "-avoid_negative_ts", "disabled")
    return made(folder / "a.mp4", *source(), *H264, *shifted), "24"


def times_before_zero(suffix: str, offset: str, *codec: str) -> Odd:
    def make(folder: Path) -> tuple[Path, str]:
        shifted = ("-output_ts_offset", offset, "-avoid_negative_ts", "disabled")
        return made(folder / f"a{suffix}", *source(), *codec, *shifted), "24"

    return make


for _suffix, _offset, _codec in (
    (".mkv", "-0.5", H264),
    (".mkv", "-5", (*H264, "-bf", "3")),
    (".mkv", "-0.02", ("-c:v", "ffv1")),
    (".mkv", "-0.3", ("-c:v", "ffv1")),
    (".webm", "-0.123", ("-c:v", "libvpx")),
):
    ODD[f"times before zero in {_suffix} by {_offset}"] = times_before_zero(_suffix, _offset, *_codec)


@odd
def an_edit_list(folder: Path) -> tuple[Path, str]:
    whole = made(folder / "w.mp4", *source(), *H264)
    return copied(folder / "a.mp4", whole, before=("-ss", "1.3")), "24"


@odd
def mpeg_ps(folder: Path) -> tuple[Path, str]:
    return made(folder / "a.mpg", *source("24000/1001"), *MPEG2), "24000/1001"


@odd
def a_vob(folder: Path) -> tuple[Path, str]:
    return made(folder / "a.vob", *source("30000/1001"), *SOUND, *MPEG2, "-c:a", "mp2", "-f", "vob"), "30000/1001"


@odd
def mpeg1(folder: Path) -> tuple[Path, str]:
    return made(folder / "a.mpg", *source("25"), "-c:v", "mpeg1video", "-bf", "2"), "25"


def remuxed(suffix: str, rate: str) -> Odd:
    def make(folder: Path) -> tuple[Path, str]:
        whole = made(folder / "w.mkv", *source(rate), *H264)
        return copied(folder / f"a{suffix}", whole), rate

    return make


for _suffix, _rate in ((".mp4", "60"), (".mov", "30000/1001"), (".ts", "60000/1001"), (".flv", "24000/1001")):
    ODD[f"milliseconds in {_suffix} at {_rate}"] = remuxed(_suffix, _rate)


@odd
def milliseconds_of_flv_in_mp4(folder: Path) -> tuple[Path, str]:
    return copied(folder / "a.mp4", made(folder / "w.flv", *source("60"), *H264)), "60"


@odd
def mp3_in_avi(folder: Path) -> tuple[Path, str]:
    return made(folder / "a.avi", *source("8", 1), *SOUND, "-c:v", "mpeg4", "-c:a", "libmp3lame", "-t", "1"), "8"


@odd
def animated_png(folder: Path) -> tuple[Path, str]:
    return made(folder / "a.apng", *source(), "-f", "apng"), "24"


def rounded_period_in_avi(period_us: int, rate: str) -> Odd:
    def make(folder: Path) -> tuple[Path, str]:
        whole = made(folder / "w.avi", *source(rate), "-c:v", "mpeg4")
        scale, per_s = (
            struct.pack("<II", *Fraction(rate).as_integer_ratio()[::-1]),
            struct.pack("<II", period_us, 10**6),
        )
        (folder / "a.avi").write_bytes(whole.read_bytes().replace(scale, per_s, 1))
        return folder / "a.avi", rate

    return make


for _period_us, _rate in ((41667, "24"), (33366, "30000/1001"), (41708, "24000/1001")):
    ODD[f"a period of {_period_us} us in avi"] = rounded_period_in_avi(_period_us, _rate)


@odd
def h264_in_avi(folder: Path) -> tuple[Path, str]:
    return made(folder / "a.avi", *source("25"), *H264, "-bf", "2"), "25"


def with_a_gap(suffix: str) -> Odd:
    def make(folder: Path) -> tuple[Path, str]:
        left_out = ("-vf", "select=not(between(n\\,40\\,59))", *VFR)
        return made(folder / f"a{suffix}", *source(), *left_out, *H264), "24"

    return make


for _suffix in (".mp4", ".mkv", ".ts", ".avi"):
    ODD[f"a gap in {_suffix}"] = with_a_gap(_suffix)


@odd
def two_speeds(folder: Path) -> tuple[Path, None]:
    bent = ("-vf", "setpts='if(lt(N,60),N,60+3*(N-60))/24/TB'", *VFR)
    return made(folder / "a.mp4", *source(), *bent, *H264), None


@odd
def a_screen_that_seldom_changes(folder: Path) -> tuple[Path, None]:
    kept = ("-vf", "select='eq(mod(n,7),0)+eq(mod(n,11),0)+eq(mod(n,13),0)'", *VFR)
    return made(folder / "a.mkv", *source("30"), *kept, *H264), None


# What no encoder of ffmpeg's makes


class Bits:
    """Bits as H.264 and MPEG-4 write them (ITU-T H.264, 7.2 and 9.1)."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, width: int, value: int) -> Bits:
        self.text += f"{value:0{width}b}"
        return self

    def ue(self, *values: int) -> Bits:
        for value in values:
            digits = f"{value + 1:b}"
            self.text += "0" * (len(digits) - 1) + digits
        return self

    def bytes(self, end: str = "", fill: str = "0") -> bytes:
        """Returns the bytes, after `end` and as many bits `fill` as there is room for in the last."""
        text = self.text + end
        text += fill * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def _nal(kind: int, payload: bytes) -> bytes:
    out = bytearray()
    for byte in payload:
        if out[-2:] == b"\0\0" and byte <= 3:
            out.append(3)
        out.append(byte)
    return b"\0\0\0\1" + bytes([0x20 | kind]) + bytes(out)


def _field_pictures(count: int) -> Iterator[bytes]:
    """Yields an H.264 stream of 32x32 pixels at 25 frames per second, each of two fields that are pictures of their own."""
    sps = Bits().u(8, 77).u(8, 0).u(8, 30).ue(0, 4, 2, 1).u(1, 0).ue(1, 0)  # Main; 8 bits of frame_num; 2x1 macroblocks
    sps.u(1, 0).u(1, 0).u(1, 1).u(1, 0).u(1, 1)  # fields, no MBAFF, VUI
    sps.u(4, 0).u(1, 1).u(32, 1).u(32, 50).u(1, 1).u(4, 0)  # 50 fields a second
    yield _nal(7, sps.bytes("1"))
    yield _nal(8, Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(1, 1).u(2, 0).bytes("1"))
    for number in range(count):
        for bottom in (0, 1):
            begins = number == 0 and not bottom
            head = Bits().ue(0, 7, 0).u(8, number % 256).u(1, 1).u(1, bottom)
            if begins:
                head.ue(0).u(2, 0)
            else:
                head.u(1, 0)
            head.ue(0, 1)  # no change of the quantiser, no deblocking
            body = b""
            for _ in range(2):
                body += head.ue(25).bytes()  # the samples as they are (I_PCM)
                body += bytes([16 + 3 * number % 200]) * 256 + b"\x80" * 128
                head = Bits()
            yield _nal(5 if begins else 1, body + b"\x80")


def h264_fields(path: Path, count: int = 60) -> Path:
    path.write_bytes(b"".join(_field_pictures(count)))
    return path


def paff(suffix: str) -> Odd:
    def make(folder: Path) -> tuple[Path, str]:
        raw = h264_fields(folder / "w.h264")
        return (raw if suffix == ".h264" else copied(folder / f"a{suffix}", raw)), "25"

    return make


for _suffix in (".h264", ".ts", ".mp4", ".mkv"):
    ODD[f"fields in {_suffix}"] = paff(_suffix)


def write_avi(path: Path, packets: list[bytes], *, codec: bytes, rate: int, side: int = 64) -> Path:
    """Writes an AVI whose slots hold `packets`; an empty one is an empty slot."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def listed(name: bytes, *parts: bytes) -> bytes:
        return chunk(b"LIST", name + b"".join(parts))

    count = len(packets)
    avih = struct.pack("<14I", 1_000_000 // rate, 0, 0, 0x10, count, 0, 1, 1 << 20, side, side, 0, 0, 0, 0)
    strh = b"vids" + codec + struct.pack("<10I4H", 0, 0, 0, 1, rate, 0, count, 1 << 20, 0, 0, 0, 0, side, side)
    strf = struct.pack("<IiiHH", 40, side, side, 1, 24) + codec + struct.pack("<5I", side * side * 3, 0, 0, 0, 0)
    index, at = b"", 4
    for packet in packets:
        index += b"00dc" + struct.pack("<III", 0x10 if at == 4 else 0, at, len(packet))
        at += 8 + len(packet) + len(packet) % 2
    movi = listed(b"movi", *(chunk(b"00dc", packet) for packet in packets))
    head = listed(b"hdrl", chunk(b"avih", avih), listed(b"strl", chunk(b"strh", strh), chunk(b"strf", strf)))
    path.write_bytes(chunk(b"RIFF", b"AVI " + head + movi + chunk(b"idx1", index)))
    return path


@odd
def empty_slots_in_avi(folder: Path) -> tuple[Path, str]:
    stream = clips.ffmpeg(*source("25"), "-c:v", "mjpeg", "-f", "mjpeg", "-")
    pictures = [b"\xff\xd8" + part for part in stream.split(b"\xff\xd8")[1:]]
    slots = [b"" if number in (30, 31, 60, 77) else picture for number, picture in enumerate(pictures)]
    return write_avi(folder / "a.avi", slots, codec=b"MJPG", rate=25), "25"


@odd
def packed_frames_in_avi(folder: Path) -> tuple[Path, str]:
    """MPEG-4 as DivX 5 packed it: a P and the B before it in one packet, then one that says that nothing is coded."""
    stream = clips.ffmpeg(*source(), "-c:v", "mpeg4", "-bf", "1", "-g", "24", "-f", "m4v", "-")
    mark = b"\0\0\1\xb6"
    head, *pictures = stream.split(mark)
    packets: list[bytes] = []
    header = head + b"\0\0\1\xb2DivX503b1393p"
    for picture in pictures:
        # Headers of the next group stand at a picture's end.
        if picture[0] >> 6 == 2 and packets:
            packets[-1] += mark + picture
            nothing = Bits().u(2, 1).u(1, 0).u(1, 1).u(5, 0).u(1, 1).u(1, 0)
            packets.append(mark + nothing.bytes("0", "1"))
        else:
            packets.append((header if not packets else b"") + mark + picture)
    return write_avi(folder / "a.avi", packets, codec=b"DX50", rate=24), "24"


def make_all(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """Returns every video by its name, each in a folder of its own, and its rate."""
    found = {}
    for name, make in ODD.items():
        place = folder / name.replace(" ", "-").replace("/", "_")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        found[name] = make(place)
    return found
