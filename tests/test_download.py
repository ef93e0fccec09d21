"""Downloads that survive: each fault of a hub on the loopback, and what is in the cache after it. No real waiting."""

from __future__ import annotations

import email.utils
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hub as loopback
import pytest
from commandline import LIMIT_S, environment
from hub import FOREVER, UNET, WEIGHTS, Close, Flip, Hold, NoRange, Reset, Resize, Stall, Status, hashes
from huggingface_hub import constants

from t2vcli.errors import Interrupted, ModelError, OutputError, UsageError
from t2vcli.sizes import bytes_text
from t2vcli.weights.download import Fetched, fetch
from t2vcli.weights.hub import LONGEST_WAIT_S, TRIES, GivenUp, Hub
from t2vcli.weights.models import find_model, pull_command, used_files

NAME = "owner/name"
AGAIN = "t2v pull owner/name"
SECOND = 120_000
"""Where in the UNet's 300 kB most faults strike."""


class Setting:
    """A repository on a hub, an empty cache, and what was said and waited."""

    def __init__(self, server: loopback.Hub, cache: Path) -> None:
        self.server = server
        self.waits: list[float] = []
        self.said: list[str] = []
        self.hub = Hub(server.url, cache, timeout_s=0.3, token="hf_secret", wait=self.waits.append)

    @property
    def source(self) -> Path:
        return self.server.repositories[NAME]

    @property
    def folder(self) -> Path:
        return self.hub.cache / "models--owner--name"

    def fetch(self, revision: str | None = None, **callbacks: Callable[[int, int], None]) -> Fetched:
        listing = self.hub.listing(NAME, revision=revision, say=self.said.append)
        used = used_files(listing.files, None, NAME)
        return fetch(self.hub, listing, used, again=AGAIN, say=self.said.append, **callbacks)

    def check_whole(self) -> None:
        """Fails unless each used file is there under the names that the hub's client gives it, and nothing else is."""
        snapshot = self.folder / "snapshots" / self.server.commit(NAME)
        used = {str(p.relative_to(self.source)) for p in self.source.rglob("*") if p.is_file()}
        used -= {"README.md", "zs2_XL/text2video_pytorch_model.pth"}
        assert {str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file()} == used
        for name in used:
            sha256, sha1 = hashes(self.source / name)
            etag = sha256 if name in WEIGHTS else sha1
            assert (snapshot / name).read_bytes() == (self.source / name).read_bytes()
            assert os.readlink(snapshot / name) == os.path.relpath(
                self.folder / "blobs" / etag, (snapshot / name).parent
            )
        assert len(self.blobs()) == len(used)
        assert self.partials() == []
        assert not [p for p in self.folder.rglob("*") if p.name.endswith((".tmp", ".t2v")) and p.name != ".t2v"]

    def blobs(self) -> list[Path]:
        return [p for p in self.folder.glob("blobs/*") if p.suffix != ".incomplete"]

    def partials(self) -> list[Path]:
        return sorted(self.folder.glob("blobs/*.incomplete"))


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were synced, which is slow on some disks and not what these tests are about, but for one."""
    paths: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: paths.append(os.readlink(f"/proc/self/fd/{fd}")))
    return paths


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loopback.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def setting(repository: Path, tmp_path: Path) -> Iterator[Setting]:
    with loopback.Hub({NAME: repository}) as server:
        yield Setting(server, tmp_path / "cache")


# What a download leaves


def test_the_cache_is_as_the_hubs_client_would_have_made_it(setting: Setting) -> None:
    fetched = setting.fetch()
    setting.check_whole()
    assert (setting.folder / "refs/main").read_text() == setting.server.commit(NAME)
    assert fetched.folder == setting.folder / "snapshots" / setting.server.commit(NAME)
    assert fetched.total_bytes == fetched.downloaded_bytes == sum(f.stat().st_size for f in setting.blobs())
    assert setting.waits == []


def test_a_file_is_on_the_disk_before_it_has_its_name(
    setting: Setting, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, named = os.replace, []

    def watched(source: Path, target: Path) -> None:
        if target.parent.name == "blobs":
            assert synced[-1] == str(source)
            named.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    setting.fetch()
    assert sorted(named) == sorted(setting.blobs())
    assert synced.count(str(setting.folder / "blobs")) == len(named)


def test_other_tools_find_the_files_and_we_find_theirs(setting: Setting, tmp_path: Path) -> None:
    """In a process of its own, for the client reads its settings once. It asks for each file, and gets none of them."""
    script = """
import sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
names = sys.argv[1:]
print(snapshot_download("owner/name", allow_patterns=names, local_files_only=names[0] == "offline"))
print(hf_hub_download("owner/name", names[-1]))
print([str(w) for w in scan_cache_dir().warnings])
"""
    used = used_files(setting.hub.listing(NAME, revision=None, say=print).files, None, NAME)

    def client(cache: Path, *names: str) -> list[str]:
        env = environment(HF_HUB_CACHE=str(cache), HF_ENDPOINT=setting.server.url, HF_HUB_DISABLE_PROGRESS_BARS="1")
        done = subprocess.run(
            [sys.executable, "-c", script, *names], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
        return done.stdout.splitlines()

    fetched = setting.fetch()
    setting.server.asked.clear()
    for first in ((), ("offline",)):
        folder, file, warnings = client(setting.hub.cache, *first, *used)
        assert (folder, file, warnings) == (str(fetched.folder), str(fetched.folder / used[-1]), "[]")
    assert setting.server.downloads() == []

    client(tmp_path / "theirs", *used)
    setting.hub = Hub(setting.server.url, tmp_path / "theirs", timeout_s=1)
    assert setting.fetch().downloaded_bytes == 0
    setting.check_whole()


@pytest.mark.parametrize("revision", [None, "main", "v1", "commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(revision: str | None, setting: Setting) -> None:
    commit = setting.server.commit(NAME)
    assert setting.fetch(commit if revision == "commit" else revision).folder.name == commit
    references = [str(p.relative_to(setting.folder / "refs")) for p in setting.folder.glob("refs/*")]
    assert references == ([] if revision == "commit" else [revision or "main"])


def test_the_plan_is_said_before_the_first_byte(setting: Setting) -> None:
    def first(done: int, total: int) -> None:
        assert len(setting.said) == 1

    setting.fetch(on_download=first)
    [plan] = setting.said
    size = sum(f.stat().st_size for f in setting.blobs())
    for words in (
        f"owner/name at main (commit {setting.server.commit(NAME)[:12]}) from {setting.server.url}",
        f"{bytes_text(size)} in {len(setting.blobs())} files",
        f"into {setting.folder}, which has",
        "free",
    ):
        assert words in plan


def test_progress_never_goes_back_and_ends_at_the_whole(setting: Setting) -> None:
    setting.server.fail(UNET, Reset(SECOND))
    setting.server.fail(UNET, NoRange())
    told: list[tuple[int, int]] = []
    fetched = setting.fetch(on_download=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {fetched.total_bytes}
    assert told[-1][0] == fetched.total_bytes


# Faults that pass


@pytest.mark.parametrize(
    ("fault", "span", "waits"),
    [
        (Reset(SECOND), "bytes=", [1]),
        (Close(SECOND), "bytes=", [1]),
        (Close(SECOND, sized=False), "bytes=", [1]),
        (Stall(SECOND), "bytes=", [1]),
        (Status(503), None, [1]),
        (Status(500), None, [1]),
        (Status(429), None, [1]),
        (Status(429, {"Retry-After": "7"}), None, [7]),
        (Status(503, {"Retry-After": "0"}), None, [0]),
        (Status(429, {"RateLimit": '"resolvers";r=0;t=55'}), None, [55]),
        (Flip(SECOND), None, [1]),
    ],
    ids=str,
)
def test_a_fault_that_passes_is_survived(
    fault: loopback.Fault, span: str | None, waits: list[float], setting: Setting
) -> None:
    setting.server.fail(UNET, fault)
    setting.fetch()
    setting.check_whole()
    assert setting.waits == waits
    (_, first), (_, second) = [d for d in setting.server.downloads() if d[0] == UNET]
    assert first is None
    if span is None:
        assert second is None
    else:  # it went on; what had arrived before a reset is not all known to us
        assert second is not None
        assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= SECOND
    assert UNET in setting.said[1]
    assert "trying again" in setting.said[1]
    assert isinstance(fault, Stall) == ("no byte came for 0.3 s" in setting.said[1])


def test_a_date_to_come_back_at_is_kept(setting: Setting) -> None:
    date = email.utils.formatdate(time.time() + 120, usegmt=True)
    setting.server.fail(UNET, Status(503, {"Retry-After": date}))
    setting.server.fail(UNET, Status(503, {"Retry-After": "soon"}))
    setting.fetch()
    assert setting.waits[0] == pytest.approx(120, abs=20)
    assert setting.waits[1] == 2


def test_the_listing_is_asked_for_again_too(setting: Setting) -> None:
    for fault in (Status(503), Status(429, {"Retry-After": "3"}), Reset(10), Stall(0)):
        setting.server.fail("/api/models/owner/name", fault)
    setting.fetch()
    setting.check_whole()
    assert setting.waits == [1, 3, 4, 8]


def test_a_hub_that_knows_no_ranges_sends_it_all_again(setting: Setting) -> None:
    setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, NoRange())
    setting.fetch()
    setting.check_whole()
    assert [span for name, span in setting.server.downloads() if name == UNET] == [None, f"bytes={SECOND}-"]


def test_a_hub_that_refuses_the_range_is_asked_for_it_all(setting: Setting) -> None:
    setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, Status(416))
    setting.fetch()
    setting.check_whole()
    assert [span for name, span in setting.server.downloads() if name == UNET] == [None, f"bytes={SECOND}-", None]


def test_a_hub_that_sends_another_range_is_not_believed(setting: Setting) -> None:
    size = (setting.source / UNET).stat().st_size
    setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, Status(206, {"Content-Range": f"bytes 5-9/{size}"}, b"wrong"))
    setting.fetch()
    setting.check_whole()
    spans = [span for name, span in setting.server.downloads() if name == UNET]
    assert spans == [None, f"bytes={SECOND}-", f"bytes={SECOND}-"]  # nothing of what was here was lost over it


def test_a_renamed_repository_is_followed(setting: Setting) -> None:
    setting.server.renamed["old/name"] = NAME
    listing = setting.hub.listing("old/name", revision=None, say=print)
    fetched = fetch(setting.hub, listing, used_files(listing.files, None, NAME), again=AGAIN, say=print)
    assert fetched.folder.parent.parent.name == "models--old--name"
    assert (fetched.folder / UNET).read_bytes() == (setting.source / UNET).read_bytes()


def test_the_token_is_for_the_hub_alone(setting: Setting) -> None:
    with loopback.Hub({NAME: setting.source}) as elsewhere:
        setting.server.files_at = elsewhere.url
        setting.fetch()
        setting.check_whole()
        assert {r.headers.get("authorization") for r in setting.server.asked} == {"Bearer hf_secret"}
        assert len(elsewhere.asked) > 5
        assert {r.headers.get("authorization") for r in elsewhere.asked} == {None}


# Faults that stay


@pytest.mark.parametrize("fault", [Reset(0), Close(0), Status(503)], ids=str)
def test_a_fault_that_stays_ends_it_after_a_bounded_time(fault: loopback.Fault, setting: Setting) -> None:
    setting.server.fail(UNET, fault, FOREVER)
    with pytest.raises(ModelError, match=f"{TRIES} times in a row") as refused:
        setting.fetch()
    assert setting.waits == [1, 2, 4, 8, 16]
    assert f"are here and kept, and `{AGAIN}` goes on from there" in str(refused.value)
    assert not (setting.folder / "snapshots").exists()

    setting.server.heal()
    setting.server.asked.clear()
    setting.fetch()
    setting.check_whole()
    assert setting.server.downloaded() == {UNET}  # the others were whole


def test_a_hub_that_hangs_up_after_every_byte_is_given_up(setting: Setting) -> None:
    setting.server.fail(UNET, Close(1), FOREVER)
    with pytest.raises(ModelError, match="times in a row"):
        setting.fetch()


def test_a_file_that_gets_on_is_never_given_up(tmp_path: Path) -> None:
    """Ten breaks, each after more than a mebibyte: patience is for a hub that sends nothing."""
    folder = loopback.write_repository(tmp_path / "large", weights_bytes=15_000_000)
    with loopback.Hub({NAME: folder}) as server:
        setting = Setting(server, tmp_path / "cache")
        server.fail(UNET, Close(1_400_000), times=10)
        setting.fetch()
        setting.check_whole()
        assert setting.waits == [1] * 10


def test_what_broke_off_goes_on_in_the_next_run(setting: Setting) -> None:
    setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, Status(503), FOREVER)
    with pytest.raises(ModelError, match=r"120 kB|18\d kB"):
        setting.fetch()
    [partial] = setting.partials()
    assert partial.read_bytes() == (setting.source / UNET).read_bytes()[:SECOND]
    setting.server.heal()
    setting.server.asked.clear()
    setting.said.clear()
    fetched = setting.fetch()
    setting.check_whole()
    assert setting.server.downloads() == [(UNET, f"bytes={SECOND}-")]
    assert fetched.downloaded_bytes == (setting.source / UNET).stat().st_size - SECOND
    assert "of which 120 kB are here already" in setting.said[0]


def test_a_partial_file_with_a_wrong_byte_is_begun_anew(setting: Setting) -> None:
    setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, Status(503), FOREVER)
    with pytest.raises(ModelError):
        setting.fetch()
    [partial] = setting.partials()
    partial.write_bytes(b"x" * SECOND)
    setting.server.heal()
    setting.fetch()
    setting.check_whole()
    partial.write_bytes(b"x" * 10**6)  # longer than the file is
    next(p for p in setting.blobs() if p.stat().st_size > 200_000).unlink()
    setting.fetch()
    setting.check_whole()


def test_too_long_a_wait_is_left_to_the_person(setting: Setting) -> None:
    setting.server.fail(UNET, Status(429, {"Retry-After": str(int(LONGEST_WAIT_S * 2))}))
    with pytest.raises(ModelError, match="the hub asks to wait 10 minutes"):
        setting.fetch()
    assert setting.waits == []


def test_a_file_that_is_not_what_is_listed_is_refused_and_not_kept(setting: Setting) -> None:
    setting.server.fail(UNET, Flip(5), FOREVER)
    with pytest.raises(ModelError, match="sha256") as refused:
        setting.fetch()
    assert UNET in str(refused.value)
    assert hashes(setting.source / UNET)[0][:12] in str(refused.value)
    assert len([name for name, _ in setting.server.downloads() if name == UNET]) == 2
    assert setting.partials() == []
    assert hashes(setting.source / UNET)[0] not in [p.name for p in setting.blobs()]


def test_a_small_file_is_verified_by_gits_hash(setting: Setting) -> None:
    setting.server.fail("unet/config.json", Flip(5), FOREVER)
    with pytest.raises(ModelError, match=r"unet/config\.json .*git hash"):
        setting.fetch()


@pytest.mark.parametrize("by", [-1000, 1000])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_of_another_size_is_refused(by: int, resumed: bool, setting: Setting) -> None:
    size = (setting.source / UNET).stat().st_size
    if resumed:
        setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, Resize(by), FOREVER)
    with pytest.raises(ModelError, match=f"{size:,} bytes are listed and {size + by:,} were sent") as refused:
        setting.fetch()
    assert UNET in str(refused.value)
    assert not (setting.folder / "snapshots").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(401), "needs a token that may read it (HF_TOKEN), and the token in use may not read it"),
        (Status(403), "needs a token that may read it (HF_TOKEN)"),
        (Status(403, {"X-Error-Code": "GatedRepo"}), "is gated: accept its terms at http"),
        (Status(404, {"X-Error-Code": "RevisionNotFound"}), "owner/name has no revision main"),
        (Status(404, {"X-Error-Code": "RepoNotFound"}), "no repository owner/name"),
        (Status(401, {"X-Error-Code": "RepoNotFound"}), "no repository owner/name"),
        (Status(410), "answers 410"),
        (Status(200, {}, b"<html>Please log in</html>"), "a login page"),
        (Status(200, {}, b'{"sha": "main", "siblings": []}'), "names the commit 'main'"),
        (Status(200, {}, b"[]"), "lists no repository"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_said_at_once(fault: loopback.Fault, words: str, setting: Setting) -> None:
    setting.server.fail("/api/models/owner/name", fault, FOREVER)
    with pytest.raises(ModelError) as refused:
        setting.fetch()
    assert words in str(refused.value)
    assert setting.waits == []
    assert setting.server.downloads() == []
    assert not setting.hub.cache.exists()


def test_a_file_that_is_gated_is_said_at_once(setting: Setting) -> None:
    setting.server.fail(UNET, Status(403), FOREVER)
    with pytest.raises(ModelError, match="token"):
        setting.fetch()
    assert setting.waits == []


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "tokenizer/../../../../.bashrc", "size": 1, "blobId": "0" * 40},
        {"rfilename": "/etc/passwd", "size": 1, "blobId": "0" * 40},
        {"rfilename": "tokenizer/a\nb", "size": 1, "blobId": "0" * 40},
        {"rfilename": "unet/config.json", "size": 1, "blobId": "../../x"},
        {"rfilename": "unet/config.json", "size": -1, "blobId": "0" * 40},
        {"rfilename": "unet/config.json", "size": 1},
        {"rfilename": UNET, "size": 1, "lfs": {"sha256": "/tmp/x", "size": 1}},
    ],
    ids=lambda entry: str(entry)[:60],
)
def test_a_listing_that_leads_astray_is_refused(entry: dict[str, object], setting: Setting) -> None:
    body = json.dumps({"sha": "0" * 40, "siblings": [entry]}).encode()
    setting.server.fail("/api/models/owner/name", Status(200, {}, body))
    with pytest.raises(ModelError, match="lists no repository"):
        setting.fetch()


def test_a_hub_that_is_down_is_not_waited_for(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(GivenUp, match=r"127\.0\.0\.1:9 cannot be reached"):
        Hub("http://127.0.0.1:9", tmp_path, timeout_s=1, wait=waits.append).listing(NAME, revision=None, say=print)
    assert waits == []
    with pytest.raises(ModelError, match="HF_ENDPOINT is 'huggingface'"):
        Hub("huggingface", tmp_path, timeout_s=1).listing(NAME, revision=None, say=print)


def test_a_hub_that_goes_down_in_the_middle_is_waited_for(setting: Setting) -> None:
    listing = setting.hub.listing(NAME, revision=None, say=print)
    down = Hub("http://127.0.0.1:9", setting.hub.cache, timeout_s=1, wait=setting.waits.append)
    with pytest.raises(ModelError, match="cannot be reached"):
        fetch(down, listing, used_files(listing.files, None, NAME), again=AGAIN, say=print)
    assert setting.waits == [1, 2, 4, 8, 16]


# Stopping, disks, and others at work


@pytest.mark.parametrize("stop", [KeyboardInterrupt, type("Terminated", (KeyboardInterrupt,), {})])
def test_ctrl_c_keeps_what_is_here(stop: type[KeyboardInterrupt], setting: Setting) -> None:
    def press(done: int, total: int) -> None:
        if done > 150_000:
            raise stop

    with pytest.raises(Interrupted) as interrupted:
        setting.fetch(on_download=press)
    assert interrupted.value.exit_code == (130 if stop is KeyboardInterrupt else 143)
    assert f"are here and kept, and `{AGAIN}` goes on from there" in str(interrupted.value)
    [partial] = setting.partials()
    kept = partial.stat().st_size
    assert kept > 50_000
    setting.server.asked.clear()
    setting.fetch()
    setting.check_whole()
    assert setting.server.downloads() == [(UNET, f"bytes={kept}-")]


def test_what_does_not_fit_is_refused_before_the_first_byte(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(setting.source)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(OutputError, match=r"needs 36\d kB more, and .* has 200 kB free.*HF_HOME"):
        setting.fetch()
    assert setting.server.downloads() == []
    assert not setting.hub.cache.exists()


def test_what_is_here_already_needs_no_more_room(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.server.fail(UNET, Close(SECOND))
    setting.server.fail(UNET, Status(503), FOREVER)
    with pytest.raises(ModelError):
        setting.fetch()
    setting.server.heal()
    usage = shutil.disk_usage(setting.source)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    setting.fetch()
    setting.check_whole()


def test_a_disk_that_fills_up_is_said_and_the_rest_kept(setting: Setting) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SECOND, hard))
    try:
        with pytest.raises(OutputError, match=r"no space left in .* are here and kept") as refused:
            setting.fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.exit_code == 8
    assert AGAIN in str(refused.value)
    setting.fetch()
    setting.check_whole()


def test_a_cache_that_cannot_be_written_is_said(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.hub.cache.write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        setting.fetch()
    setting.hub.cache.unlink()

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(OutputError, match=r"cannot be written \(Read-only file system\); set HF_HOME"):
            setting.fetch()
    setting.fetch()
    with monkeypatch.context() as patch:  # whole, it need not be written
        patch.setattr(Path, "mkdir", refuse)
        patch.setattr(os, "replace", refuse)
        shutil.rmtree(setting.folder / ".t2v")
        assert setting.fetch().downloaded_bytes == 0


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_file_in_the_cache_is_replaced_alone(name: str, damage: str, setting: Setting) -> None:
    fetched = setting.fetch()
    blob = (fetched.folder / name).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-3] if damage == "truncated" else content[:-3] + b"\0\1\2")
    setting.server.asked.clear()
    setting.said.clear()
    checked: list[tuple[int, int]] = []
    setting.fetch(on_check=lambda done, total: checked.append((done, total)))
    setting.check_whole()
    assert setting.server.downloads() == [(name, None)]
    assert f"{fetched.folder / name} is damaged" in setting.said[0]
    assert len(setting.said) == 2
    assert [done for done, _ in checked] == sorted(done for done, _ in checked)  # each file is read once
    assert checked[-1] == (fetched.total_bytes, fetched.total_bytes)


def test_without_links_the_files_themselves_are_placed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    fetched = setting.fetch()
    assert not (fetched.folder / UNET).is_symlink()
    assert (fetched.folder / UNET).read_bytes() == (setting.source / UNET).read_bytes()
    assert setting.fetch().downloaded_bytes == 0
    (fetched.folder / UNET).write_bytes(b"damaged")
    setting.fetch()
    assert (fetched.folder / UNET).read_bytes() == (setting.source / UNET).read_bytes()


def test_two_at_once_download_each_file_once(setting: Setting) -> None:
    hold = Hold(SECOND)
    setting.server.fail(UNET, hold)
    first = threading.Thread(target=setting.fetch)
    first.start()
    assert hold.reached.wait(LIMIT_S)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "another process is downloading" in line:
            hold.go.set()

    listing = setting.hub.listing(NAME, revision=None, say=print)
    fetched = fetch(setting.hub, listing, used_files(listing.files, None, NAME), again=AGAIN, say=say)
    first.join(LIMIT_S)
    setting.check_whole()
    assert any(UNET in line and "another process" in line for line in said)
    assert fetched.downloaded_bytes == 0
    assert sorted(name for name, _ in setting.server.downloads()) == sorted(setting.server.downloaded())


# Finding a model


@pytest.fixture
def client(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The setting, as what the environment names."""
    monkeypatch.setattr(Hub, "from_environment", lambda: setting.hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return setting


@pytest.mark.parametrize(("offline", "name"), [(True, "--offline"), (False, "HF_HUB_OFFLINE")])
def test_offline_nothing_is_asked(offline: bool, name: str, client: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not offline)
    with pytest.raises(ModelError, match=f"is not in the cache, and {name} forbids") as refused:
        find_model(NAME, revision=None, variant=None, offline=offline)
    assert "--preset demo" in str(refused.value)
    assert client.server.asked == []


def test_a_truncated_file_in_the_cache_is_named_with_the_command_that_mends_it(
    client: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_model(NAME, revision="v1", variant=None)
    asked = len(client.server.asked)
    [weights] = files.weights["unet"]
    weights.resolve().write_bytes(weights.read_bytes()[:-1])
    pattern = r"unet/diffusion_pytorch_model\.safetensors is truncated .*`t2v pull owner/name --revision v1` downloads"
    with pytest.raises(ModelError, match=pattern):
        find_model(NAME, revision="v1", variant=None)
    (tmp_path / "ours.yaml").write_text("extends: zeroscope-576w\nmodel: owner/name\nrevision: v1\n")
    monkeypatch.setenv("T2V_PRESETS", str(tmp_path))
    with pytest.raises(ModelError, match="`t2v pull ours` downloads it again"):
        find_model(NAME, revision="v1", variant=None)
    shutil.rmtree(client.folder / ".t2v")  # as another tool would have left it
    with pytest.raises(ModelError, match="`t2v pull ours` downloads it again"):
        find_model(NAME, revision="v1", variant=None)
    assert len(client.server.asked) == asked


def test_a_small_file_of_another_size_than_the_listed_one_is_named(client: Setting) -> None:
    """Half a list of merges reads as well as a whole one."""
    files = find_model(NAME, revision=None, variant=None)
    merges = files.parts["tokenizer"] / "merges.txt"
    merges.resolve().write_bytes(merges.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"merges\.txt is truncated or damaged .*`t2v pull owner/name`"):
        find_model(NAME, revision=None, variant=None)


def test_the_command_that_mends_names_what_is_needed() -> None:
    assert pull_command("a/b", revision=None, variant="") == "t2v pull a/b"
    assert pull_command("a/b", revision="refs/pr/15", variant="fp16") == (
        "t2v pull a/b --revision refs/pr/15 --variant fp16"
    )
    assert pull_command("cerspense/zeroscope_v2_XL", revision=None, variant=None) == "t2v pull zeroscope-XL"


@pytest.mark.parametrize("revision", ["../../x", "/etc", "", "refs/../../x"])
def test_a_revision_that_is_a_path_is_refused(revision: str, client: Setting) -> None:
    with pytest.raises(UsageError, match="no branch, tag or commit"):
        find_model(NAME, revision=revision, variant=None)
    assert client.server.asked == []


def test_sizes_are_as_the_hub_shows_them() -> None:
    sizes = (0, 384, 1000, 525_000, 1_060_000, 681_000_000, 3_672_400_000, 22_000_000_000)
    assert [bytes_text(size) for size in sizes] == [
        "0 bytes",
        "384 bytes",
        "1.0 kB",
        "525 kB",
        "1.1 MB",
        "681 MB",
        "3.67 GB",
        "22 GB",
    ]
