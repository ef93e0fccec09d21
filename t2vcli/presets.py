"""Presets: YAML files that name a model and the values it is used with.

    load_preset("zeroscope-XL") -> find the file -> read it -> follow `extends` -> check -> Preset

A name is looked for in the folders of $T2V_PRESETS, then in the user's configuration folder, then among the shipped
configs; the first one found hides the others. A file that extends its own name extends the one that it hides.
Every value is checked by the request's own rules, and a mistake is named with its file and line.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import platformdirs
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from t2vcli.errors import InputError, T2VError, UsageError
from t2vcli.loras import located
from t2vcli.paths import expanded, expanded_model
from t2vcli.plain_yaml import with_plain_numbers
from t2vcli.report import counted
from t2vcli.request import (
    MAX_FRAMES,
    MAX_STEPS,
    TRAITS,
    GenerateRequest,
    Request,
    Side,
    Text,
    UpscaleRequest,
    describe_problem,
)
from t2vcli.strangers import UnreadableError, read_bytes

Task = Literal["generate", "upscale"]
REQUESTS: dict[str, type[Request]] = {"generate": GenerateRequest, "upscale": UpscaleRequest}

SUFFIXES = (".yaml", ".yml")
MAX_FILE_BYTES = 256 * 1024
MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class TrainedRange:
    """The clips that a model was trained on: their least and most frames, and their size in pixels.

    And, of one that was distilled, the least and the most of the steps and of the guidance scale that it is made for.
    """

    least_frames: int
    most_frames: int
    width: int
    height: int
    steps: tuple[int, int] | None = None
    guidance_scale: tuple[float, float] | None = None

    @property
    def made_for(self) -> str | None:
        """Returns in words what a distilled model is made for."""
        told = [
            f"{name} {_span(span)}" for name, span in (("steps", self.steps), ("guidance", self.guidance_scale)) if span
        ]
        return ", ".join(told) or None


@dataclass(frozen=True)
class Preset:
    """A model and its values. `values` holds request fields only; `sources` says which file set each key."""

    name: str
    path: Path
    description: str
    task: Task
    licence: str | None
    download_bytes: int | None
    architecture: str | None  # its name in the table of memory predictions
    trained: TrainedRange | None
    notes: tuple[str, ...]
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    longest_pass: int | None = None  # the most frames that are known to hold together in one pass
    upscaler: str | None = None  # the preset that enlarges its clips
    speeds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what --speed NAME sets: all the same fields
    speeds_measured: str | None = None  # where it is told what they leave of the quality; None: nobody has measured it
    time_cond_proj_dim: int | None = None  # how many numbers of the guidance scale its LoRA has the UNet take

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: views of mappings cannot be."""
        plain = {name: dict(getattr(self, name)) for name in ("values", "sources", "speeds")}
        return {**vars(self), **plain}

    def values_for(self, kind: type[Request]) -> dict[str, Any]:
        """Returns the values that such a request has: an upscale takes no `frames`, a generation no `strength`."""
        return {key: value for key, value in self.values.items() if key in kind.model_fields}

    def download_of(self, request: Request) -> int | None:
        """Returns what the request's model comes to as a download: known if it is this preset's own."""
        own = all(getattr(request, key) == (self.values.get(key) or None) for key in ("model", "revision", "variant"))
        return self.download_bytes if own else None


# What a file may hold


def _check_frame_range(value: object) -> object:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) for n in value)
        or not 1 <= value[0] <= value[1] <= MAX_FRAMES
    ):
        raise ValueError(f"must be two whole numbers, the least and the most, from 1 to {MAX_FRAMES}")
    return value


def _check_range(value: object) -> object:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(isinstance(n, bool) or not isinstance(n, int | float) for n in value)
        or not 0 <= value[0] <= value[1] <= MAX_STEPS
    ):
        raise ValueError(f"must be two numbers, the least and the most, from 0 to {MAX_STEPS}")
    return value


class _Trained(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    frames: Annotated[list[int], BeforeValidator(_check_frame_range)]
    width: Side
    height: Side
    steps: Annotated[list[int], BeforeValidator(_check_range)] | None = None
    guidance_scale: Annotated[list[float], BeforeValidator(_check_range)] | None = None


SET_BY_SPEED = (
    "steps",
    "guidance_scale",
    "scheduler",
    "spacing",
    "timesteps",
    "guidance_from",
    "guidance_until",
    "cache",
    "cache_level",
    "cache_first",
)
"""The fields that a speed may set."""


def _check_speeds(value: object) -> object:
    for name, fields in value.items() if isinstance(value, dict) else ():
        if name not in ("fast", "turbo"):
            raise ValueError(f"has {str(name)[:40]!r}, and may have fast and turbo; exact is the preset itself")
        unknown = [str(field) for field in fields if field not in SET_BY_SPEED] if isinstance(fields, dict) else []
        if unknown or not isinstance(fields, dict):
            told = f"{name} sets {unknown[0][:40]!r}" if unknown else f"{name} must be a mapping"
            raise ValueError(f"of {told}; a speed sets some of {', '.join(SET_BY_SPEED)}")
    return value


class _Header(BaseModel):
    """The keys of a preset that are no request fields. `extends` is taken out before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    description: Text = ""
    task: Task | None = None
    licence: Text | None = None
    download_bytes: Annotated[int, Field(ge=0)] | None = None
    architecture: Text | None = None
    trained: _Trained | None = None
    longest_pass: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    upscaler: Text | None = None
    speeds: Annotated[dict[str, dict[str, Any]], BeforeValidator(_check_speeds)] | None = None
    speeds_measured: Text | None = None
    time_cond_proj_dim: Annotated[int, Field(ge=1, le=65536)] | None = None
    notes: list[Text] = []


_REQUEST_FIELDS = {
    name: field for kind in REQUESTS.values() for name, field in kind.model_fields.items() if TRAITS[name].in_presets
}


def _rules_of(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


_OPTIONAL: dict[str, Any] = {name: (_rules_of(field), None) for name, field in _REQUEST_FIELDS.items()}
_PresetFile = create_model("_PresetFile", __base__=_Header, **_OPTIONAL)
LISTS = frozenset({"lora"})  # the fields of a request that may be a list
_KEYS = ("extends", *_Header.model_fields, *_REQUEST_FIELDS)


_NO_SINGLE_VALUES: dict[str, tuple[type, str]] = {
    "notes": (list, "a list of texts"),
    "trained": (dict, "a mapping with frames, width and height"),
    "speeds": (dict, "a mapping with fast and turbo"),
}

# Reading one file


@dataclass(frozen=True)
class _Source:
    """One file as read: its checked keys, and the line of each."""

    path: Path
    shown: str
    extends: str | None
    values: dict[str, Any]
    lines: dict[str, int]

    def where(self, key: str) -> str:
        return f"{self.shown}:{self.lines[key]}"


@with_plain_numbers
class _Loader(yaml.SafeLoader):
    """YAML without what a preset has no use for: tags, anchors and aliases, and keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(None, None, "a preset cannot hold anchors and aliases", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(None, None, f"a preset cannot hold the tag {event.tag}", event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    number: int = loader.construct_yaml_int(node)
    if abs(number) > MAX_NUMBER:
        raise OverflowError
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _read(path: Path) -> _Source:
    """Returns the file's keys, each checked by itself. Raises InputError."""
    shown = _show(path)
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise InputError(f"the preset file {shown} does not exist") from None
    except UnreadableError as error:
        raise InputError(f"the preset file {shown} cannot be read: {error}") from None

    raw, lines = _parse(content, shown)
    _reject_unknown(raw, _KEYS, shown, lines)
    for key, value in raw.items():
        if key in LISTS and isinstance(value, list):
            continue
        wanted, kind = _NO_SINGLE_VALUES.get(key, (None, ""))
        if wanted and value is not None and not isinstance(value, wanted):
            raise InputError(f"{key} in {shown}:{lines[key]} must be {kind}")
        if not wanted and isinstance(value, list | dict | set):
            raise InputError(f"{key} in {shown}:{lines[key]} must be a single value, not a list or a mapping")
    if isinstance(raw.get("trained"), dict):
        _reject_unknown(map(str, raw["trained"]), tuple(_Trained.model_fields), shown, lines, inside="trained")

    extends = raw.pop("extends", None)
    if extends is not None and (not isinstance(extends, str) or not extends):
        raise InputError(f"extends in {shown}:{lines['extends']} must be the name or the path of a preset")
    try:
        checked = _PresetFile.model_validate(raw)
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda problem: lines[str(problem["loc"][0])])
        raise InputError("; ".join(_sentence(problem, shown, lines) for problem in problems)) from None
    return _Source(path, shown, extends, {key: getattr(checked, key) for key in raw}, lines)


def _parse(content: bytes, shown: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the top level of the YAML and the line of each of its keys, counted from 1."""
    line: int | None = None
    try:
        loader = _Loader(content)
        root = loader.get_single_node()
        if root is None:
            raise InputError(f"the preset file {shown} is empty")
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{shown}:{root.start_mark.line + 1} must hold `key: value` lines, as a preset does")
        values, lines = {}, {}
        for key, node in root.value:
            line = key.start_mark.line + 1
            values[key.value] = loader.construct_object(node, deep=True)
            lines[key.value] = line
        return values, lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        problem = _shorten(str(error.problem or error.context), most=200)
        raise InputError(f"{where} is not a valid preset: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{shown} is not text at position {error.position}: {error.reason}") from None
    except RecursionError:
        raise InputError(f"{shown} is nested too deeply to be a preset") from None
    except (ValueError, OverflowError):  # the number or date that YAML took a plain word for does not exist
        raise InputError(f"{shown}:{line} holds a number or a date that cannot be read") from None


def _reject_unknown(
    given: Iterable[str], known: tuple[str, ...], shown: str, lines: Mapping[str, int], inside: str = ""
) -> None:
    for key in given:
        if key in known:
            continue
        where = f"{shown}:{lines[inside or key]}"
        name = f"{inside}.{key}" if inside else key
        if key in TRAITS and not inside:
            raise InputError(f"{name!r} in {where} is chosen for each run; it cannot be set in a preset")
        near = _nearest(key, known)
        hint = f"did you mean {near!r}?" if near else f"the keys are {', '.join(known)}"
        raise InputError(f"{_shorten(name)!r} in {where} is not a preset key; {hint}")


def _sentence(problem: Any, shown: str, lines: Mapping[str, int]) -> str:
    key = ".".join(str(part + 1 if isinstance(part, int) else part) for part in problem["loc"])
    where = f"{shown}:{lines[str(problem['loc'][0])]}"
    return _shorten(describe_problem({**problem, "loc": (key,)}, {key: problem["input"]}, {key: where}), most=600)


def _nearest(word: str, known: Iterable[str]) -> str | None:
    folded = {name.casefold(): name for name in known}
    for name in folded:
        if name.startswith(word.casefold() + "_"):  # its first part: the first of that kind is the one most often meant
            return folded[name]
    near = difflib.get_close_matches(word[:100].casefold(), folded, n=1, cutoff=0.5)
    return folded[near[0]] if near else None


def _suggest_preset(word: str, known: Iterable[str]) -> str:
    names = sorted(known, key=str.casefold)
    near = _nearest(word, names)
    hint = f"did you mean {near!r}? The" if near else "the"
    return f"{hint} presets are {', '.join(names)}" if names else "there are none"


def _shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


# Finding files


def shipped_folder() -> Path:
    """Returns the folder of the shipped presets: inside an installed package, beside it in a source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def preset_folders() -> list[Path]:
    """Returns the folders that are searched, the first to be asked first."""
    given = os.environ.get("T2V_PRESETS", "").split(os.pathsep)
    return [*(expanded(folder) for folder in given if folder.strip()), *user_folder(), shipped_folder()]


def user_folder() -> list[Path]:
    """Returns the folder of the user's own presets, none for a user without a home folder."""
    try:
        return [platformdirs.user_config_path("t2v") / "presets"]
    except RuntimeError:
        return []


def _index() -> dict[str, list[Path]]:
    """Returns every preset name with its files, the one in force first and those it hides after it."""
    found: dict[str, list[Path]] = {}
    own = user_folder()
    for folder in preset_folders():
        try:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            if folder in own:  # nobody asked for it: what is elsewhere is found without it
                continue
            raise InputError(f"the preset folder {_show(folder)} cannot be read: {error.strerror}") from None
        for file in files:
            if file.suffix in SUFFIXES and not file.name.startswith("."):
                same = found.setdefault(file.stem, [])
                if file not in same:
                    same.append(file)
    return found


def _unseen() -> str:
    """Returns why a preset of the user's own could not be found, if that can be."""
    for folder in user_folder():
        try:
            os.listdir(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"; the folder of your own, {_show(folder)}, cannot be read: {error.strerror}"
    return ""


def _is_path(name_or_path: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return name_or_path.endswith(SUFFIXES) or any(separator in name_or_path for separator in separators)


def _show(path: Path) -> str:
    """Returns the short form of a path: `configs/NAME.yaml` for a shipped one, `~/...` in the home folder."""
    if path.parent == shipped_folder():
        return f"configs/{path.name}"
    home = os.path.expanduser("~")
    text = str(path)
    return "~" + text[len(home) :] if home != os.sep and text.startswith(home + os.sep) else text


# Putting them together


_kept: dict[str, Preset] | None = None


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Has each preset's files read once for the time of the outermost block: a list of 100,000 jobs names a few.

    So an edit does not change the jobs of a list that are still to come.
    """
    global _kept
    outer = _kept
    _kept = {} if outer is None else outer
    try:
        yield
    finally:
        _kept = outer


def load_preset(name_or_path: str) -> Preset:
    """Returns the preset of that name, or the one in that file if the value is a path.

    Raises UsageError for a name that is not found, InputError for a file that is no good preset.
    """
    if _kept is None:
        return _found(name_or_path)
    if name_or_path not in _kept:
        _kept[name_or_path] = _found(name_or_path)
    return _kept[name_or_path]


def known_preset(name: str) -> Preset | None:
    """Returns the preset of that name, None if there is none: a stranger's word is never a path.

    Raises InputError if its file is no good preset.
    """
    return load_preset(name) if not _is_path(name) and name in _index() else None


def _found(name_or_path: str) -> Preset:
    if _is_path(name_or_path):
        return _load(expanded(name_or_path))
    index = _index()
    if name_or_path not in index:
        hint = _suggest_preset(name_or_path, index)
        if len(name_or_path.split()) > 1:
            hint = f"a prompt is no preset: -p is short for --preset, and the prompt stands by itself; {hint}"
        raise UsageError(
            f"there is no preset {_shorten(name_or_path)!r}; {hint} (`t2v presets` describes them){_unseen()}"
        )
    return _load(index[name_or_path][0])


def list_presets() -> tuple[list[Preset], dict[str, T2VError]]:
    """Returns the presets in force, sorted by name, and for each name whose file is no good preset its error."""
    presets: list[Preset] = []
    broken: dict[str, T2VError] = {}
    for name, files in sorted(_index().items(), key=lambda item: item[0].casefold()):
        try:
            presets.append(_load(files[0]))
        except T2VError as error:
            broken[name] = error
    return presets, broken


def fingerprint() -> str:
    """Returns a hash of the names and values of the presets in force. Raises InputError as `load_preset`."""
    values = {preset.name: dict(preset.values) for preset in list_presets()[0]}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _load(path: Path) -> Preset:
    chain = list(_follow(path))
    layers = [source.values for source in chain]
    merged: dict[str, Any] = {}
    setter: dict[str, _Source] = {}
    for source in reversed(chain):
        merged |= source.values
        setter |= dict.fromkeys(source.values, source)
    shown = chain[0].shown

    task = merged.get("task")
    if task is None:
        raise InputError(f"task in {shown} is missing; it is generate or upscale")
    trained = merged.get("trained")
    preset = Preset(
        name=path.stem,
        path=path,
        description=merged.get("description", ""),
        task=task,
        licence=merged.get("licence"),
        download_bytes=merged.get("download_bytes"),
        architecture=merged.get("architecture"),
        trained=trained
        and TrainedRange(
            trained.frames[0],
            trained.frames[1],
            trained.width,
            trained.height,
            steps=trained.steps and (trained.steps[0], trained.steps[1]),
            guidance_scale=trained.guidance_scale and (trained.guidance_scale[0], trained.guidance_scale[1]),
        ),
        notes=tuple(merged.get("notes", ())),
        values=MappingProxyType(
            {key: _beside(key, value, setter[key].path) for key, value in merged.items() if key in _REQUEST_FIELDS}
        ),
        sources=MappingProxyType({key: source.shown for key, source in setter.items()}),
        longest_pass=merged.get("longest_pass"),
        upscaler=merged.get("upscaler"),
        speeds=_speeds(merged),
        speeds_measured=None if _changed_since("speeds_measured", layers) else merged.get("speeds_measured"),
        time_cond_proj_dim=merged.get("time_cond_proj_dim"),
    )
    where = {key: source.where(key) for key, source in setter.items()}
    _check_complete(preset, where, shown)
    if not _changed_since("speeds", layers):  # else it may be that one does not fit, which whoever takes it is told
        _check_speeds_fit(preset, where)
    return preset


def _speeds(merged: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the values of each speed, exact among them: each sets all fields that any of them sets."""
    written: dict[str, dict[str, Any]] = merged.get("speeds") or {}
    exact = {
        name: merged.get(name, _REQUEST_FIELDS[name].default)
        for name in SET_BY_SPEED
        if any(name in fields for fields in written.values())
    }
    return MappingProxyType({name: {**exact, **fields} for name, fields in {"exact": {}, **written}.items()})


def _changed_since(key: str, chain: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a file nearer than the one with `key` changes the model, or what a speed sets."""
    nearer = itertools.takewhile(lambda values: key not in values, chain)  # the nearest first
    return any(not {"model", "lora", "speeds", *SET_BY_SPEED}.isdisjoint(values) for values in nearer)


def _follow(path: Path) -> Iterator[_Source]:
    """Yields the file and, one after the other, what it extends."""
    seen: list[Path] = []
    while True:
        source = _read(path)
        yield source
        seen.append(path.resolve())
        if source.extends is None:
            return
        path = _parent(source)
        if path.resolve() in seen:
            names = " -> ".join([*(_show(file) for file in seen), _show(path)])
            raise InputError(f"extends in {source.where('extends')} goes round in a circle: {names}")


def _parent(source: _Source) -> Path:
    name = source.extends or ""
    if _is_path(name):
        return source.path.parent / expanded(name)
    index = _index()
    files = index.get(name, [])
    if name == source.path.stem:  # the file extends what it hides
        own = [position for position, file in enumerate(files) if file.resolve() == source.path.resolve()]
        files = files[own[0] + 1 :] if own else files
        if not files:
            raise InputError(
                f"extends in {source.where('extends')} names the file itself, and it hides no other {name!r}"
            )
    if not files:
        hint = _suggest_preset(name, (other for other in index if other != source.path.stem))
        raise InputError(f"extends in {source.where('extends')} names no preset {_shorten(name)!r}; {hint}")
    return files[0]


def _beside(key: str, value: Any, path: Path) -> Any:
    """Returns the value of a key; what of it begins with ./ or ../ is beside the preset's file, ~ at home."""
    if key == "model":
        return _local_model(value, path)
    return tuple(located(value, path.resolve().parent)) if key == "lora" else value


def _local_model(model: str, path: Path) -> str:
    """Returns the model; one that starts with ./ or ../ is a folder beside the preset's file, ~ one at home."""
    if model.startswith(("./", "../")):
        return str(path.resolve().parent / model)
    return expanded_model(model)


def _check_complete(preset: Preset, where: Mapping[str, str], shown: str) -> None:
    """Raises InputError unless the preset alone, with any seed, makes a valid request of its task."""
    kind = REQUESTS[preset.task]
    values = {**preset.values_for(kind), "preset": preset.name, "seed": 0}
    try:
        kind.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        missing = [str(problem["loc"][0]) for problem in problems if problem["type"] == "missing"]
        if missing:
            raise InputError(f"the preset {shown} lacks {', '.join(missing)}") from None
        sentences = [describe_problem(problem, values, where) for problem in problems]
        raise InputError(f"the preset {shown} cannot be used: {'; '.join(sentences)}") from None


def _check_speeds_fit(preset: Preset, where: Mapping[str, str]) -> None:
    """Raises InputError if one of a preset's speeds makes no valid request of it."""
    kind = REQUESTS[preset.task]
    for name, fields in preset.speeds.items():
        try:
            kind.model_validate({**preset.values_for(kind), **fields, "preset": preset.name, "seed": 0})
        except ValidationError as error:
            told = "; ".join(describe_problem(problem, fields, {}) for problem in error.errors())
            raise InputError(f"speeds.{name} in {where['speeds']} cannot be used: {_shorten(told, most=400)}") from None


def trained_range_warning(preset: Preset, *, frames: int, width: int, height: int) -> str | None:
    """Returns one line if the clip is unlike those that the model was trained on, else None."""
    trained = preset.trained
    if trained is None:
        return None
    outside = []
    if not trained.least_frames <= frames <= trained.most_frames:
        outside.append(counted(frames, "frame"))
    if (width, height) != (trained.width, trained.height):
        outside.append(f"{width}x{height}")
    if not outside:
        return None
    least, most = trained.least_frames, trained.most_frames
    span = f"{most}" if least == most else f"{least} to {most}"
    return (
        f"{' at '.join(outside)} is outside what {preset.name} was trained on "
        f"({span} frames at {trained.width}x{trained.height}); the result may be worse"
    )


def made_for_warning(preset: Preset, request: Request) -> str | None:
    """Returns one line if a distilled model is asked for steps or guidance that it was not made for, else None."""
    trained = preset.trained
    if trained is None or request.lora != tuple(preset.values.get("lora", ())):
        return None
    asked = (
        ("--steps", request.steps, trained.steps),
        ("--guidance-scale", request.guidance_scale, trained.guidance_scale),
    )
    outside = [
        f"{flag} {value:g} is not what {preset.name} was made for ({_span(span)})"
        for flag, value, span in asked
        if span is not None and not span[0] <= value <= span[1]
    ]
    return f"{' and '.join(outside)}; the result may be worse" if outside else None


def _span(span: tuple[float, float]) -> str:
    least, most = span
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"
