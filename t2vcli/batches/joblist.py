"""A list of jobs, planned: each with its seed, its name and its identity, and every mistake told at once.

Planned jobs lie in a file without a name, so that a list of 100,000 takes a few megabytes of memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from t2vcli.batches.fields import KNOWN, OF_THE_LIST, unknown
from t2vcli.batches.files import MAX_JOBS, Entry, Format, Problem, entries
from t2vcli.batches.spread import Spread, spread_of
from t2vcli.errors import InputError, T2VError, UsageError

MAX_SHOWN = 50
MAX_META_BYTES = 64 * 1024
MAX_NAME_BYTES = 200
MAX_PART = 60
DEFAULT_NAME = "{slug}-{hash}"


@dataclass(frozen=True, slots=True)
class Decided:
    """What the fields of a job come to.

    `identity` is all that decides the frames, as JSON values: two jobs of one identity make the same clip. Jobs of one
    `group` (model, shape) are best made one after the other. `cost` is for balance only, in any unit. `named` are the
    values that a name may hold, `check` raises T2VError for an output (a path below the folder) that cannot be, and `saved`
    are the paths of what is written beside it.
    """

    identity: Mapping[str, Any]
    group: str
    cost: float
    named: Mapping[str, Any]
    check: Callable[[str], None] = lambda output: None
    saved: tuple[str, ...] = ()


Decide = Callable[[dict[str, Any]], Decided]
"""The fields of a job, seed included -> what they come to. Raises T2VError if a value is wrong."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One job of a batch. `output` is a path below the batch's folder, `hash` that of the identity (64 digits)."""

    index: int
    line: int
    id: str
    output: str
    hash: str
    seed: int
    fields: Mapping[str, Any]
    meta: Mapping[str, Any] = field(default_factory=dict)


class BadList(T2VError):  # noqa: N818 - the list is bad, the error is not
    """A list with mistakes: `lines` has a sentence for each, as far as they are shown, and `summary` counts them."""

    def __init__(self, summary: str, lines: Sequence[str], exit_code: int) -> None:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        super().__init__(f"{summary}: {'; '.join(lines[:5])}{more}")
        self.summary = summary
        self.lines = tuple(lines)
        self.exit_code = exit_code


def canonical(value: object) -> bytes:
    """Returns JSON that is the same for equal values."""
    return _CANONICAL.encode(value).encode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # made once: a list may hold 100,000 jobs


def identity_hash(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(identity)).hexdigest()


def drawn_seed(fields: Mapping[str, Any], before: int) -> int:
    """Returns the seed of a job that names none: from its content, and from how many equal ones come before it.

    So the same list gives the same clips on every run and in every shard, and a line put in between moves no other.
    """
    return int.from_bytes(hashlib.sha256(canonical([dict(fields), before])).digest()[:4])


class JobList:
    """The jobs of a list in its order, counted from 0; each is read back when it is asked for."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the list
        self._offsets = array("Q")
        self._groups = array("L")
        self._costs = array("d")
        self._group_numbers: dict[str, int] = {}
        self.problems: list[str] = []
        self.wrong = 0

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Planned:
        self._file.seek(self._offsets[index])
        return Planned(*json.loads(self._file.readline()))

    def __iter__(self) -> Iterator[Planned]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        self._file.close()

    @property
    def groups(self) -> int:
        """How many groups the jobs fall into."""
        return len(self._group_numbers)

    def group(self, index: int) -> int:
        """Returns the number of a job's group."""
        return self._groups[index]

    def _add(self, job: Planned, decided: Decided) -> None:
        self._offsets.append(self._file.seek(0, 2))
        values = (job.index, job.line, job.id, job.output, job.hash, job.seed, job.fields, job.meta)
        self._file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
        self._groups.append(self._group_numbers.setdefault(decided.group, len(self._group_numbers)))
        self._costs.append(decided.cost)

    def order(self, shard: tuple[int, int] = (1, 1)) -> array[int]:
        """Returns the jobs of a shard (its number from 1, and of how many): group by group, contiguous, of equal cost.

        Every shard finds the same cuts by itself: a job belongs to the piece that the middle of its cost falls into.
        """
        ordered = sorted(range(len(self)), key=self._groups.__getitem__)
        number, count = shard
        total = sum(self._costs)
        chosen, before = array("Q"), 0.0
        for place, index in enumerate(ordered):
            middle = before + self._costs[index] / 2
            before += self._costs[index]
            piece = int(middle / total * count) if total > 0 else place * count // len(ordered)
            if min(piece, count - 1) == number - 1:
                chosen.append(index)
        return chosen


def read_list(
    file: IO[bytes],
    name: str,
    kind: Format | None,
    decide: Decide,
    *,
    template: str = DEFAULT_NAME,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    skip_invalid: bool = False,
    on_read: Callable[[int], None] = lambda count: None,
) -> JobList:
    """Returns the jobs of a list, all of them checked. `name` is the list's, for messages.

    `defaults` are fields of the jobs that have none of their own.
    Raises BadList with every mistake, unless `skip_invalid`: then `problems` has them. Raises InputError for a list that
    is empty or cannot be read, UsageError for a `template` that makes no names.
    """
    check_template(template)
    jobs = JobList()
    reading = _Reading(jobs, name, decide, template)
    for entry in entries(file, name, kind):
        if isinstance(entry, Problem):
            reading.add_problem(entry)
        else:
            reading.add(Entry(entry.line, {**defaults, **entry.fields}) if defaults else entry)
            on_read(len(jobs))
    if reading.wrong and not skip_invalid:
        noun = "mistake" if reading.wrong == 1 else "mistakes"
        raise BadList(
            f"{name} has {reading.wrong:,} {noun}, so nothing was started (--skip-invalid goes on without those jobs)",
            reading.sentences(),
            reading.exit_code,
        )
    if not len(jobs) and not reading.wrong:
        raise InputError(f"{name} holds no jobs")
    jobs.problems, jobs.wrong = reading.sentences(), reading.wrong
    return jobs


def list_of(
    fields: Mapping[str, Any],
    variants: Iterable[Mapping[str, Any]],
    decide: Decide,
    *,
    template: str,
    free: Callable[[Planned], bool] | None = None,
) -> JobList:
    """Returns the jobs of one that is made several times, each with the fields of its own in `variants`.

    With `free` the template is t2v's own: a name that is another clip's gets the job's hash. Raises T2VError.
    """
    jobs = JobList()
    reading = _Reading(jobs, "these clips", decide, template, free)
    for own in variants:
        jobs._add(*reading.planned(Entry(1, {}), {**fields, **own}, {}))
    return jobs


class _Reading:
    """Entries on their way to planned jobs, with what must be known of all of them at once."""

    def __init__(
        self,
        jobs: JobList,
        name: str,
        decide: Decide,
        template: str,
        free: Callable[[Planned], bool] | None = None,
    ) -> None:
        self.jobs = jobs
        self.name = name
        self.decide = decide
        self.template = template
        self.free = free
        self.wrong = 0
        self.exit_code = UsageError.exit_code
        self._sentences: list[str] = []
        self._alike: dict[int, int] = {}
        self._taken: set[int] = set()

    def add_problem(self, problem: Problem, exit_code: int = UsageError.exit_code) -> None:
        """Notes what is wrong with a line. The first one's exit code is that of the list."""
        self.wrong += 1
        if self.wrong == 1:
            self.exit_code = InputError.exit_code if problem.unreadable else exit_code
        if len(self._sentences) < MAX_SHOWN:
            text = problem.text if len(problem.text) <= 600 else problem.text[:597] + "..."
            self._sentences.append(f"{self.name}:{problem.line}: {text}")

    def sentences(self) -> list[str]:
        more = self.wrong - len(self._sentences)
        return [*self._sentences, f"and {more:,} more"] if more else self._sentences

    def add(self, entry: Entry) -> None:
        try:
            for job, decided in self._all_planned(entry):
                self.jobs._add(job, decided)
        except T2VError as error:
            self.add_problem(Problem(entry.line, str(error)), error.exit_code)
        if len(self.jobs) > MAX_JOBS:
            raise InputError(f"{self.name} makes more than {MAX_JOBS:,} jobs, the most for a batch; split it")

    def _all_planned(self, entry: Entry) -> Iterator[tuple[Planned, Decided]]:
        """Yields the jobs that an entry makes: one, or as many as its count, seeds and sweep say. Raises UsageError."""
        wrong = [unknown(str(name)) for name in entry.fields if name not in KNOWN]
        if wrong:
            raise UsageError("; ".join(wrong))
        own = {"id": _id_in(entry.fields), "output": _output_in(entry.fields), "meta": _meta_in(entry.fields)}
        spread = spread_of(entry.fields, MAX_JOBS)
        fields = {
            name: value
            for name, value in entry.fields.items()
            if name not in OF_THE_LIST and name != "output" and value is not None
        }
        for number, variant in enumerate(spread.variants(self._first_seed(fields, spread)), start=1):
            ending = f"-{number}" if spread.written else ""
            yield self.planned(entry, {**fields, **variant}, own, ending)

    def _first_seed(self, fields: dict[str, Any], spread: Spread) -> Any:
        """Takes the seed out of a job's fields; one that has none gets it from its content."""
        first = fields.pop("seed", None)
        if first is None and spread.seeds is None and fields.get("from_clip") is not None:
            if spread.count is None or spread.count == 1:  # the one in the recipe
                return None
            return self.decide({**fields, **next(iter(replace(spread, count=None).variants(None)))}).named["seed"]
        if first is None and spread.seeds is None:
            content = int.from_bytes(hashlib.blake2b(canonical(fields), digest_size=8).digest())
            first = drawn_seed(fields, self._alike.get(content, 0))
            self._alike[content] = self._alike.get(content, 0) + 1
        return first

    def planned(
        self, entry: Entry, fields: dict[str, Any], own: Mapping[str, Any], ending: str = ""
    ) -> tuple[Planned, Decided]:
        """Returns a job with its name; `own` are its id, output and meta, `ending` tells it from those beside it."""
        decided = self.decide(fields)
        job = Planned(
            index=len(self.jobs) + 1,
            line=entry.line,
            id="",
            output="",
            hash=identity_hash(decided.identity),
            seed=decided.named.get("seed", fields.get("seed")),
            fields=fields,
            meta=own.get("meta") or {},
        )
        own_id = own.get("id") and own["id"] + ending
        name = self._name(job, decided, own_id, own.get("output"), ending)
        job = replace(job, output=name)
        if self.free is not None and (self._is_taken("the output", name) or not self.free(job)):
            place = PurePosixPath(name)
            name = str(place.with_name(f"{place.stem}-{job.hash[:8]}{place.suffix}"))
        decided.check(name)
        job = replace(job, output=name, id=own_id or str(PurePosixPath(name).with_suffix("")))
        for what, value in (("the output", name), ("the id", job.id)):
            if not self._take(what, value):
                raise UsageError(self._twice(what, value, entry.line))
        for path in decided.saved:
            if not self._take("the saved file", path):
                raise UsageError(
                    f"{path} would be written by another job, too; each that saves one needs a file of its own"
                )
        return job, decided

    def _name(self, job: Planned, decided: Decided, own_id: str | None, output: str | None, ending: str) -> str:
        if output is not None:
            path = PurePosixPath(output)
            return str(path.with_name(path.stem + ending + path.suffix)) if ending else output
        if own_id is not None and self.template == DEFAULT_NAME:
            return own_id + ".mp4"
        values = {**job.fields, **decided.named, "index": job.index, "line": job.line, "hash": job.hash[:8]}
        name = filled(self.template, {**values, "seed": job.seed, "id": own_id or job.hash[:8]})
        return name if re.search(r"\.[a-z0-9]{2,4}$", self.template) else name + ".mp4"

    def _twice(self, what: str, value: str, line: int) -> str:
        other = self._who_has(what, value)
        if other == line:
            return (
                f"two of the clips would have one name, {_short(value)}; put what differs between them into the pattern"
                f" of their names ({self.template}), such as {{seed}} or {{index}}"
            )
        return f"{what} {_short(value)} is also that of the job on line {other}"

    def _take(self, what: str, value: str) -> bool:
        if self._is_taken(what, value):
            return False
        self._taken.add(_mark(what, value))
        return True

    def _is_taken(self, what: str, value: str) -> bool:
        return _mark(what, value) in self._taken

    def _who_has(self, what: str, value: str) -> int:
        return next((job.line for job in self.jobs if value == (job.output if what == "the output" else job.id)), 0)


def _mark(what: str, value: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{what} {value}".encode(), digest_size=8).digest())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _id_in(fields: Mapping[str, Any]) -> str | None:
    given = [name for name in ("id", "custom_id") if fields.get(name) is not None]
    if len(given) == 2:
        raise UsageError("give id or custom_id, not both: they mean the same")
    if not given:
        return None
    value = fields[given[0]]
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
        raise UsageError(
            f"{given[0]} {_short(value)} must be 1 to 100 letters, digits, dots, dashes or underscores: it names the file"
        )
    return value


def _meta_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    meta = fields.get("meta")
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        raise UsageError(f"meta {_short(meta)} must be a mapping of your own names and values")
    if len(canonical(meta)) > MAX_META_BYTES:
        raise UsageError(f"meta is larger than {MAX_META_BYTES // 1024} KiB")
    return meta


def _output_in(fields: Mapping[str, Any]) -> str | None:
    output = fields.get("output")
    if output is None:
        return None
    if not isinstance(output, str) or not output or "\0" in output:
        raise UsageError(f"output {_short(output)} must be the path of a video below the batch's folder")
    path = PurePosixPath(output)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] in ((), ("~",)) or output.endswith("/"):
        raise UsageError(
            f"output {_short(output)} must lie below the batch's folder, without / in front and without .."
        )
    return str(path)


# Names

_OWN_NAMES = ("index", "line", "id", "slug", "seed", "hash", "command", "preset")


@functools.cache
def _parts(template: str) -> list[tuple[str, str | None, str]]:
    """Returns (text, name, how it is written) for each part of a template. Raises UsageError."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the pattern of names {template!r} cannot be read: {error}") from None
    found = []
    for text, name, spec, conversion in parsed:
        if name is not None:
            if name not in _OWN_NAMES and name not in KNOWN:
                raise UsageError(
                    f"the pattern of names {template!r} has {name!r}; {', '.join(_OWN_NAMES)} and a job's fields are known"
                )
            if conversion or not re.fullmatch(r"0?[0-9]{0,2}", spec or ""):
                raise UsageError(f"the pattern of names {template!r}: after {name}: only a width such as 04 is known")
        found.append((text, name, spec or ""))
    return found


def check_template(template: str) -> None:
    """Raises UsageError if a template cannot name the clips of a batch."""
    parts = _parts(template)
    if "/" in template or template.startswith(".") or "\0" in template or not template:
        raise UsageError(f"the pattern of names {template!r} must name a file in the batch's folder")
    if not any(name for _, name, _ in parts):
        raise UsageError(
            f"the pattern of names {template!r} would give every clip the same name; put {{index:04}} or {{hash}} into it"
        )


def filled(template: str, values: Mapping[str, Any]) -> str:
    """Returns the name that a template makes of a job's values; of what is no number, letters and digits are left."""
    name = ""
    for text, key, spec in _parts(template):
        name += text
        if key is not None:
            value = values.get(key)
            value = f"{value:g}" if isinstance(value, float) else value
            if isinstance(value, int) and not isinstance(value, bool):
                name += format(value, spec + "d")
            else:
                name += re.sub(r"[^A-Za-z0-9._-]+", "-", "" if value is None else str(value)).strip("-.")[:MAX_PART]
    name = name.lstrip("-.")
    if len(name) > MAX_NAME_BYTES:
        raise UsageError(f"the pattern of names makes names of {len(name)} characters; the most is {MAX_NAME_BYTES}")
    return name
