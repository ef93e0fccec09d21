"""Files that appear whole or not at all: on disks of three kinds, with a kill at every operation."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cases import first

from t2vcli import atomic
from t2vcli.atomic import take_name, write_whole

DISKS = ["renames", "links", "neither"]


def refusing(*_: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def be_disk(monkeypatch: pytest.MonkeyPatch, disk: str) -> None:
    """Makes the system refuse what a disk of this kind cannot do."""
    if disk != "renames":
        monkeypatch.setattr(atomic, "rename", refusing)
    if disk == "neither":
        monkeypatch.setattr(os, "link", refusing)


@pytest.mark.parametrize("disk", DISKS)
def test_a_name_is_taken_if_it_is_free(tmp_path: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_disk(monkeypatch, disk)
    (tmp_path / "new").write_bytes(b"new")
    take_name(tmp_path / "new", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"new"
    (tmp_path / "newer").write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        take_name(tmp_path / "newer", tmp_path / "taken")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        take_name(tmp_path / "newer", tmp_path / "dangling")
    assert (tmp_path / "taken").read_bytes() == b"new"
    assert (tmp_path / "newer").read_bytes() == b"newer"


KILLED = """
    import errno, os, signal, sys
    from pathlib import Path
    from t2vcli import atomic
    from test_atomic import refusing
    folder, disk, fatal = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    count = 0

    def watched(original):
        def call(*args, **options):
            global count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)
        return call

    if disk != "renames":
        atomic.rename = refusing
    if disk == "neither":
        os.link = refusing
    for name in ("open", "link", "rename", "replace", "lstat", "unlink"):
        setattr(os, name, watched(getattr(os, name)))
    atomic.rename = watched(atomic.rename)
    (folder / "new").write_bytes(b"new")
    count = 0
    atomic.take_name(folder / "new", folder / "taken")
    os.unlink(folder / "new")
"""


@pytest.mark.parametrize("disk", first(1, DISKS))
def test_no_kill_leaves_an_empty_file_under_the_name(tmp_path: Path, disk: str) -> None:
    """On each kind of disk, killed before each operation in turn."""
    code = textwrap.dedent(KILLED)
    for fatal in range(1, 20):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, disk, str(fatal)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=False,
        )
        if (tmp_path / "taken").exists():
            assert (tmp_path / "taken").read_bytes() == b"new"
            (tmp_path / "taken").unlink()
        if done.returncode != -9:
            assert fatal > 2
            return
    raise AssertionError("it never came to its end")


def test_a_small_file_is_replaced_whole_and_no_link_is_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "run.json.part").symlink_to(precious)
    (tmp_path / "run.json").symlink_to(precious)
    write_whole(tmp_path / "run.json", lambda file: file.write(b"new"), part=tmp_path / "run.json.part")
    assert (tmp_path / "run.json").read_bytes() == b"new"
    assert precious.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["precious", "run.json"]


def test_what_fails_on_the_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
