"""What a hub may answer, and what may stand in the environment: an error of the model that names it, never a bug.

`make fuzz` runs the long form of the fuzz.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub as loopback
import pytest
from commandline import LIMIT_S, environment
from hub import FOREVER, UNET, Stall, Status
from hypothesis import given
from hypothesis import strategies as st
from test_download import NAME, SECOND, Setting
from test_fuzz import bounded, limits
from test_hostile_models import DELETE, VALUES, change, places

import t2vcli.weights.hub
from t2vcli.errors import ModelError
from t2vcli.weights.hub import MAX_LISTING_BYTES, SLOW_S, GivenUp, Hub, masked, wrong_in_environment

LISTING = "/api/models/owner/name"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loopback.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def setting(files: Path, tmp_path: Path) -> Iterator[Setting]:
    with loopback.Hub({NAME: files}) as server:
        yield Setting(server, tmp_path / "cache")


def listing_of(setting: Setting) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(loopback._listing(setting.source, NAME, "0" * 40, tree=False).body)
    return answer


@bounded(60)
@given(data=st.data())
def test_no_change_of_one_value_of_a_listing_is_a_bug(data: st.DataObject, setting: Setting, tmp_path: Path) -> None:
    path = tmp_path / "listing.json"
    whole = listing_of(setting)
    whole["siblings"] = [
        e for e in whole["siblings"] if e["rfilename"] in (UNET, "model_index.json", "tokenizer/vocab.json")
    ]
    path.write_text(json.dumps(whole))
    place = data.draw(st.sampled_from(list(itertools.chain(places(whole, 4), [("siblings", 0, "lfs")]))))
    names = (
        "tokenizer/.",
        "a//b",
        "/etc/x",
        "x" * 300,
        "x/" * 600 + "y",
        f"{UNET}/x",
        "..",
        "tokenizer/\u202e",
        "a\\b",
    )
    value = data.draw(st.sampled_from([*VALUES, *names, 0.0, "9" * 64, "0" * 40, 10**40]))
    if place[-1] == "lfs" and value is DELETE:
        value = None
    change(path, place, value)
    setting.server.heal()
    setting.server.fail(LISTING, Status(200, {}, path.read_bytes()))
    with limits():
        try:
            listing = setting.hub.listing(NAME, revision=None, say=print)
        except (ModelError, GivenUp):
            return
    for name, file in listing.files.items():
        assert file.path == name
        assert not os.path.isabs(name)
        assert {"", ".", ".."}.isdisjoint(name.split("/"))
        assert isinstance(file.etag, str)
        assert file.size < 2**53


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"sha": ' + b"[" * 200_000, b"{" + b" " * (MAX_LISTING_BYTES + 1), b"\xff", b"", b"9" * 10_000],
    ids=["nested", "nested inside", "too large", "no text", "empty", "a number"],
)
def test_a_listing_of_any_form_is_an_error_of_the_model(body: bytes, setting: Setting) -> None:
    setting.server.fail(LISTING, Status(200, {}, body))
    with pytest.raises(ModelError, match=r"lists no repository|which is no listing"):
        setting.fetch()


@pytest.mark.parametrize("value", ["\xb2", "9" * 400, "-1", "1e9", "Mon, 99 Foo 9999999 99:99:99 GMT", "\x00"])
def test_a_wait_that_is_no_number_is_not_taken_for_one(value: str) -> None:
    assert t2vcli.weights.hub._asked_wait_s({"Retry-After": value, "RateLimit": f"r=0;t={value}"}) in (None, 0.0)


@pytest.mark.parametrize("where", ["http://a..b/x", "http://[", "file:///etc/passwd", "http://127.0.0.1:99999/", "x:y"])
def test_a_redirect_to_nowhere_is_an_error_of_the_model(where: str, setting: Setting) -> None:
    setting.server.fail(LISTING, Status(302, {"Location": where}), FOREVER)
    with pytest.raises((ModelError, GivenUp)):
        setting.hub.listing(NAME, revision=None, say=print)


class Clock:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_a_listing_that_drips_is_given_up(setting: Setting) -> None:
    slow = Hub(setting.server.url, setting.hub.cache, timeout_s=1, wait=setting.waits.append, clock=Clock(130))
    with pytest.raises(GivenUp, match="was not here after 120 s, 6 times in a row"):
        slow.listing(NAME, revision=None, say=print)


def test_a_file_that_drips_is_asked_for_again_and_in_the_end_given_up(setting: Setting) -> None:
    listing = setting.hub.listing(NAME, revision=None, say=print)
    setting.server.fail(UNET, Stall(SECOND // 4), FOREVER)
    setting.hub = Hub(
        setting.server.url, setting.hub.cache, timeout_s=0.3, wait=setting.waits.append, clock=Clock(SLOW_S + 1)
    )
    assert listing.files
    with pytest.raises(ModelError, match="times in a row"):
        setting.fetch()
    assert any("came in 60 s" in line for line in setting.said)


def test_an_answer_that_never_begins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as heads that drip, which no timeout for silence ends."""
    never = threading.Event()
    with pytest.raises(t2vcli.weights.hub.Trouble, match=r"no whole answer came in 0\.01 s"):
        t2vcli.weights.hub._within(0.01, never.wait)
    never.set()
    with pytest.raises(KeyError):
        t2vcli.weights.hub._within(10, lambda: {}["x"])


# The environment

WRONG: list[tuple[dict[str, str], str]] = [
    ({"HF_ENDPOINT": "http://["}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://h:99999999"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://127.0.0.1:x"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://a\x01b"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://a..b"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://" + "x" * 64}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "ftp://h"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "huggingface.co"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://user:SECRET/x@[h"}, "HF_ENDPOINT"),
    ({"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}, "HF_HUB_DOWNLOAD_TIMEOUT"),
    ({"HF_HUB_DOWNLOAD_TIMEOUT": "-1"}, "HF_HUB_DOWNLOAD_TIMEOUT"),
    ({"HF_HUB_ETAG_TIMEOUT": "x"}, "HF_HUB_ETAG_TIMEOUT"),
    ({"HF_HOME": "/dev/null"}, "HF_HOME"),
    ({"HTTPS_PROXY": "foo://user:SECRET@bar"}, "HTTPS_PROXY"),
    ({"https_proxy": "http://user:SECRET@bar:x"}, "https_proxy"),
    ({"SSL_CERT_FILE": "/nonexistent/certificates.pem"}, "SSL_CERT_FILE"),
    ({"HF_TOKEN": "hf_gr\u00fcn"}, "HF_TOKEN"),
    ({"SSL_CERT_FILE": __file__}, "SSL_CERT_FILE"),
    ({"HF_ENDPOINT": "http://user:SECRET@127.0.0.1:9"}, "http://***@127.0.0.1:9 cannot be reached"),
]


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith(("HF_", "SSL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("variables", "name"), WRONG[:16], ids=str)
def test_a_variable_that_makes_no_sense_is_named(
    variables: dict[str, str], name: str, no_variables: pytest.MonkeyPatch
) -> None:
    assert wrong_in_environment() is None
    for variable, value in variables.items():
        no_variables.setenv(variable, value)
    said = wrong_in_environment()
    assert said is not None
    assert said.startswith(f"{name} is ")
    assert "SECRET" not in said


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_ENDPOINT": "https://hub.example.org/a/b"},
        {"HF_ENDPOINT": "http://[::1]:8080"},
        {"HF_ENDPOINT": "http://m\u00fcller.example"},
        {"HTTP_PROXY": "proxy.example:3128"},
        {"https_proxy": "http://user:pass@proxy:3128"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "30", "HF_HUB_ETAG_TIMEOUT": "0"},
        {"HF_HOME": "/nowhere/yet", "HTTPS_PROXY": ""},
    ],
    ids=str,
)
def test_a_variable_that_makes_sense_is_left_alone(variables: dict[str, str], no_variables: pytest.MonkeyPatch) -> None:
    for variable, value in variables.items():
        no_variables.setenv(variable, value)
    assert wrong_in_environment() is None


def test_no_password_is_left_in_a_text() -> None:
    for text in ("http://u:p@h/x", "'https://u:p/@q@h'", "proxy http://u:p@h failed"):
        assert "p@" not in masked(text)
        assert "***@h" in masked(text)
    assert masked("http://h/x and mail to a@b") == "http://h/x and mail to a@b"


IN_TURN = """
import json, os, sys
from t2vcli.cli.main import main
for variables in json.load(sys.stdin):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.environ.update(variables)
        sys.argv = ["t2v", *variables.pop("arguments", "pull owner/name -q").split()]
        os.dup2(1, 2)
        try:
            main()
        except SystemExit as ended:
            print("exit", ended.code, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("---", flush=True)
"""


@pytest.mark.slow
def test_no_environment_is_a_bug(tmp_path: Path) -> None:
    """Each in a process of its own, for the hub's client reads its settings when it is imported."""
    cases = [{"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), **variables} for variables, _ in WRONG]
    offline = {"HF_HUB_ETAG_TIMEOUT": "x", "arguments": "presets"}  # which asks no hub, and reads no model
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN],
        input=json.dumps([*cases, offline]),
        env=environment(HTTPS_PROXY="", HTTP_PROXY="", ALL_PROXY=""),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    *outputs, last, rest = done.stdout.split("---\n")
    assert (len(outputs), rest) == (len(WRONG), "")
    for (variables, name), output in zip(WRONG, outputs, strict=True):
        lines = output.splitlines()
        assert lines[-1] == "exit 5", (variables, output)
        assert len(lines) == 2, output
        assert name in lines[0], (variables, output)
        assert "SECRET" not in output
    assert "demo" in last
