"""Damaged videos into the reader that `upscale` uses: only InputError, in time, within a bound of memory.

    python tests/fuzz/videos.py --count 10000 --seed 1 --processes 2

Every case is a whole video with a few things wrong, and is decided by `seed` and its number alone: --first N --count 1
makes case N again, and --keep FOLDER keeps the files of those that failed. Prints a summary; exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import clips  # noqa: E402
from faults import children  # noqa: E402

from t2vcli.errors import InputError  # noqa: E402
from t2vcli.request import MAX_FRAMES  # noqa: E402
from t2vcli.video.reader import probe, read_frames, read_metadata  # noqa: E402
from t2vcli.video.writer import write_video  # noqa: E402

LIMIT_S = 30.0
LIMIT_MIB = 1024
"""Of this process and of the largest ffmpeg, each. A picture of the most pixels allowed is 103 MiB in RGB."""

MAX_READ = 300_000_000  # pixels; more are not decoded here, as it would only take time

CONTAINERS = {
    b"moov",
    b"trak",
    b"mdia",
    b"minf",
    b"dinf",
    b"stbl",
    b"udta",
    b"edts",
    b"ilst",
    b"moof",
    b"traf",
    b"mvex",
}
SKIPPED = {b"meta": 4, b"stsd": 8, b"dref": 8, b"avc1": 78, b"mp4a": 28}  # bytes before the boxes inside
WORDS = [0, 1, 2, 7, 8, 0x7F, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
HOSTILE_JSON = [
    '{"a":1e999}',
    '{"request":{"prompt":7}}',
    '{"request":[]}',
    '{"a":NaN}',
    "[" * 3000,
    '{"a":' * 900 + "1" + "}" * 900,
    '{"a":' + "9" * 5000 + "}",
    '{"request":{"prompt":"\\ud800[/]\\u001b]0;x\\u0007"}}',
    '{"a":"\x1b[31m"}',
    "null",
]


@dataclass(frozen=True)
class Box:
    kind: bytes
    start: int
    header: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yields every box of an mp4 (ISO/IEC 14496-12, 4.2), those inside others after them."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        if size < header or start + size > end:
            return
        yield Box(kind, start, header, start + size)
        if kind in CONTAINERS or kind in SKIPPED:
            yield from boxes(data, start + header + SKIPPED.get(kind, 0), start + size)
        start += size


def whole_videos(folder: Path) -> list[bytes]:
    """Returns the videos that are damaged here, each of another make."""
    recipe = {"format": 1, "request": {"prompt": "a red boat", "seed": 1}, "padding": "x" * 8000}
    rate = Fraction(24000, 1001)
    write_video(
        folder / "own.mp4",
        clips.noise(4, side=32),
        count=4,
        width=32,
        height=32,
        fps=rate,
        metadata=recipe,
        comment="c",
    )
    clips.make_clip(folder / "late.mp4", clips.ramp(12), "-preset", "medium", "-bf", "3")
    clips.make_clip(folder / "pieces.mp4", clips.ramp(6), "-movflags", "+frag_keyframe+empty_moov", "-g", "2")
    clips.make_clip(folder / "mjpeg.mov", clips.noise(3, side=32), "-c:v", "mjpeg", pixel_format="yuvj420p")
    sound = ["-f", "lavfi", "-i", "sine=d=0.3", "-i", f"file:{folder / 'own.mp4'}", "-c", "copy", "-c:a", "aac"]
    turned = ["-map", "1:v", "-map", "0:a", "-bsf:v", "h264_metadata=sample_aspect_ratio=4/3"]
    clips.ffmpeg(*sound, *turned, str(folder / "sound.mp4"))
    clips.make_clip(folder / "anim.gif", clips.ramp(3), "-c:v", "gif", pixel_format="rgb8")
    clips.make_clip(folder / "web.mkv", clips.ramp(5))
    names = ["own.mp4", "own.mp4", "own.mp4", "late.mp4", "pieces.mp4", "mjpeg.mov", "sound.mp4", "anim.gif", "web.mkv"]
    return [(folder / name).read_bytes() for name in names]


def flip_bits(data: bytearray, chance: random.Random) -> None:
    index = data.find(b"mdat") if chance.random() < 0.7 else len(data)
    for _ in range(chance.choice([1, 1, 2, 8, 40])):
        data[chance.randrange(max(1, index if index > 0 else len(data)))] ^= 1 << chance.randrange(8)


def cut_at_an_edge(data: bytearray, chance: random.Random) -> None:
    edges = [edge for box in boxes(bytes(data)) for edge in (box.start, box.start + box.header, box.end)]
    at = chance.choice(edges or [len(data) // 2]) + chance.choice([-1, 0, 0, 1, 4])
    del data[max(1, at) :]


def spoil_a_size(data: bytearray, chance: random.Random) -> None:
    found = list(boxes(bytes(data)))
    if found:
        box = chance.choice(found)
        size = chance.choice([*WORDS, box.end - box.start - 1, box.end - box.start + 1, len(data)])
        data[box.start : box.start + 4] = (size & 0xFFFFFFFF).to_bytes(4, "big")


def spoil_a_number(data: bytearray, chance: random.Random) -> None:
    """Absurd dimensions, rates, counts, durations and offsets: any word of any header or table."""
    found = [box for box in boxes(bytes(data)) if box.kind not in (b"mdat", b"udta", b"moov", b"trak")]
    for _ in range(chance.choice([1, 1, 1, 3, 10])):
        if found:
            box = chance.choice(found)
            room = box.end - box.start - box.header
            if room >= 4:
                at = box.start + box.header + chance.randrange(room - 3)
                width = chance.choice([2, 4, 4])
                data[at : at + width] = (chance.choice(WORDS) & (256**width - 1)).to_bytes(width, "big")


def move_boxes(data: bytearray, chance: random.Random) -> None:
    """One box twice, or not at all, or under another name."""
    found = list(boxes(bytes(data)))
    if found:
        box, other = chance.choice(found), chance.choice(found)
        piece = bytes(data[box.start : box.end])
        if chance.random() < 0.4:
            data[other.end : other.end] = piece
        elif chance.random() < 0.5:
            del data[box.start : box.end]
        else:
            data[box.start + 4 : box.start + 8] = other.kind


def swap_metadata(data: bytearray, chance: random.Random) -> None:
    at = data.find(b'{"format"')
    if at >= 0:
        text = chance.choice(HOSTILE_JSON).encode()
        data[at : at + len(text)] = text
        end = data.find(b'"}', at + len(text))
        if end >= 0 and chance.random() < 0.8:  # spaces up to the old end leave it whole
            data[at + len(text) : end + 2] = b" " * (end + 2 - at - len(text))


def spoil_the_picture_size(data: bytearray, chance: random.Random) -> None:
    """In a GIF's header, or the frame header of a JPEG (ITU-T T.81, B.2.2); elsewhere in what the index says of it."""
    side = chance.choice([0, 1, 15, 4097, 6000, 8192, 16384, 16385, 65535])
    other = chance.choice([0, 1, 16, side, side])
    jpeg = data.find(b"\xff\xc0\x00\x11")
    if data[:3] == b"GIF":
        data[6:10] = side.to_bytes(2, "little") + other.to_bytes(2, "little")
    elif jpeg >= 0:
        data[jpeg + 5 : jpeg + 9] = side.to_bytes(2, "big") + other.to_bytes(2, "big")
    else:
        for kind, offset in ((b"avc1", 28), (b"tkhd", 80)):
            at = data.find(kind)
            if at >= 0:
                data[at + offset : at + offset + 4] = side.to_bytes(2, "big") + other.to_bytes(2, "big")


def spoil_anything(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    length = chance.choice([1, 4, 64, 500])
    data[at : at + length] = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length), b""])


DAMAGES = [
    flip_bits,
    cut_at_an_edge,
    spoil_a_size,
    spoil_a_number,
    spoil_a_number,
    move_boxes,
    spoil_the_picture_size,
    swap_metadata,
    spoil_anything,
]


def damaged(whole: list[bytes], seed: int, number: int) -> bytes:
    """Returns case `number`: one of the `whole` videos with one to three kinds of damage."""
    chance = random.Random(f"{seed}/{number}")
    data = bytearray(chance.choice(whole))
    for _ in range(chance.choice([1, 1, 2, 3])):
        chance.choice(DAMAGES)(data, chance)
        if not data:
            break
    return bytes(data)


def read_as_upscale_does(path: Path) -> str:
    """Returns what came of it, in a word. Anything but InputError gets through, as does a broken promise."""
    said = ""
    try:
        info = probe(path)
        recipe = read_metadata(path)
        json.dumps(recipe, allow_nan=False)
        if info.frames > MAX_FRAMES or info.frames * info.width * info.height > MAX_READ:
            return "large"
        count = 0
        for frame in read_frames(path, info):
            assert frame.shape == (info.height, info.width, 3)
            count += 1
        assert count == info.frames
        assert info.fps > 0
    except InputError as error:
        said = str(error)
    assert said.isprintable(), said
    assert len(said) < 2000
    return "refused" if said else "read"


def run(seed: int, first: int, count: int, keep: str) -> tuple[dict[str, int], list[str], float, list[int]]:
    """Returns how many came to what, what failed, the longest time, and the most memory in MiB (ours, an ffmpeg's)."""
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    longest_s = 0.0
    cap_mib = most_allowed_mib()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = whole_videos(folder)
        path = folder / "case.mp4"
        for number in range(first, first + count):
            data = damaged(whole, seed, number)
            path.write_bytes(data)
            begun_s = time.monotonic()
            problem = ""
            try:
                outcomes[read_as_upscale_does(path)] += 1
            except Exception as error:  # whatever it is, is what is looked for here
                problem = f"{type(error).__name__}: {error}"
            taken_s = time.monotonic() - begun_s
            longest_s = max(longest_s, taken_s)
            if taken_s > LIMIT_S:
                problem = problem or f"took {taken_s:.0f} s"
            if children():
                problem = problem or "left a process"
            most = max(memory_mib())
            if most > cap_mib and not any("MiB" in failure for failure in failures):
                problem = problem or f"took {most} MiB"
            if problem:
                failures.append(f"case {number} of seed {seed}: {problem}")
                if keep:
                    (Path(keep) / f"{seed}-{number}.mp4").write_bytes(data)
    return dict(outcomes), failures, longest_s, memory_mib()


def memory_mib() -> list[int]:
    return [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def most_allowed_mib() -> int:
    """Returns the cap from here on: these are high-water marks, and other work of this process may have set them."""
    return max(LIMIT_MIB, max(memory_mib()) + 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", default="", help="the folder for the files of those that failed")
    args = parser.parse_args()
    begun_s = time.monotonic()
    share = max(1, min(250, args.count // args.processes or 1))
    parts = [
        (first, min(share, args.first + args.count - first))
        for first in range(args.first, args.first + args.count, share)
    ]
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    longest_s, most = 0.0, [0, 0]
    with concurrent.futures.ProcessPoolExecutor(args.processes) as pool:
        for part in [pool.submit(run, args.seed, first, count, args.keep) for first, count in parts]:
            some, failed, its_longest_s, its_most = part.result()
            outcomes.update(some)
            failures += failed
            longest_s, most = max(longest_s, its_longest_s), [max(pair) for pair in zip(most, its_most, strict=True)]
            for line in failed:
                print(line, flush=True)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(
        f"seed {args.seed}, cases {args.first} to {args.first + args.count - 1}: {counts}, {len(failures)} failed;"
        f" the longest took {longest_s:.1f} s, the most memory {most[0]} MiB here and {most[1]} MiB in an ffmpeg;"
        f" {time.monotonic() - begun_s:.0f} s in all"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
