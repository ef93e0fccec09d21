"""Lists of jobs: what each format may hold, what is wrong with it and on which line, seeds, names, order and shards."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from t2vcli.batches.files import MAX_JOBS
from t2vcli.batches.joblist import BadList, Decided, JobList, read_list
from t2vcli.batches.shards import parse_shard
from t2vcli.errors import InputError, T2VError, UsageError


def decide(fields: Mapping[str, Any]) -> Decided:
    """A job's rules in small: steps are a number, the rest is as it is written."""
    if not isinstance(fields.get("steps", 1), int):
        raise UsageError(f"--steps {fields['steps']!r} must be a whole number")
    frames = fields.get("frames", 8)
    return Decided(
        identity=dict(fields),
        group=f"{fields.get('preset', 'demo')} {frames}",
        cost=float(frames),
        named={"slug": str(fields.get("prompt", "video")).replace(" ", "-"), **fields},
    )


def jobs_in(text: str | bytes, name: str = "jobs.txt", **options: Any) -> JobList:
    content = text.encode() if isinstance(text, str) else text
    kind = {"txt": "txt", "jsonl": "jsonl", "yaml": "yaml", "csv": "csv", "-": None}[name.rpartition(".")[2]]
    return read_list(io.BytesIO(content), name, kind, decide, **options)  # type: ignore[arg-type]


def fields_of(jobs: JobList) -> list[dict[str, Any]]:
    """Returns what each job says, without the seed that a job gets if it names none."""
    return [{name: value for name, value in job.fields.items() if name != "seed"} for job in jobs]


def mistakes(text: str | bytes, name: str = "jobs.txt") -> list[str]:
    with pytest.raises(BadList) as caught:
        jobs_in(text, name)
    return list(caught.value.lines)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a red boat", {"prompt": "a red boat"}),
        ('it\'s -- a boat - "big" one', {"prompt": 'it\'s -- a boat - "big" one'}),
        ('"a red boat" --steps 3', {"prompt": "a red boat", "steps": 3}),
        (
            "a boat --negative_prompt 'blur, text' --guidance-scale=9.5",
            {
                "prompt": "a boat",
                "negative_prompt": "blur, text",
                "guidance_scale": 9.5,
            },
        ),
        ("--prompt 'a boat' --frames 4", {"prompt": "a boat", "frames": 4}),
        (
            "a boat --loop --no-vae-slicing --window 16 --fps 30000/1001",
            {
                "prompt": "a boat",
                "loop": True,
                "vae_slicing": False,
                "window": 16,
                "fps": "30000/1001",
            },
        ),
        ("a boat --upscale --vram 6GiB", {"prompt": "a boat", "upscale": "auto", "vram": "6GiB"}),
        (
            "a boat --upscale zeroscope-XL --clip-skip 1",
            {"prompt": "a boat", "upscale": "zeroscope-XL", "clip_skip": 1},
        ),
    ],
)
def test_a_line_of_text_is_a_prompt_and_the_options_of_generate(line: str, expected: dict[str, Any]) -> None:
    assert fields_of(jobs_in(f"# first\n\n{line}\n")) == [expected]


def test_a_line_of_text_is_named_with_its_number_and_the_nearest_option() -> None:
    lines = ["# prompts", "a boat", "a boat --sed 3", "a dog --steps", "a cat --steps many", "a hen 'x --steps 3 '"]
    assert mistakes("\n".join(lines)) == [
        "jobs.txt:3: 'sed' is no field of a job; did you mean 'seed'?",
        "jobs.txt:4: --steps needs a value",
        "jobs.txt:5: --steps 'many' must be a whole number",
        "jobs.txt:6: the options cannot be read: no closing quotation",
    ]


def test_every_mistake_is_told_at_once_and_nothing_is_started() -> None:
    lines = ["a boat"] * 89 + ["a boat --stepz 3"] + [f"a boat --sted {n}" for n in range(60)]
    with pytest.raises(BadList) as caught:
        jobs_in("\n".join(lines))
    assert caught.value.exit_code == 2
    assert caught.value.lines[0].startswith("jobs.txt:90: 'stepz' is no field")
    assert caught.value.lines[-1] == "and 11 more"
    assert "61 mistakes" in caught.value.summary


def test_invalid_jobs_can_be_left_out_and_are_counted() -> None:
    jobs = jobs_in("a boat\na dog --stepz 3\na cat\n", skip_invalid=True)
    assert [job.fields["prompt"] for job in jobs] == ["a boat", "a cat"]
    assert jobs.wrong == 1
    assert jobs.problems == ["jobs.txt:2: 'stepz' is no field of a job; did you mean 'steps'?"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"prompt": "a boat", }', "is not a JSON object"),
        (b'["a boat"]', "is not a JSON object"),
        (b'"a boat"', "is not a JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' is given twice"),
        (b'{"prompt": "a", "eta": NaN}', "NaN is no number in JSON"),
        (b'{"prompt": "a", "guidence_scale": 3}', "did you mean 'guidance_scale'?"),
        (b'{"prompt": "\xff"}', "is not UTF-8 text"),
        (b'{"prompt": "a", "count": 0}', "count 0 must be a whole number from 1"),
        (b'{"prompt": "a", "count": true}', "count True must be a whole number from 1"),
        (b'{"prompt": "a", "id": "../x"}', "id '../x' must be 1 to 100 letters"),
        (b'{"prompt": "a", "id": "x", "custom_id": "y"}', "give id or custom_id, not both"),
        (b'{"prompt": "a", "meta": 3}', "meta 3 must be a mapping"),
        (b'{"prompt": "a", "output": "/tmp/x.mp4"}', "must lie below the batch's folder"),
        (b'{"prompt": "a", "output": "a/../../x.mp4"}', "must lie below the batch's folder"),
        (b'{"prompt": "a", "output": 3}', "must be the path of a video"),
        (b"[" * 100_000, "is not a JSON object"),
        (b'{"prompt": "' + b"a" * 2**21 + b'"}', "is longer than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_a_bad_line_of_json_is_told_and_the_lines_after_it_are_read(line: bytes, told: str) -> None:
    found = mistakes(b'{"prompt": "one"}\n' + line + b'\n{"prompt": "two", "stepz": 1}\n', "jobs.jsonl")
    assert found[0].startswith("jobs.jsonl:2: ")
    assert told in found[0]
    assert found[1].startswith("jobs.jsonl:3: 'stepz'")
    assert len(found) == 2


def test_wrong_values_are_exit_2_and_a_wrong_format_is_exit_4() -> None:
    for line, code in (('{"prompt": "a", "stepz": 1}', 2), ("{", 4)):
        with pytest.raises(BadList) as caught:
            jobs_in(line, "jobs.jsonl")
        assert caught.value.exit_code == code


def test_json_lines_carry_ids_and_meta() -> None:
    (job,) = jobs_in('{"custom_id": "scene-3", "prompt": "a", "meta": {"scene": [3]}, "seed": 5}\n', "jobs.jsonl")
    assert (job.id, job.output, job.seed, job.meta) == ("scene-3", "scene-3.mp4", 5, {"scene": [3]})
    assert job.fields == {"prompt": "a", "seed": 5}


@pytest.mark.parametrize(("text", "prompts"), [("a boat\na dog", ["a boat", "a dog"]), (' {"prompt": "a"}', ["a"])])
def test_from_stdin_json_is_known_by_its_first_character(text: str, prompts: list[str]) -> None:
    assert [job.fields["prompt"] for job in jobs_in(text, "-")] == prompts


@pytest.mark.parametrize("name", ["jobs.txt", "jobs.jsonl", "jobs.yaml", "jobs.csv", "-"])
@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_list_is_told(name: str, text: str) -> None:
    with pytest.raises(InputError, match=r"holds no jobs"):
        jobs_in(text, name)


YAML = """\
defaults: {preset: demo, steps: 2}
matrix:
  prompt: [a red boat, a blue boat]
  guidance_scale: [9, 15]
  exclude: [{prompt: a blue boat, guidance_scale: 15}]
  include: [{prompt: a dog, seed: 7}]
"""


def test_a_matrix_is_a_product_whose_first_name_changes_slowest() -> None:
    jobs = jobs_in(YAML, "jobs.yaml")
    common = {"preset": "demo", "steps": 2}
    assert fields_of(jobs) == [
        {**common, "prompt": "a red boat", "guidance_scale": 9},
        {**common, "prompt": "a red boat", "guidance_scale": 15},
        {**common, "prompt": "a blue boat", "guidance_scale": 9},
        {**common, "prompt": "a dog"},
    ]
    assert jobs[3].seed == 7


def test_a_matrix_is_made_of_each_job() -> None:
    jobs = jobs_in("matrix: {steps: [1, 2]}\njobs:\n- a boat\n- {prompt: a dog, frames: 4}\n", "jobs.yaml")
    assert [(job.fields["prompt"], job.fields["steps"], job.line) for job in jobs] == [
        ("a boat", 1, 3), ("a boat", 2, 3), ("a dog", 1, 4), ("a dog", 2, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("jobs:\n- {prompt: a}\n- {prompt: b, stepz: 1}", 3, "did you mean 'steps'?"),
        ("jobs:\n- 7", 2, "is no job"),
        ("jobs: {prompt: a}", 1, "jobs must be a list"),
        ("jobz:\n- a", 1, "'jobz' is no part of a list of jobs"),
        ("jobs: [a]\ndefaults: {steps: 3}", 2, "defaults must come before jobs"),
        ("defaults: {stepz: 3}\njobs: [a]", 1, "did you mean 'steps'?"),
        ("defaults: [3]\njobs: [a]", 1, "defaults must be a mapping"),
        ("matrix: {steps: 3}", 1, "steps must be a list of values"),
        ("matrix: {steps: []}", 1, "steps must be a list of values"),
        ("matrix: {stepz: [3]}", 1, "did you mean 'steps'?"),
        ("matrix: {steps: [3], exclude: [{frames: 3}]}", 1, "exclude names 'frames'"),
        ("matrix: {steps: [3], exclude: 3}", 1, "exclude must be a list"),
        ("matrix: {steps: [3]}\njobs:\n- {prompt: a, steps: 4}", 3, "'steps' is given by the matrix, too"),
        ("jobs:\n- &a {prompt: x}\n- *a", 2, "anchors and aliases"),
        ("jobs:\n- !!python/object:os.system {prompt: x}", 2, "cannot hold the tag"),
        ("jobs:\n- {prompt: a, prompt: b}", 2, "the key 'prompt' is given twice"),
        ("jobs:\n- {prompt: 2024-01-01}", 2, "put a text in quotes"),
        ("jobs:\n- {prompt: a, eta: .nan}", 2, "is no number that a job can have"),
        ("jobs:\n- {prompt: a, seed: 1" + "0" * 100 + "}", 2, "a number that is too long"),
        ("jobs:\n- {prompt: [a\n", 3, "is not valid YAML"),
        ("jobs:\n- " + "[" * 50, 2, "is nested more than"),
        ("jobs: [a]\n---\njobs: [b]", 2, "a second document"),
        ("just words", 1, "must hold `jobs:`"),
        ("matrix: {" + ", ".join(f"{k}: {list(range(100))}" for k in ("seed", "steps", "frames")) + "}", 1, "1,000,000 jobs"),
    ],
)  # fmt: skip
def test_a_bad_yaml_list_is_told_with_its_line(text: str, line: int, told: str) -> None:
    found = mistakes(text, "jobs.yaml")
    assert found[-1].startswith(f"jobs.yaml:{line}: ")
    assert told in found[-1]


def test_more_jobs_than_a_batch_can_have_are_refused() -> None:
    with pytest.raises(T2VError, match=f"{MAX_JOBS + 1:,} clips"):
        jobs_in(f'{{"prompt": "a", "count": {MAX_JOBS + 1}}}', "jobs.jsonl")


def test_a_table_has_a_column_a_field_and_an_empty_cell_is_not_given() -> None:
    jobs = jobs_in('prompt,steps,guidance_scale,loop\r\n"a boat,\nred",3,9.5,yes\r\n\r\na dog,,,\r\n', "jobs.csv")
    assert fields_of(jobs) == [
        {"prompt": "a boat,\nred", "steps": 3, "guidance_scale": 9.5, "loop": True},
        {"prompt": "a dog"},
    ]
    assert [job.line for job in jobs] == [2, 5]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("prompt,stepz\na,1", 1, "did you mean 'steps'?"),
        ("prompt,prompt\na,1", 1, "the column 'prompt' is given twice"),
        ("prompt\na,1", 2, "has 2 cells, but there are 1 columns"),
        ('prompt\n"a', 2, "is not CSV"),
        ("prompt\na\0b", 2, "holds a NUL character"),
    ],
)
def test_a_bad_table_is_told_with_its_line(text: str, line: int, told: str) -> None:
    found = mistakes(text, "jobs.csv")
    assert found[0].startswith(f"jobs.csv:{line}: ")
    assert told in found[0]


# Seeds and names


def test_seeds_come_from_the_content_and_a_line_in_between_moves_none() -> None:
    before = {job.fields["prompt"]: job.seed for job in jobs_in("a boat\na dog\n")}
    after = {job.fields["prompt"]: job.seed for job in jobs_in("a cat\na boat\na hen\na dog\n")}
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 4


def test_the_same_prompt_twice_is_two_clips() -> None:
    first, second = jobs_in("a boat\na boat\n")
    assert first.seed != second.seed
    assert first.output != second.output


def test_a_count_makes_seeds_that_follow_each_other() -> None:
    jobs = list(jobs_in('{"prompt": "a", "seed": 5, "count": 3, "id": "x"}\n{"prompt": "b", "count": 2}', "jobs.jsonl"))
    assert [(job.id, job.output, job.seed) for job in jobs[:3]] == [
        ("x-1", "x-1.mp4", 5), ("x-2", "x-2.mp4", 6), ("x-3", "x-3.mp4", 7),
    ]  # fmt: skip
    assert jobs[4].seed == jobs[3].seed + 1
    jobs = list(jobs_in('{"prompt": "a", "count": 2, "output": "s/x.webm"}', "jobs.jsonl"))
    assert [job.output for job in jobs] == ["s/x-1.webm", "s/x-2.webm"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a", "seed": 1}\n{"prompt": "b", "seed": 1}\n{"prompt": "a", "seed": 1}', "on line 1"),
        ('{"prompt": "a", "output": "x.mp4"}\n{}\n{"prompt": "b", "output": "./x.mp4"}', "on line 1"),
        ('{"prompt": "a"}\n{"prompt": "c", "id": "x"}\n{"prompt": "b", "id": "x"}', "on line 2"),
    ],
)
def test_two_jobs_cannot_have_one_output(text: str, told: str) -> None:
    (found,) = mistakes(text, "jobs.jsonl")
    assert found.startswith("jobs.jsonl:3: the ")
    assert "is also that of the job" in found
    assert found.endswith(told)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{index:04}-{slug}-{seed}", "0001-a-boat-7.mp4"),
        ("{preset}_{guidance_scale}_{hash}.webm", None),
        ("{prompt}-{steps}", "a-boat-3.mp4"),
    ],
)
def test_a_template_names_the_clips(template: str, expected: str | None) -> None:
    (job,) = jobs_in("a boat --seed 7 --steps 3 --preset demo --guidance-scale 9.5", template=template)
    assert job.output == expected or job.output == f"demo_9.5_{job.hash[:8]}.webm"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "video",
        "{index",
        "{0}",
        "{}",
        "{prompt!r}",
        "{seed.__class__}",
        "{seed:>20}",
        "../{index}",
        ".{index}",
        "{a}",
    ],
)
def test_a_template_that_makes_no_names_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="the pattern of names"):
        jobs_in("a boat", template=template)


def test_a_prompt_never_becomes_a_path() -> None:
    (job,) = jobs_in('{"prompt": "../../etc/passwd \\u0000\\n", "seed": 1}', "jobs.jsonl", template="{prompt}-{index}")
    assert job.output == "etc-passwd-1.mp4"


# Order and shards


def test_jobs_of_a_group_come_one_after_the_other_in_the_list_s_order() -> None:
    jobs = jobs_in("a --frames 4\nb --frames 8\nc --frames 4\nd --frames 8\n")
    assert [jobs[place].fields["prompt"] for place in jobs.order()] == ["a", "c", "b", "d"]
    assert jobs.groups == 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_are_disjoint_complete_and_of_about_equal_cost(count: int) -> None:
    jobs = jobs_in("\n".join(f"prompt {n} --frames {1 + n % 5}" for n in range(30)))
    shards = [list(jobs.order((number, count))) for number in range(1, count + 1)]
    assert [place for shard in shards for place in shard] == list(jobs.order())
    costs = [sum(jobs[place].fields["frames"] for place in shard) for shard in shards]
    assert max(costs) <= 90 / count + 5


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "1", "1/0", "-1/4", "1/2/3", "1/1000000", "", "１/2"])
def test_a_bad_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)


def test_shards_are_read_from_slurm() -> None:
    slurm = {
        f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "3"), ("MIN", "0"), ("MAX", "7"), ("COUNT", "8"))
    }
    assert parse_shard("auto", slurm) == (4, 8)
    assert parse_shard("2/8") == (2, 8)
    with pytest.raises(UsageError, match="without gaps"):
        parse_shard("auto", {**slurm, "SLURM_ARRAY_TASK_MAX": "14"})
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID is not set"):
        parse_shard("auto", {})


def test_memory_hardly_grows_with_the_number_of_jobs() -> None:
    """In a process of its own: in this one, other tests' threads may allocate meanwhile."""
    code = "import test_batch_list; test_batch_list.measure_memory()"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def measure_memory() -> None:
    """Fails if a list of 2,000 jobs holds more than a few bytes a job beside its text."""
    text = "\n".join(json.dumps({"prompt": f"a red boat {n}", "steps": 3}) for n in range(2_000)).encode()
    jobs_in(text.splitlines()[0], "jobs.jsonl")  # so that what a first list brings in is not counted
    tracemalloc.start()
    try:
        jobs = jobs_in(text, "jobs.jsonl")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(jobs) == 2_000
    assert held - len(text) < 60 * 2_000 + 100_000  # bytes a job


def test_long_lists_are_read() -> None:
    jobs = jobs_in("".join(f"a red boat {n}\n" for n in range(5_000)))
    assert len(jobs) == len({job.output for job in jobs}) == 5_000
