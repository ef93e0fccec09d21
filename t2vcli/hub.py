"""The hub as t2v asks it: where it is, what a repository holds, and how long to bear with it. No torch here.

The requests go through huggingface_hub's own session, so its proxies and certificates are in force, but the patience is
ours: the client neither tries a file again after a reset or a 503 nor keeps what it has of it.
"""

from __future__ import annotations

import contextlib
import email.utils
import importlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from t2vcli import __version__
from t2vcli.errors import ModelError
from t2vcli.paths import expanded

BRANCH = "main"

TRIES = 6
"""How many failures in a row, without a byte to show for them, end a download."""
FIRST_WAIT_S = 1.0
"""The wait after the first failure; each further one is twice as long."""
LONGEST_WAIT_S = 300.0
"""What the hub may ask us to wait. If it is more, the person is told and decides."""

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha1": re.compile(r"[0-9a-f]{40}")}

Say = Callable[[str], None]


class Trouble(Exception):  # noqa: N818 - it may pass, so it is no error yet
    """A failure that another try may mend. `wait_s` is how long the hub asks us to wait first."""

    def __init__(self, reason: str, *, wait_s: float | None = None, at_first_contact: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.at_first_contact = at_first_contact


class GivenUp(Exception):  # noqa: N818 - the caller says what that means
    """The hub has been tried as often as is sensible. The text is the last reason."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. Large files have a sha256, small ones git's sha1 of a blob; one of them is there."""

    path: str
    size: int
    sha256: str | None
    sha1: str | None

    @property
    def etag(self) -> str:
        """The name of its content in the hub's cache."""
        return self.sha256 or self.sha1 or ""


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit. `revision` is what was asked for: a branch, a tag or the commit itself."""

    repository: str
    revision: str
    commit: str
    files: Mapping[str, RemoteFile]


class Patience:
    """How often to try again, and how long to wait in between: twice as long each time, or what the hub asks for."""

    def __init__(self, wait: Callable[[float], None], say: Say) -> None:
        self._wait = wait
        self._say = say
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def bear(self, trouble: Trouble, what: str) -> None:
        """Waits before the next try. Raises GivenUp after TRIES failures, or if the wait would be too long."""
        self._failures += 1
        if self._failures >= TRIES:
            raise GivenUp(f"{trouble}, {TRIES} times in a row")
        wait_s = trouble.wait_s if trouble.wait_s is not None else FIRST_WAIT_S * 2 ** (self._failures - 1)
        if wait_s > LONGEST_WAIT_S:
            raise GivenUp(f"{trouble}, and the hub asks to wait {wait_s / 60:.0f} minutes")
        self._say(f"{what}: {trouble}; trying again in {wait_s:g} s")
        self._wait(wait_s)


@dataclass(frozen=True)
class Hub:
    """A hub and the cache of what came from it. `timeout_s` is how long it may be silent."""

    endpoint: str
    cache: Path
    timeout_s: float
    token: str | None = None
    wait: Callable[[float], None] = time.sleep

    @classmethod
    def from_environment(cls) -> Hub:
        """Returns the hub of HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_DOWNLOAD_TIMEOUT."""
        from huggingface_hub import constants, get_token

        return cls(
            endpoint=constants.ENDPOINT,
            cache=expanded(constants.HF_HUB_CACHE).absolute(),
            timeout_s=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            token=None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token(),
            wait=time.sleep,
        )

    def listing(self, repository: str, *, revision: str | None, say: Say) -> Listing:
        """Returns what the repository holds, in one request. Raises ModelError, or GivenUp if the hub cannot be asked."""
        asked = revision or BRANCH
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        patience = Patience(self.wait, say)
        while True:
            try:
                with self.get(f"{self.endpoint}/api/models/{repository}{at}?blobs=true", repository, asked) as response:
                    response.read()
                    return self._parsed(response, repository, asked)
            except Trouble as trouble:
                if trouble.at_first_contact:  # nobody is there: to be told at once is better than to wait for it
                    raise GivenUp(str(trouble)) from None
                patience.bear(trouble, repository)

    def file_url(self, listing: Listing, file: RemoteFile) -> str:
        from huggingface_hub import hf_hub_url

        url: str = hf_hub_url(listing.repository, file.path, revision=listing.commit, endpoint=self.endpoint)
        return url

    @contextlib.contextmanager
    def get(self, url: str, repository: str, revision: str, *, start: int = 0) -> Iterator[Any]:
        """Gives the answer to a GET, its body unread, from the byte `start` on where the hub can do that.

        Raises Trouble for what may pass, in the body of the `with`, too, and ModelError for what will not.
        """
        from huggingface_hub.utils import get_session

        if urlsplit(self.endpoint).scheme not in ("http", "https") or not urlsplit(self.endpoint).hostname:
            raise ModelError(f"HF_ENDPOINT is {self.endpoint!r}, which is no http or https address")
        http = _http_library()
        # Compressed, a text file would have another length than the one listed, and could not be continued.
        headers = {"User-Agent": f"t2v/{__version__}", "Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=self.timeout_s, follow_redirects=True
            ) as response:
                self._check(response, repository, revision)
                yield response
        except http.HTTPError as error:
            raise Trouble(
                self._reason(error, http),
                at_first_contact=isinstance(error, (http.ConnectError, http.ConnectTimeout, http.ProxyError)),
            ) from None

    def _reason(self, error: Exception, http: Any) -> str:
        if isinstance(error, http.ConnectError | http.ConnectTimeout):
            return f"{self.endpoint} cannot be reached ({_first_line(error) or 'no answer'})"
        if isinstance(error, http.TimeoutException):
            return f"no byte came for {self.timeout_s:g} s"
        return f"the connection broke ({_first_line(error) or type(error).__name__})"

    def _check(self, response: Any, repository: str, revision: str) -> None:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if status in (200, 206, 416):
            return
        if status in _TRANSIENT:
            raise Trouble(f"the hub answers {status}", wait_s=_asked_wait_s(response.headers))
        if code == "GatedRepo":
            raise ModelError(
                f"{repository} is gated: accept its terms at {self.endpoint}/{repository} and give a token that may"
                " read it (HF_TOKEN)"
            )
        if code == "RevisionNotFound":
            raise ModelError(f"{repository} has no revision {revision}")
        if code == "EntryNotFound":
            raise ModelError(f"{repository} at {revision} lists a file that it does not have ({response.url.path})")
        if code == "RepoNotFound" or (status == 404 and not code):
            raise ModelError(f"the hub has no repository {repository}, or it needs a token (HF_TOKEN)")
        if status in (401, 403):
            given = "the token in use may not read it" if self.token else "none is given"
            raise ModelError(f"{repository} needs a token that may read it (HF_TOKEN), and {given}: answer {status}")
        raise ModelError(f"{repository} at {revision} cannot be downloaded: {self.endpoint} answers {status}")

    def _parsed(self, response: Any, repository: str, revision: str) -> Listing:
        try:
            answer = response.json()
            commit = str(answer["sha"])
            files = [_remote_file(entry) for entry in answer["siblings"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{self.endpoint} answered with something that lists no repository ({type(error).__name__}: {error});"
                " is there a proxy or a login page in between?"
            ) from None
        if not _HASHES["sha1"].fullmatch(commit):
            raise ModelError(f"{self.endpoint} names the commit {commit[:80]!r}, which is none")
        return Listing(repository, revision, commit, {file.path: file for file in files})


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    """Returns an entry of the listing. What it says becomes names on our disk, so only what is harmless is let in."""
    path = str(entry["rfilename"])
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not path.isprintable() or "\\" in path:
        raise ValueError(f"the file name {path[:80]!r} is not allowed")
    large = entry.get("lfs") or {}
    size = large.get("size", entry.get("size"))
    sha256, sha1 = large.get("sha256"), entry.get("blobId")
    for kind, value in (("sha256", sha256), ("sha1", sha1)):
        if value is not None and not _HASHES[kind].fullmatch(str(value)):
            raise ValueError(f"{path} has the {kind} {str(value)[:80]!r}")
    if not isinstance(size, int) or size < 0 or not (sha256 or sha1):
        raise ValueError(f"{path} has no size or no hash to verify it by")
    return RemoteFile(path, size, sha256, sha1)


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Returns how long the hub asks us to wait: Retry-After in seconds or as a date, or its rate limit's reset."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        with contextlib.suppress(ValueError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _http_library() -> Any:
    """Returns the module that huggingface_hub's session comes from: httpx, or its successor in later versions."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])
