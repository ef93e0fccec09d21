"""Where a model's files come from: the hub (one on the loopback), its cache, a folder; and which of them are used."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import first
from commandline import LIMIT_S, Outcome, environment, sentence, untimed
from hub import FOREVER, Hub, Status
from standins import write_standin

from t2vcli.errors import ModelError, UsageError
from t2vcli.video.reader import read_metadata
from t2vcli.weights.models import find_model, read_config
from t2vcli.weights.weightfiles import check_whole, find_weights

SHARED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
}

FETCH = """
import json, sys, time
time.sleep = lambda seconds: None
from t2vcli.errors import T2VError
from t2vcli.weights.models import find_model
if "offline" in sys.argv:
    import socket
    def refuse(*_): raise AssertionError("a connection was opened")
    socket.socket.connect = refuse
for request in json.load(sys.stdin):
    try:
        with open(sys.argv[1], "a") as told:
            files = find_model(**request, on_download=lambda done, total: print(done, total, file=told))
        print(json.dumps({"revision": files.revision, "weights": {k: str(v) for k, (v,) in files.weights.items()}}))
    except T2VError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}))
if {"torch", "diffusers", "transformers"} & set(sys.modules):
    sys.exit("torch was imported")
"""


def fetch(
    cache: Path, *requests: dict[str, object], endpoint: str, offline: bool = False, **variables: str
) -> list[dict[str, object]]:
    """Returns what `find_model` answers to each request in a process of its own, for the client reads its settings once."""
    cache.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(cache / "told"), *(["offline"] if offline else [])],
        input=json.dumps([{"revision": None, "variant": None, **request} for request in requests]),
        env=environment(HF_HOME=str(cache), HF_ENDPOINT=endpoint, **variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories as the real ones are: with variants, a second format, and files that are for other programs."""
    folder = tmp_path_factory.mktemp("repositories")
    ms = write_standin(folder / "ms", "ms-1.7b", forms=["safetensors", "fp16.safetensors", "bin"])
    xl = write_standin(folder / "xl", "zeroscope-XL")
    for repository in (ms, xl):
        for name in ("README.md", "zs2_XL/text2video_pytorch_model.pth", "unet/notes.txt", ".gitattributes"):
            (repository / name).parent.mkdir(exist_ok=True)
            (repository / name).write_text("for others")
    return {"owner/ms": ms, "owner/xl": xl}


@pytest.fixture
def hub(repositories: dict[str, Path]) -> Iterator[Hub]:
    with Hub(repositories) as running:
        yield running


NOBODY = "http://127.0.0.1:9"


# The hub


@pytest.mark.parametrize(
    ("repository", "variant", "weights"),
    [
        (
            "owner/ms",
            "fp16",
            {
                "text_encoder/model.fp16.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            },
        ),
        pytest.param(
            "owner/ms",
            None,
            {
                "text_encoder/model.safetensors",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
            },
            marks=pytest.mark.slow,
        ),
        (
            "owner/xl",
            None,
            {
                "text_encoder/pytorch_model.bin",
                "unet/diffusion_pytorch_model.bin",
                "vae/diffusion_pytorch_model.bin",
            },
        ),
    ],
)
def test_only_what_is_used_is_downloaded_and_only_once(
    repository: str, variant: str | None, weights: set[str], hub: Hub, tmp_path: Path
) -> None:
    request: dict[str, object] = {"model": repository, "variant": variant}
    [found] = fetch(tmp_path, request, endpoint=hub.url)
    assert found["revision"] == hub.commit(repository)
    assert hub.downloaded() == SHARED | weights
    asked = len(hub.requests)

    # From now on the network is not needed, nor asked, not even for news of the branch.
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert fetch(tmp_path, request, endpoint=hub.url, offline=True, **variables) == [found]
    assert len(hub.requests) == asked


def test_another_variant_of_a_cached_model_is_fetched_alone(hub: Hub, tmp_path: Path) -> None:
    fetch(tmp_path, {"model": "owner/ms", "variant": "fp16"}, endpoint=hub.url)
    hub.asked.clear()
    fetch(tmp_path, {"model": "owner/ms"}, endpoint=hub.url)
    assert hub.downloaded() == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_a_download_that_broke_off_is_completed(hub: Hub, tmp_path: Path) -> None:
    hub.fail("vae/config.json", Status(410), FOREVER)
    [refused] = fetch(tmp_path, {"model": "owner/xl"}, endpoint=hub.url)
    assert refused["code"] == 5
    assert "owner/xl" in str(refused["error"])
    hub.heal()
    [found] = fetch(tmp_path, {"model": "owner/xl"}, endpoint=hub.url)
    assert found["revision"] == hub.commit("owner/xl")
    assert fetch(tmp_path, {"model": "owner/xl"}, endpoint=NOBODY, offline=True) == [found]


@pytest.mark.parametrize("missing", first(1, ["tokenizer/special_tokens_map.json", "scheduler/scheduler_config.json"]))
def test_a_cache_that_lacks_one_small_file_is_completed(missing: str, hub: Hub, tmp_path: Path) -> None:
    """Each of them decides the picture: that all the weights are there is not enough."""
    [found] = fetch(tmp_path, {"model": "owner/xl"}, endpoint=hub.url)
    [cached] = tmp_path.rglob(f"snapshots/*/{missing}")
    cached.unlink()
    [refused] = fetch(tmp_path, {"model": "owner/xl"}, endpoint=NOBODY)
    assert refused["code"] == 5
    hub.asked.clear()
    assert fetch(tmp_path, {"model": "owner/xl"}, endpoint=hub.url) == [found]
    assert cached.is_file()


@pytest.mark.slow
def test_a_tag_and_a_commit_are_revisions(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit("owner/xl")
    for revision in ("v1", commit, "main"):
        [found] = fetch(tmp_path / revision, {"model": "owner/xl", "revision": revision}, endpoint=hub.url)
        assert found["revision"] == commit


def test_what_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/gated"] = hub.repositories["owner/xl"]
    hub.repositories["owner/broken"] = hub.repositories["owner/xl"]
    hub.fail("/api/models/owner/gated", Status(401), FOREVER)
    hub.fail("/api/models/owner/broken", Status(500), FOREVER)
    answers = fetch(
        tmp_path,
        {"model": "owner/nothing"},
        {"model": "owner/xl", "revision": "v2"},
        {"model": "owner/gated"},
        {"model": "owner/broken"},
        {"model": "owner/xl", "variant": "fp16"},
        endpoint=hub.url,
    )
    assert [answer["code"] for answer in answers] == [5] * 5
    nothing, revision, gated, broken, variant = (str(answer["error"]) for answer in answers)
    assert "no repository owner/nothing" in nothing
    assert "owner/xl has no revision v2" in revision
    assert "owner/gated needs a token" in gated
    assert "HF_TOKEN" in gated
    assert "owner/broken" in broken
    assert "500" in broken
    assert "variant 'fp16'; leave --variant out" in variant
    assert hub.downloaded() == set()
    assert all("\n" not in str(answer["error"]) for answer in answers)


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "offline"])
def test_without_a_network_and_a_cache_the_way_out_is_named(variables: dict[str, str], tmp_path: Path) -> None:
    request: dict[str, object] = {"model": "owner/name", "revision": "v1", "download_bytes": 3_672_400_000}
    [answer] = fetch(tmp_path, request, endpoint=NOBODY, **variables)
    assert answer["code"] == 5
    said = str(answer["error"])
    for words in ("owner/name at revision v1, 3.67 GB", "--model", 't2v generate "', "--preset demo"):
        assert words in said
    assert "\n" not in said


def test_a_download_tells_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    """In place of the client's own bars: `fetch` sees to it that nothing else is on stderr."""
    fetch(tmp_path, {"model": "owner/xl"}, endpoint=hub.url)
    told = [tuple(map(int, line.split())) for line in (tmp_path / "told").read_text().splitlines()]
    files = SHARED | {f"{p}/{n}_model.bin" for p, n in (("unet", "diffusion_pytorch"), ("vae", "diffusion_pytorch"))}
    size = sum((hub.repositories["owner/xl"] / n).stat().st_size for n in {*files, "text_encoder/pytorch_model.bin"})
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {size}
    assert told[-1] == (size, size)


def test_a_download_is_a_stage_like_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    from t2vcli.cli.progress import PlainReport
    from t2vcli.report import told_in_megabytes

    tell = told_in_megabytes(PlainReport(), "download")
    for done in (1, 400_000_000, 3_000_000_000, 3_672_400_000):
        tell(done, 3_672_400_000)
    lines = untimed(capsys.readouterr().err).splitlines()
    assert lines[0] == "download: 3,673 megabytes"
    assert (lines[1].split(",")[0:2], lines[-1].split(" in ")[0]) == (
        ["download: 1 of 3", "673"],
        "download: 3,673 of 3,673",
    )


TWO_RUNS = """
import json, socket, sys
from t2vcli.cli.main import main
def run(arguments):
    sys.argv = ["t2v", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code
uncached, cached = json.load(sys.stdin)
if (code := run(uncached)) != 5:
    sys.exit(f"the run without its model ended with {code}")
def refuse(*_, **__): raise AssertionError("the network was asked for something")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.exit(run(cached))
"""


@pytest.mark.slow
def test_without_a_network_a_run_names_the_way_out_or_takes_the_full_cache_and_records_the_commit(
    hub: Hub, tmp_path: Path
) -> None:
    """One process for both runs, for importing torch takes longer than they do."""
    fetch(tmp_path / "cache", {"model": "owner/xl"}, endpoint=hub.url)
    place = tmp_path / "place"
    place.mkdir()
    small = ["--device", "cpu", "--frames", "4", "--width", "32", "--height", "32", "--steps", "2"]
    uncached = ["generate", "a boat", "--preset", "zeroscope-576w", "-qq", "-o", "y.mp4"]
    cached = ["generate", "a boat", "--model", "owner/xl", *small, "-qq", "-o", "x.mp4"]
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS],
        input=json.dumps([uncached, cached]),
        cwd=place,
        env=environment(HF_HOME=str(tmp_path / "cache"), HF_ENDPOINT=NOBODY),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "x.mp4\n"), done.stderr
    said = sentence(Outcome(5, "", done.stderr))
    for words in ("cerspense/zeroscope_v2_576w", "3.67 GB", 't2v generate "', "--preset demo"):
        assert words in said
    assert os.listdir(place) == ["x.mp4"]
    recipe = read_metadata(place / "x.mp4")
    assert recipe is not None
    assert {k: recipe["model"][k] for k in ("source", "revision", "variant")} == {
        "source": "owner/xl",
        "revision": hub.commit("owner/xl"),
        "variant": None,
    }


# Folders


def weights_of(folder: Path, variant: str | None) -> dict[str, list[str]]:
    found = find_weights({part: folder / part for part in ("text_encoder", "unet", "vae")}, variant)
    return {part: [path.name for path in paths] for part, paths in found.items()}


def test_safetensors_go_before_bin_and_the_variant_before_all(repositories: dict[str, Path]) -> None:
    ms = repositories["owner/ms"]
    assert weights_of(ms, None)["unet"] == ["diffusion_pytorch_model.safetensors"]
    assert weights_of(ms, "fp16")["unet"] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert weights_of(repositories["owner/xl"], None)["unet"] == ["diffusion_pytorch_model.bin"]


def test_a_folder_is_found_under_its_full_path(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repositories["owner/xl"].parent)
    monkeypatch.setenv("HOME", str(repositories["owner/xl"].parent))
    for name in ("xl", "./xl", "~/xl"):
        files = find_model(name, revision=None, variant=None)
        assert (files.source, files.revision) == (str(repositories["owner/xl"].resolve()), None)
    with pytest.raises(UsageError, match="--revision v1"):
        find_model("xl", revision="v1", variant=None)


def test_a_model_without_fp16_files_lists_what_it_has(tmp_path: Path, repositories: dict[str, Path]) -> None:
    folder = shutil.copytree(repositories["owner/ms"], tmp_path / "ms", copy_function=os.link)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"unet lacks its weights .* as the variant fp16: give --variant fp16"):
        weights_of(folder, None)
    assert weights_of(folder, "fp16")["unet"] == ["diffusion_pytorch_model.fp16.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{",
        struct.pack("<Q", 15) + b'{"a": {"x": 1}}',
        struct.pack("<Q", 28) + b'{"a": {"data_offsets": [0]}}',
        struct.pack("<Q", 32) + b'{"a": {"data_offsets": [0, "x"]}}'[:32],
        struct.pack("<Q", 2) + b"{} ",
        struct.pack("<Q", 4330) + b'{"a": {"data_offsets": [0, %s]}}' % (b"9" * 4299) + b" ",
        struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe",
    ],
)
def test_a_damaged_safetensors_header_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="truncated or damaged"):
        check_whole(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'"x"'])
def test_a_damaged_json_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(path)
    with pytest.raises(ModelError, match="is missing"):
        read_config(tmp_path / "other.json")
