"""Help that fits a screen: what people use first, names and choices whole, examples that are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from commandline import commands, sentence, t2v

from t2vcli.cli.examples import EXAMPLES
from t2vcli.cli.helping import OF_THE_PRESET, USUAL, Helpful, choices_of
from t2vcli.cli.reference import all_commands, long_name, reference
from t2vcli.presets import load_preset
from t2vcli.request import flag_name

COMMANDS = dict(all_commands())


def shown(name: str, flag: str, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = t2v(*name.split()[1:], flag)
    assert (outcome.code, outcome.stderr) == (0, "")
    return outcome.stdout.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [50, 80])
def test_help_fits_and_breaks_no_name(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Helpful)
    first = shown(name, "--help", monkeypatch, columns)
    more = "--help-all" in " ".join(first)
    whole = shown(name, "--help-all" if more else "--help", monkeypatch, columns)
    examples = {f"  {line}" for line in EXAMPLES.get(name.removeprefix("t2v").strip(), ())}
    exits = first.index("Exit codes:") if "Exit codes:" in first else len(first)
    for line in [*first[:exits], *whole[:exits]]:
        assert len(line) <= columns or line in examples
        assert "<bool>" not in line
    words = set(re.split(r"[\s,]+", "\n".join(whole)))
    for param in command.params:
        if param.param_type_name == "option" and not param.hidden:
            assert {*param.opts, *param.secondary_opts} <= words
            assert {choice.rstrip(".") for choice in choices_of(param)} <= {word.rstrip(".") for word in words}


def test_the_usual_options_come_first_and_the_help_of_generate_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown("t2v generate", "--help", monkeypatch)
    assert len(lines) <= 90
    at = {name: number for number, line in enumerate(lines) for name in re.findall(r"--[a-z][a-z-]*", line[:28])}
    params = {each.name for each in commands().commands["generate"].params}
    usual = [flag_name(name) for name in USUAL if name in params and name != "prompt"]
    assert all(at[name] < 45 for name in usual)
    assert max(at[name] for name in usual) < min(at[name] for name in ("--fps", "--device", "--model"))
    assert "--vae-tiling" not in at
    assert any("--vae-tiling" in line for line in shown("t2v generate", "--help-all", monkeypatch))


@pytest.mark.parametrize("command", OF_THE_PRESET)
def test_the_defaults_that_are_told_are_those_of_the_preset(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, values = OF_THE_PRESET[command]
    preset = load_preset(name)
    assert {key: preset.values[key] for key in values} == values
    said = " ".join(" ".join(shown(f"t2v {command}", "--help", monkeypatch)).split())
    assert f"(default: the preset's, {values['steps']} for {name})" in said
    assert f"else {name}" in said  # which preset that is


@pytest.mark.parametrize("line", sorted({line for lines in EXAMPLES.values() for line in lines}))
def test_examples_are_commands_that_there_are(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "t2v"
    command: Any = commands()
    context = command.make_context("t2v", words)
    while getattr(command, "commands", None) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    preset = context.params.get("preset")
    if preset is not None:
        load_preset(preset)


def test_a_name_is_suggested_only_where_it_is_near() -> None:
    assert "--frames" in sentence(t2v("generate", "a boat", "--frame", "3"))
    far = sentence(t2v("generate", "a boat", "--vignette", "x"))
    assert "--vignette" in far
    assert "ossible" not in far
    assert "--offload" not in far


def test_the_reference_tells_each_option_once_and_names_all() -> None:
    text = reference()
    assert len(text) < 45_000
    entries = [line for line in text.split("\n## Options\n")[1].splitlines() if line.startswith("- `")]
    assert len(entries) == len(set(entries))
    assert sum("`--guidance-scale NUMBER`" in entry or "--guidance-scale NUMBER`" in entry for entry in entries) <= 2
    for name, command in COMMANDS.items():
        assert f"\n## {name}\n" in text
        for param in command.params:
            if param.param_type_name == "option" and not param.hidden:
                assert f"`{long_name(param)}`" in text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8") == text
