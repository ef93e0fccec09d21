"""The hub as t2v asks it: where it is, what a repository holds, and how long to bear with it. No torch here.

The requests go through huggingface_hub's own session, so its proxies and certificates are in force, but the patience is
ours: the client tries again after fewer kinds of failure, and keeps nothing of a file from one run to the next.

What the hub answers is a stranger's, and so is what stands in the environment: every failure there is a ModelError that
names it. An answer has a size and a time in which it must be here. No message holds a password.
"""

from __future__ import annotations

import contextlib
import email.utils
import importlib
import importlib.util
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

from t2vcli import __version__
from t2vcli.errors import ModelError, UsageError
from t2vcli.paths import expanded
from t2vcli.quiet import keep_quiet

BRANCH = "main"

TRIES = 6
"""How many failures in a row, without a byte to show for them, end a download."""
FIRST_WAIT_S = 1.0
"""The wait after the first failure; each further one is twice as long."""
LONGEST_WAIT_S = 300.0
"""What the hub may ask us to wait. If it is more, the person is told and decides."""

MAX_LISTING_BYTES = 16 * 2**20
"""No repository with a model has a listing near this: a file takes some 200 bytes of it."""
ANSWER_S = 120.0
"""How long the head of an answer, or a whole listing, may take, however steadily its bytes come."""
SLOW_S, SLOW_BYTES = 60.0, 64 * 1024
"""A file of which fewer bytes than that come in such a time is asked for again."""

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
    clock: Callable[[], float] = time.monotonic
    token_problem: str | None = None

    @classmethod
    def from_environment(cls) -> Hub:
        """Returns the hub of HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_DOWNLOAD_TIMEOUT.

        Raises ModelError where one of them makes no sense, or where there is no home folder and none of them says where
        downloads go.
        """
        wrong = wrong_in_environment()
        if wrong:
            raise ModelError(wrong)
        from huggingface_hub import constants, get_token

        keep_quiet("huggingface_hub")
        token, problem = None, None
        try:
            cache = expanded(constants.HF_HUB_CACHE).absolute()
            elsewhere = any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"))
            homeless = os.environ.get("HOME") == "" and not elsewhere  # the client would take the root for the home
        except UsageError:
            homeless = True
        if homeless:
            raise ModelError("there is no home folder to keep models in; set HF_HOME to a folder for them")
        if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            try:
                token = get_token()
            except Exception as error:  # whatever it meets on its ways to a token; most models need none
                problem = f"the token cannot be read ({_first_line(error)}; HF_TOKEN or HF_TOKEN_PATH says what to use)"
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ModelError("HF_TOKEN, or the file it is read from, holds a character that no token has")
        return cls(
            endpoint=constants.ENDPOINT,
            cache=cache,
            timeout_s=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            token=token,
            token_problem=problem,
        )

    @property
    def shown(self) -> str:
        """The hub's address for a message."""
        return masked(self.endpoint)

    def listing(self, repository: str, *, revision: str | None, say: Say) -> Listing:
        """Returns what the repository holds, in one request. Raises ModelError, or GivenUp if the hub cannot be asked."""
        asked = revision or BRANCH
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        patience = Patience(self.wait, say)
        while True:
            try:
                with self.get(f"{self.endpoint}/api/models/{repository}{at}?blobs=true", repository, asked) as response:
                    return self._parsed(self._body(response), repository, asked)
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

        problem = _wrong_address(self.endpoint)
        if problem:
            raise ModelError(f"HF_ENDPOINT is {self.shown!r:.200}: {problem}")
        http = _http_library()
        # Compressed, a text file would have another length than the one listed, and could not be continued.
        headers = {"User-Agent": f"t2v/{__version__}", "Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if start:
            headers["Range"] = f"bytes={start}-"

        def ask() -> Any:
            session = get_session()
            request = session.build_request("GET", url, headers=headers, timeout=self.timeout_s)
            return session.send(request, stream=True, follow_redirects=True)

        try:
            response = _within(ANSWER_S, ask)
        except Exception as error:
            self._refuse(error, http)
        try:
            self._check(response, repository, revision)
            yield response
        except http.HTTPError as error:
            self._refuse(error, http)
        finally:
            response.close()

    def _refuse(self, error: Exception, http: Any) -> NoReturn:
        """Raises what a failed request means: Trouble for what may pass, ModelError for what will not."""
        if isinstance(error, Trouble):
            raise error
        if isinstance(error, http.HTTPError) and not isinstance(
            error, http.UnsupportedProtocol | http.LocalProtocolError | http.TooManyRedirects
        ):
            raise Trouble(
                self._reason(error, http),
                at_first_contact=isinstance(error, (http.ConnectError, http.ConnectTimeout, http.ProxyError)),
            ) from None
        said = _first_line(error) or type(error).__name__
        if self.token:
            said = said.replace(self.token, "***")
        raise ModelError(f"{self.shown} cannot be asked ({said}){_suspects()}") from None

    def _body(self, response: Any) -> bytes:
        """Returns the whole of an answer. Raises ModelError if it is too large, Trouble if it takes too long."""
        content, began_s = bytearray(), self.clock()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_LISTING_BYTES:
                raise ModelError(
                    f"{self.shown} answers with more than {MAX_LISTING_BYTES:,} bytes, which is no listing"
                )
            if self.clock() - began_s > ANSWER_S:
                raise Trouble(f"the listing was not here after {ANSWER_S:.0f} s")
        return bytes(content)

    def _reason(self, error: Exception, http: Any) -> str:
        if isinstance(error, http.ConnectError | http.ConnectTimeout):
            return f"{self.shown} cannot be reached ({_first_line(error) or 'no answer'})"
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
                f"{repository} is gated: accept its terms at {self.shown}/{repository} and give a token that may"
                " read it (HF_TOKEN)"
            )
        if code == "RevisionNotFound":
            raise ModelError(f"{repository} has no revision {revision}")
        if code == "EntryNotFound":
            raise ModelError(f"{repository} at {revision} lists a file that it does not have ({response.url.path})")
        if code == "RepoNotFound" or (status == 404 and not code):
            raise ModelError(f"the hub has no repository {repository}, or it needs a token (HF_TOKEN)")
        if status in (401, 403):
            given = "the token in use may not read it" if self.token else self.token_problem or "none is given"
            raise ModelError(f"{repository} needs a token that may read it (HF_TOKEN), and {given}: answer {status}")
        raise ModelError(f"{repository} at {revision} cannot be downloaded: {self.shown} answers {status}")

    def _parsed(self, content: bytes, repository: str, revision: str) -> Listing:
        try:
            answer = json.loads(content)
            commit = answer["sha"]
            files = {file.path: file for file in map(_remote_file, answer["siblings"])}
            for path in files:
                for folder in PurePosixPath(path).parents:
                    if str(folder) in files:
                        raise ValueError(f"{path[:80]!r} is in {str(folder)[:80]!r}, which is a file")
        except Exception as error:  # JSON of any form, of which nothing is known yet
            raise ModelError(
                f"{self.shown} answered with something that lists no repository ({type(error).__name__}:"
                f" {_first_line(error)}); is there a proxy or a login page in between?"
            ) from None
        if not isinstance(commit, str) or not _HASHES["sha1"].fullmatch(commit):
            raise ModelError(f"{self.shown} names the commit {commit!r:.80}, which is none")
        return Listing(repository, revision, commit, files)


MAX_NAME_BYTES = 255  # of a file or folder, on nearly all disks
MAX_PATH_BYTES = 1024


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    """Returns an entry of the listing. What it says becomes names on our disk, so only what is harmless is let in."""
    path = entry["rfilename"]
    if not isinstance(path, str) or not path.isprintable() or "\\" in path:
        raise ValueError(f"the file name {path!r:.80} is not allowed")
    parts = path.split("/")
    long = max(len(part.encode()) for part in parts) > MAX_NAME_BYTES or len(path.encode()) > MAX_PATH_BYTES
    if long or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"the file name {path!r:.80} is not allowed")
    large = entry.get("lfs") or {}
    size = large.get("size", entry.get("size"))
    sha256, sha1 = large.get("sha256"), entry.get("blobId")
    for kind, value in (("sha256", sha256), ("sha1", sha1)):
        if value is not None and not (isinstance(value, str) and _HASHES[kind].fullmatch(value)):
            raise ValueError(f"{path} has the {kind} {value!r:.80}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53 or not (sha256 or sha1):
        raise ValueError(f"{path} has no size or no hash to verify it by")
    return RemoteFile(path, size, sha256, sha1)


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Returns how long the hub asks us to wait: Retry-After in seconds or as a date, or its rate limit's reset."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    if value:
        with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None


def _first_line(error: Exception) -> str:
    return masked((str(error).strip().splitlines() or [""])[0])[:160]


def masked(text: str) -> str:
    """Returns a text with what stands for a name and a password in its addresses left out."""
    return re.sub(r"//\S*@", "//***@", text)


_Answer = TypeVar("_Answer")


def _within(limit_s: float, ask: Callable[[], _Answer]) -> _Answer:
    """Returns what `ask` does, or raises what it raises, or Trouble if it takes longer.

    A limit that the HTTP library does not have: it only knows how long no byte may come. What takes too long is left to
    itself, in a thread that does not keep the process from ending.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((ask(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise Trouble(f"no whole answer came in {limit_s:g} s")
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


# The environment

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def wrong_in_environment() -> str | None:
    """Returns what is wrong with the variables that the hub's client reads, in one sentence, or None.

    Some of them it reads when it is imported, which every library that loads models does.
    """
    for name in _SECONDS:
        value = os.environ.get(name, "")
        if value and not re.fullmatch(r"\s*[0-9]{1,6}\s*", value):
            return f"{name} is {value!r:.80}, which is no number of seconds"
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        value = os.environ.get(name, "")
        if value and os.path.exists(os.path.expanduser(value)) and not os.path.isdir(os.path.expanduser(value)):
            return f"{name} is {value!r:.200}, which is not a folder"
    endpoint = os.environ.get("HF_ENDPOINT", "")
    problem = _wrong_address(endpoint) if endpoint else None
    if problem:
        return f"HF_ENDPOINT is {masked(endpoint)!r:.200}: {problem}"
    for name in _PROXIES:
        for each in (name, name.lower()):
            value = os.environ.get(each, "")
            problem = _wrong_address(value, proxy=True) if value else None
            if problem:
                return f"{each} is {masked(value)!r:.200}: {problem}"
    for name in _CERTIFICATES[:2]:
        value = os.environ.get(name, "")
        if value and not os.path.exists(value):
            return f"{name} is {value!r:.200}, which does not exist"
    return None


def _wrong_address(address: str, *, proxy: bool = False) -> str | None:
    """Returns why this is no address of a hub or a proxy, or None."""
    kinds = ("http", "https", "socks5", "socks5h") if proxy else ("http", "https")
    if proxy and "://" not in address:
        address = f"http://{address}"  # as every client takes it
    if not address.isprintable() or " " in address:
        return "it holds a character that no address has"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:  # whose words may hold a part of a password
        return "it cannot be read as an address"
    if parts.scheme not in kinds or not host:
        return f"it is no {' or '.join(kinds[:2])} address"
    if port == 0 or not _is_host(host):
        return f"the host {host!r:.80} or the port cannot be"
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio (pip install socksio), or use an HTTP proxy"
    return None


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
        return True
    except ValueError:
        pass
    try:
        labels = host.rstrip(".").encode("idna").split(b".")
    except UnicodeError:
        return False
    return all(0 < len(label) <= 63 for label in labels)


def _suspects() -> str:
    """Returns which variables may be the reason why a request could not even be made."""
    names = [n for name in (*_PROXIES, *_CERTIFICATES) for n in {name, name.lower()} if os.environ.get(n)]
    return f"; it may be by {', '.join(sorted(names))}" if names else ""


def _http_library() -> Any:
    """Returns the module that huggingface_hub's session comes from: httpx, or its successor in later versions."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])
