"""What strangers may give: damaged videos, hostile metadata, presets, weights, prompts, names and arguments.

A bounded run; `make fuzz` is the long one. What was ever found stays in fuzz/crashers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import clips
import pytest
from commandline import Outcome, t2v
from fuzz import videos
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t2vcli.errors import EXIT_CODES, InputError, ModelError, T2VError
from t2vcli.presets import Preset, load_preset
from t2vcli.video import reader
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import check_output, write_video
from t2vcli.weights.weightfiles import check_whole

CRASHERS = sorted((Path(__file__).parent / "fuzz" / "crashers").iterdir())
LIMIT_S = 30
LIMIT_GROWTH_MIB = 512

EXAMPLES = int(os.environ.get("T2V_FUZZ_EXAMPLES", "0"))
"""How many examples each test below tries; in the suite fewer, and always the same ones."""


def bounded(examples: int) -> settings:
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES or examples, deadline=None, derandomize=not EXAMPLES, suppress_health_check=shared
    )


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Fails what computes for longer than LIMIT_S, or makes this process grow by more than LIMIT_GROWTH_MIB.

    The processor's time is counted, for on a busy machine the clock says nothing; what waits for ever is ended, too.
    """

    def hung(number: int, frame: object) -> None:
        raise AssertionError(f"took more than {LIMIT_S} s")

    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    previous = {number: signal.signal(number, hung) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(10 * LIMIT_S)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before_mib < LIMIT_GROWTH_MIB


# Videos


def test_damaged_videos_are_refused_or_read() -> None:
    """In this process, and so from a seed; ten thousand of them: `make fuzz`."""
    outcomes, failures, longest_s, _ = videos.run(seed=0, first=0, count=40, keep="")
    assert failures == []
    assert longest_s < LIMIT_S
    assert outcomes["read"] > 5  # some damage is none
    assert outcomes["refused"] > 5


@pytest.mark.parametrize("crasher", [path for path in CRASHERS if path.suffix != ".yaml"], ids=lambda path: path.name)
def test_a_video_that_once_did_harm(crasher: Path) -> None:
    cap_mib = videos.most_allowed_mib()
    with limits():
        assert videos.read_as_upscale_does(crasher) in ("read", "refused", "large")
    assert max(videos.memory_mib()) <= cap_mib
    for arguments in (["info"], ["info", "--json"]):
        assert_documented(t2v(*arguments, crasher))


NAMES = [
    "-x.mp4",
    "12:30.mp4",
    "concat:a.mp4|b.mp4",
    "http:x.mp4",
    "file:in.mp4",
    "pipe:0.mp4",
    "pipe:0",
    "subfile,,start,0,end,9,,:in.mp4",
    "-i.mp4",
    "%03d.mp4",
    "a\nfile:b.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_ffmpeg_as_a_file_and_as_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    spy = f"""printf '%s\\0' "$@" >>'{log}'; exec "$REAL" "$@" """
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, spy))
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    with pytest.raises(InputError, match="does not exist"):
        probe(name)
    assert not log.exists()
    source = clips.make_clip(tmp_path / "in.mp4", clips.ramp(2)).read_bytes()
    Path(name).write_bytes(source)
    info = probe(name)
    assert len(list(read_frames(name, info))) == info.frames == 2
    assert read_metadata(name) is None
    given_to_ffmpeg = log.read_text().split("\0")
    assert [argument for argument in given_to_ffmpeg if name in argument] == (
        [f"file:{name}"] * given_to_ffmpeg.count(f"file:{name}")
    )
    assert given_to_ffmpeg.count(f"file:{name}") == 4  # of every run of ffmpeg
    if name.endswith(".mp4"):
        log.unlink()
        check_output(Path(name), overwrite=True)
        rate = Fraction(8)
        frames = clips.ramp(1)
        write_video(
            Path(name), frames, count=1, width=64, height=64, fps=rate, metadata=None, comment=name, overwrite=True
        )
        assert name not in log.read_text().split("\0")


def test_no_file_makes_ffmpeg_open_another_or_call_anyone(tmp_path: Path) -> None:
    """Playlists and the like, under the names of videos: neither what they name nor whom is asked for."""
    other = clips.make_clip(tmp_path / "other.mp4", clips.ramp(2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for number, text in enumerate(
            text
            for target in (other.name, address, f"file:{other}", f"concat:{other}")
            for text in (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
                f"ffconcat version 1.0\nfile '{target}'\n",
                f'<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{target}</BaseURL>'
                "</Representation></AdaptationSet></Period></MPD>",
                f"[playlist]\nFile1={target}\n",
                f"v=0\nc=IN IP4 127.0.0.1\nm=video {server.getsockname()[1]} RTP/AVP 96\na={target}\n",
            )
        ):
            for suffix in ("mp4", "m3u8"):
                path = tmp_path / f"{number}.{suffix}"
                path.write_text(text)
                with pytest.raises(InputError):
                    probe(path)
        with pytest.raises(BlockingIOError):
            server.accept()


# Metadata


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from([10**4000, -(2**64), 1e308, "\ud800", "[/red]\x1b[31m", "x" * 5000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=5), st.sampled_from(["request", "prompt", "seed", "negative_prompt"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
TEXTS = st.one_of(
    JSON.map(json.dumps),
    JSON.map(lambda value: json.dumps({"request": value})),
    JSON.map(lambda value: json.dumps({"request": {"prompt": value, "negative_prompt": value}})),
    st.tuples(JSON.map(json.dumps), st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]]),
    st.tuples(st.sampled_from(['{"a":', "[", '{"a":[', '{"request":{"prompt":']), st.integers(1, 2000)).map(
        lambda pair: (
            pair[0] * pair[1]
            + "1"
            + "".join("}" if c == "{" else "]" for c in reversed(pair[0] * pair[1]) if c in "{[")
        )
    ),
    st.integers(1, 6000).map(lambda digits: '{"a":' + "9" * digits + "}"),
    st.integers(1, 400).map(lambda digits: '{"a":1e' + "9" * digits + "}"),
    st.text(max_size=50),
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.make_clip(tmp_path_factory.mktemp("clip") / "in.mp4", clips.ramp(1))


@functools.cache
def _probe_once(clip: Path) -> reader.VideoInfo:
    return probe(clip)


@pytest.mark.parametrize("depth", [reader.MAX_METADATA_DEPTH, reader.MAX_METADATA_DEPTH + 1])
def test_metadata_may_be_nested_so_deep_and_no_deeper(depth: int, clip: Path) -> None:
    """Far from what json can take: it has to fit into an upscale's recipe, and be written and verified with that."""
    text = '{"a":' * depth + "1" + "}" * depth
    video = replace(_probe_once(clip), tags={"t2v": text})
    if depth > reader.MAX_METADATA_DEPTH:
        with pytest.raises(InputError, match="nested more than 200 deep"):
            read_metadata(clip, video)
    else:
        assert read_metadata(clip, video) == json.loads(text)


@bounded(20)
@given(text=TEXTS)
@example(text='{"a":1e999}')
@example(text='{"a":' * 990 + "1" + "}" * 990)
@example(text='{"a":' * 300 + "1" + "}" * 300)
@example(text='{"a":' + "9" * 4300 + "}")
def test_any_metadata_is_shown_or_refused(text: str, clip: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, limits():
        patch.setattr(reader, "probe", lambda path: replace(_probe_once(path), tags={"t2v": text}))
        plain, as_json = t2v("info", clip), t2v("info", clip, "--json")
        for outcome in (plain, as_json):
            assert_documented(outcome)
            assert outcome.code in (0, 4)
        if as_json.code == 0:
            json.loads(as_json.stdout, parse_constant=pytest.fail)
            json.dumps(read_metadata(clip), allow_nan=False)


# Presets


NUMBERS = [
    "0x" + "f" * 9000,
    "9" * 5000,
    "1e999",
    ".inf",
    "-.inf",
    ".nan",
    "1:" * 3000 + "1",
    "0b" + "1" * 9000,
    "-0",
    "1_0",
]
HOSTILE = [
    *NUMBERS,
    "&a [*a, *a]",
    "!!python/object/apply:os.system [id]",
    "!!binary AAAA",
    "!!set {a, b}",
    "!x y",
    "2024-99-99",
    "0001-01-01T00:00:00Z",
    "<<",
    "? x",
    "|\n  x",
    '"\\x1b[31m[/red]\\ud800"',
    "[" * 500,
    "{" * 500,
    "- " * 500,
    "{a: " * 400,
    "x" * 30_000,
]
KEYS = [
    "steps",
    "frames",
    "fps",
    "width",
    "seed",
    "model",
    "extends",
    "trained",
    "notes",
    "description",
    "download_bytes",
    "<<",
    "?",
    "task",
]
LINES = st.tuples(
    st.one_of(st.sampled_from(KEYS), st.text(max_size=6)),
    st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12), st.integers().map(str), st.floats().map(str)),
).map(": ".join)
BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c, *%c]\n" % (c + 1, c + 1, c, c, c) for c in range(97, 121))


@bounded(15)
@given(
    content=st.one_of(
        st.lists(LINES, max_size=5).map(lambda lines: "\n".join(["extends: demo", *lines]).encode("utf-8", "replace")),
        st.binary(max_size=200),
        st.sampled_from(
            [BOMB, b"%YAML 9.9\n---\na: 1", b"- " * 100_000, b"[" * 200_000, b"a: " * 80_000, b"\xff\xfea"]
        ),
        st.sampled_from(
            [b"#" * 300_000, b"? " * 50_000, b"{" * 100_000, b"a: 1\n" * 50_000, b"'" * 99_999, b"&a " * 9000]
        ),
    )
)
@example(content=b"extends: demo\nsteps: 0x" + b"f" * 6000)
def test_any_preset_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    answer: Preset | str
    with limits():
        try:
            answer = load_preset(str(path))
        except T2VError as error:
            answer = str(error)
    assert isinstance(answer, Preset) or 0 < len(answer) < 3000


@pytest.mark.parametrize("crasher", [path for path in CRASHERS if path.suffix == ".yaml"], ids=lambda path: path.name)
def test_a_preset_that_once_did_harm(crasher: Path) -> None:
    with limits():
        assert_documented(t2v("presets", "show", crasher), code=4)


# Weights


HEADER = st.one_of(
    JSON,
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        st.fixed_dictionaries(
            {"dtype": JSON, "shape": JSON, "data_offsets": st.one_of(JSON, st.lists(st.integers(), max_size=3))}
        ),
        max_size=3,
    ),
).map(lambda value: json.dumps(value).encode())


@bounded(75)
@given(
    header=st.one_of(HEADER, st.binary(max_size=64), st.integers(1, 3000).map(lambda depth: b'{"a":' * depth)),
    length=st.one_of(st.none(), st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)),
    rest=st.binary(max_size=16),
    cut=st.integers(0, 12),
)
def test_any_weights_are_whole_or_refused(
    header: bytes, length: int | None, rest: bytes, cut: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    data = struct.pack("<Q", len(header) if length is None else length) + header + rest
    path.write_bytes(data[: len(data) - cut] if cut > 6 else data)
    with limits(), contextlib.suppress(ModelError):
        check_whole(path)


# The command line


WORDS = [
    "generate",
    "upscale",
    "info",
    "sheet",
    "compare",
    "presets",
    "show",
    "convert",
    "resume",
    "decode",
    "models",
    "rm",
    "--help",
    "--help-all",
    "--version",
    "",
    "-",
    "--",
    "in.mp4",
    "no.mp4",
    "-x.mp4",
]
FLAGS = [
    "--frames",
    "--steps",
    "--seed",
    "--fps",
    "--width",
    "--strength",
    "--scale",
    "--preset",
    "--prompt-file",
    "-o",
    "--output",
]
FLAGS += [
    "--device",
    "--scheduler",
    "--eta",
    "--columns",
    "--duration",
    "--start",
    "--max-size",
    "--audio",
    "--progress",
    "--preview",
    "--preview-file",
    "--most",
    "--json",
    "--overwrite",
    "--quiet",
    "--prompt",
    "--offload",
]
VALUES = [
    "0",
    "-1",
    "1e999",
    "nan",
    "inf",
    "9" * 30,
    "9" * 5000,
    "8",
    "1/0",
    "1.5",
    "demo",
    "zeroscope-XL",
    "cpu",
    "a\0b",
    "\ud800.mp4",
]
VALUES += [
    "\u202eRTL \u0627\u0644",
    "[/red]",
    "\x1b[31m",
    "x" * 300 + ".png",
    "/",
    ".",
    "..",
    "out.mp4",
    "a/b.mp4",
    "a/b/",
    "a\0/b.mp4",
    "x" * 100_000,
]
ARGUMENTS = st.lists(
    st.one_of(st.sampled_from(WORDS), st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8)), max_size=7
)
RUNS = st.one_of(
    ARGUMENTS,
    st.tuples(
        st.sampled_from(
            [["generate", "a boat", "-p", "demo"], ["upscale", "in.mp4"], ["sheet", "in.mp4"], ["convert", "in.mp4"]]
        ),
        ARGUMENTS,
    ).map(lambda pair: pair[0] + pair[1]),
    st.tuples(st.sampled_from(["generate", "upscale", "convert"]), st.sampled_from(FLAGS), st.sampled_from(VALUES)).map(
        lambda run: [run[0], "in.mp4", f"{run[1]}={run[2]}"]
    ),
)


class _NoJobs(ModuleType):
    """In place of what would load a model: whatever is called there refuses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return refuse_to_load


def refuse_to_load(*_: object, **__: object) -> None:
    raise ModelError("far enough")


def assert_documented(outcome: Outcome, *, code: int | None = None) -> None:
    assert outcome.code in EXIT_CODES if code is None else outcome.code == code
    assert outcome.code != 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    for character in outcome.stdout + outcome.stderr:
        assert character.isprintable() or character == "\n", (character, outcome)


def run_cut_short(clip: Path, *arguments: str, stdin: bytes | None = None) -> Outcome:
    """Runs a command that gets no further than to where a model would be loaded, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.chdir(folder)
        patch.setattr(reader, "probe", lambda path: _probe_once(clip) if path == Path("in.mp4") else probe(path))
        for name in ("run", "exact"):
            patch.setitem(sys.modules, f"t2vcli.jobs.{name}", _NoJobs(name))
        for name in ("http_proxy", "https_proxy"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(socket.socket, "connect", refuse_to_load)
        Path("in.mp4").symlink_to(clip)
        with limits():
            return t2v(*arguments, stdin=stdin)


@bounded(40)
@given(arguments=RUNS)
@example(arguments=["sheet", "in.mp4", "-o", "x" * 300 + ".png"])
@example(arguments=["convert", "in.mp4", "-o", "a\0/b.mp4"])
@example(arguments=["convert", "in.mp4", "-o", "x.gif", "--max-size", "1B"])
@example(arguments=["convert", "in.mp4", "-o", "x.mp4", "--audio", "a\0.wav"])
@example(arguments=["generate", "a boat", "-p", "demo", "-o", "a\0/"])
@example(arguments=["resume", "a\0b"])
@example(arguments=["info", "x" * 5000])
@example(arguments=["models", "rm", "\ud800/\udc00"])
@example(arguments=["sheet", "in.mp4", "--most=1024", "--scale=16", "-o", "a\0.png"])
def test_any_arguments_end_as_documented(arguments: list[str], clip: Path) -> None:
    assert_documented(run_cut_short(clip, *arguments))


PROMPTS = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Co", "Cn", "Mn"]), max_size=50),
    st.sampled_from(
        [
            "\0",
            "\ud800",
            "\u202e\u0627\u0628",
            "x" * 1_000_000,
            "🙂" * 300_000,
            "[/] [bold",
            "\x1b]0;x\x07",
            "e\u0301" * 9999,
        ]
    ),
    st.sampled_from(["\ufeff", "-", "--", "a\r\nb", "a\nb", " ", "\x00\x01\x02", "%s%n{0}{x}$(id)`id`;'\"\\"]),
)


@bounded(20)
@given(prompt=PROMPTS, way=st.sampled_from(["argument", "stdin", "file", "inside a video"]))
@example(prompt="x" * 1_000_001, way="stdin")
@example(prompt="x" * 1_000_000, way="argument")
def test_any_prompt_is_taken_or_refused(prompt: str, way: str, clip: Path, tmp_path: Path) -> None:
    start = ["generate", "-p", "demo", "-qq"]
    content = prompt.encode("utf-8", "surrogatepass")
    if way == "argument":
        outcome = run_cut_short(clip, *start, "--", prompt)
    elif way == "stdin":
        outcome = run_cut_short(clip, *start, "-", stdin=content)
    elif way == "file":
        (tmp_path / "prompt.txt").write_bytes(content)
        outcome = run_cut_short(clip, *start, "--prompt-file", str(tmp_path / "prompt.txt"))
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                reader, "read_metadata", lambda path: {"request": {"prompt": prompt, "negative_prompt": prompt}}
            )
            outcome = run_cut_short(clip, "upscale", "in.mp4", "-p", "demo-XL")
    assert_documented(outcome)
    assert outcome.code in (2, 4, 5)
