"""A number means what is written, in a flag, a preset, a list of jobs and Python alike, or it is refused."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from commandline import sentence, t2v

from t2vcli.asking.job import Job
from t2vcli.asking.work import work_for
from t2vcli.batches.files import Entry, entries
from t2vcli.errors import T2VError, UsageError
from t2vcli.presets import load_preset

# What is written, and what it means for each field; None: it is refused.
NUMBERS: list[tuple[str, str, Any]] = [
    ("steps", "30", 30),
    ("steps", "010", None),  # 8 to YAML 1.1
    ("steps", "0x10", None),
    ("steps", "0b11", None),
    ("steps", "1_0", None),
    ("steps", "1:30", None),  # 90 to YAML 1.1
    ("steps", "1e1", None),
    ("steps", "\u0663", None),
    ("guidance_scale", "9.5", 9.5),
    ("guidance_scale", "1e1", 10.0),
    ("guidance_scale", "1:30.5", None),
    ("guidance_scale", "1_0.5", None),
    ("guidance_scale", "\u0663", None),
    ("guidance_scale", ".inf", None),
    ("fps", "010", Fraction(10)),
    ("fps", "24000/1001", Fraction(24000, 1001)),
    ("fps", "\u0663", None),
    ("fps", "24/\uff11", None),
    ("fps", "1_0", None),
    ("fps", "1:30", None),
    ("window", "off", "off"),
    ("window", "010", 10),
    ("window", "\u0663", None),
]


def outcome(values: dict[str, Any], name: str) -> Any:
    """Returns what a field comes to, None if it is refused."""
    try:
        return getattr(work_for(Job.read({"prompt": "a red ball", "preset": "demo", **values})).first, name)
    except T2VError:
        return None


@pytest.mark.parametrize(("name", "text", "meant"), NUMBERS)
def test_a_preset(tmp_path: Path, name: str, text: str, meant: Any) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: demo\n{name}: {text}\n", "utf-8")
    try:
        found = load_preset(str(path)).values[name]
    except T2VError as error:
        assert f"{name} in {path}:2" in str(error)  # noqa: PT017 - not every number is refused
        found = None
    assert found == meant


@pytest.mark.parametrize(("name", "text", "meant"), NUMBERS)
def test_a_list_of_jobs_in_yaml(name: str, text: str, meant: Any) -> None:
    (job,) = entries(io.BytesIO(f"- prompt: a red ball\n  {name}: {text}\n".encode()), "jobs.yaml", "yaml")
    assert (outcome(job.fields, name) if isinstance(job, Entry) else None) == meant


@pytest.mark.parametrize(("name", "text", "meant"), NUMBERS)
def test_a_list_of_jobs_as_a_table_or_as_text(name: str, text: str, meant: Any) -> None:
    meant = 10 if (name, text) == ("steps", "010") else meant  # nobody reads that as 8 here
    for kind, written in (
        ("csv", f"prompt,{name}\na red ball,{text}\n"),
        ("txt", f"a red ball --{name.replace('_', '-')} {text}\n"),
    ):
        (job,) = entries(io.BytesIO(written.encode()), f"jobs.{kind}", kind)  # type: ignore[arg-type]
        assert isinstance(job, Entry)
        assert outcome(job.fields, name) == meant


@pytest.mark.parametrize("rate", ["\u0663", "1_0", "24/\uff11", "\u0967\u0968"])
@pytest.mark.parametrize("flag", ["--fps", "--smooth"])
def test_a_flag(rate: str, flag: str) -> None:
    refused = t2v("generate", "a red ball", "-p", "demo", "--dry-run", flag, rate)
    assert refused.code == UsageError.exit_code
    assert "must be a number of frames per second" in sentence(refused)


def test_a_time_is_one_in_yaml_as_elsewhere() -> None:
    (job,) = entries(io.BytesIO(b"- {command: upscale, source: a.mp4, start: 1:30, id: 007}\n"), "jobs.yaml", "yaml")
    assert isinstance(job, Entry)
    assert (job.fields["start"], job.fields["id"]) == ("1:30", "007")
