"""Small files of others: what is no plain file of a sensible size is named, and never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import sentence, t2v

from t2vcli.cli.words import read_prompt
from t2vcli.strangers import UnreadableError, open_regular, read_bytes, read_json, read_text

LIMIT = 1024


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OTHER_KINDS: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "it is a FIFO, not a file"),
    (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    (Path.mkdir, "it is a folder, not a file"),
    (_socket, "it is a socket, not a file"),
    (lambda path: path.symlink_to(path.name), "it is a link that leads to itself"),
    (lambda path: path.write_bytes(b"x" * (LIMIT + 1)), "it has more than 1 KiB"),
]


@pytest.mark.parametrize(("make", "reason"), OTHER_KINDS, ids=[reason for _, reason in OTHER_KINDS])
def test_what_is_no_small_file_is_named_at_once(
    make: Callable[[Path], object], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has 108 characters at most
    make(Path("x"))
    with pytest.raises(UnreadableError, match=reason):
        read_bytes(Path("x"), LIMIT)


def test_a_fifo_that_takes_a_files_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"{}")
    look = os.stat

    def replaced_after_the_look(*arguments: object, **options: object) -> os.stat_result:
        seen = look(*arguments, **options)  # type: ignore[call-overload]
        path.unlink()
        os.mkfifo(path)
        return seen

    monkeypatch.setattr(os, "stat", replaced_after_the_look)
    with pytest.raises(UnreadableError, match="FIFO"):
        open_regular(path)


def test_links_are_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * LIMIT)
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to("file")
    dangling.symlink_to("nowhere")
    assert read_bytes(link, LIMIT) == b"x" * LIMIT
    with pytest.raises(UnreadableError, match="it is a link, not a file"):
        read_bytes(link, LIMIT, follow_links=False)
    with pytest.raises(FileNotFoundError):
        read_bytes(dangling, LIMIT)
    with pytest.raises(UnreadableError, match="it is a link, not a file"):
        read_bytes(dangling, LIMIT, follow_links=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no JSON"),
        (b"{", "it is no JSON"),
        (b"[]", "does not hold a JSON object"),
        (b'"x"', "does not hold a JSON object"),
        (b"\xff", "it is not UTF-8 text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it is no JSON"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_object_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        read_json(tmp_path / "x", 2**20)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"é": [1]}', encoding="utf-8")
    assert read_json(path, LIMIT) == {"é": [1]}
    assert read_text(path, LIMIT) == '{"é": [1]}'
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "other", LIMIT)


# As presets and prompt files


@pytest.mark.parametrize("arguments", [("-p", "./x.yaml", "a boat"), ("--prompt-file", "x.yaml")], ids=str)
@pytest.mark.parametrize(("make", "reason"), OTHER_KINDS[:2], ids=["FIFO", "device"])
def test_neither_a_preset_nor_a_prompt_file_hangs(
    make: Callable[[Path], object],
    reason: str,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("x.yaml"))
    outcome = t2v("generate", *arguments, "--dry-run")
    assert outcome.code == 4
    assert reason in sentence(outcome)


def test_a_prompt_file_may_be_what_the_shell_made() -> None:
    read, write = os.pipe()
    os.write(write, b"a red boat\n")
    os.close(write)
    assert read_prompt(None, Path(f"/dev/fd/{read}")) == "a red boat"
    os.close(read)
