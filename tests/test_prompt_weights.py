"""Words with weight, and prompts over the model's limit: what is read from which text, and what the model is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import sentence, t2v
from make_goldens import attempts_at, generate_request, our_latents, prepared_model, preset_of
from test_fewer_operations import made
from test_layerwise_unet import relative

from t2vcli.asking.job import Job
from t2vcli.asking.work import work_for
from t2vcli.choices import PromptWeights
from t2vcli.emphasis import weighted
from t2vcli.engine.loading import load_tokenizer
from t2vcli.engine.prompt import TextsOverTime, Tokens, encode_tokens, tokenize
from t2vcli.engine.tokenizer import Tokenizer
from t2vcli.errors import UsageError
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.words import encode_words
from t2vcli.report import Silent
from t2vcli.weights.models import files_in_folder

STEP = 1.1


def parts(text: str, mode: PromptWeights = "on") -> list[tuple[str, float]]:
    found = weighted(text, mode)
    assert found is not None
    return [(part.text, part.weight) for part in found.parts]


# What is read


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a (red) boat", [("a ", 1), ("red", STEP), (" boat", 1)]),
        ("a [red] boat", [("a ", 1), ("red", 1 / STEP), (" boat", 1)]),
        ("a (red:1.3) boat", [("a ", 1), ("red", 1.3), (" boat", 1)]),
        ("a (red: 1.3 ) boat", [("a ", 1), ("red", 1.3), (" boat", 1)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("(red:1e0) boat", [("red boat", 1)]),
        ("((red))", [("red", STEP**2)]),
        ("(a (red:2) boat:1.5)", [("a ", 1.5), ("red", 3), (" boat", 1.5)]),
        ("(a [red] boat)", [("a ", STEP), ("red", STEP / STEP), (" boat", STEP)]),
        (r"a \(red:1.3\) boat", [("a (red:1.3) boat", 1)]),
        (r"(a \(red\):1.3)", [("a (red)", 1.3)]),
        (r"a \[red\] (boat)", [("a [red] ", 1), ("boat", STEP)]),
        (r"a C:\boats (boat)", [("a C:\\boats ", 1), ("boat", STEP)]),
        ("a (red boat", [("a ", 1), ("red boat", STEP)]),
        ("a red) (boat)", [("a red) ", 1), ("boat", STEP)]),
        ("red:1.3) (boat)", [("red:1.3) ", 1), ("boat", STEP)]),
        ("(at 12:30 o'clock)", [("at 12:30 o'clock", STEP)]),
        ("(red:1.3:2)", [("red:1.3", 2)]),
        ("()(red)", [("red", STEP)]),
        ("(a(b(c))))", [("a", STEP), ("b", STEP**2), ("c", STEP**3), (")", 1)]),
    ],
)
def test_what_a_text_weighs(text: str, wanted: list[tuple[str, float]]) -> None:
    found = parts(text)
    assert [each for each, _ in found] == [each for each, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted])


@pytest.mark.parametrize("text", ["a red boat", 'a "red" boat: 1.3', "12:30", "a {red} boat"])
def test_a_text_without_the_syntax_is_taken_as_it_is(text: str) -> None:
    assert weighted(text, "on") is None


@pytest.mark.parametrize(
    "text", ["a red ball (toy)", "a [red] ball", "a (ball", "(a: b)", "(at 12:30 h)", r"\(red:1.3\)"]
)
def test_brackets_alone_weigh_nothing_unless_it_is_asked_for(text: str) -> None:
    assert weighted(text, "auto") is None
    assert weighted(text, "on") is not None


def test_a_number_in_brackets_is_enough() -> None:
    assert parts("a (red:1.3) [boat]", "auto") == parts("a (red:1.3) [boat]", "on")
    assert weighted("a (red:1.3) boat", "off") is None


def test_what_nothing_closes_is_named_by_its_place() -> None:
    found = weighted("a (red [boat (on) the sea", "on")
    assert found is not None
    assert found.unclosed == (3, 8)


# What the model is given


@pytest.fixture(scope="module")
def tokenizer(few_layers: Path) -> Tokenizer:
    return load_tokenizer(files_in_folder(few_layers, source="few", variant=None))


@pytest.fixture(scope="module")
def features(few_layers: Path) -> Any:
    """Returns the function from tokens to features."""
    placed = attempts_at(generate_request(few_layers)).placed

    def made_of(tokens: Tokens) -> torch.Tensor:
        with placed.text_encoder() as text_encoder:
            return encode_tokens(text_encoder, tokens, device="cpu")

    return made_of


LONG = " ".join(
    ["a red boat sails on the blue sea under a bright yellow sun while white clouds drift over the hills"] * 6
)


@pytest.mark.parametrize("text", ["", "a red boat", LONG])
def test_framed_tokens_are_the_padded_ones(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.ids(text)[1:-1][: tokenizer.model_max_length - 2]
    assert tokenizer.framed(ids) == tokenizer.padded_ids(text)


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_a_text_without_the_syntax_is_tokenized_as_ever(tokenizer: Tokenizer, mode: PromptWeights) -> None:
    plain = tokenize(tokenizer, 'a red boat, "sailing" on the sea')
    found = tokenize(tokenizer, 'a red boat, "sailing" on the sea', mode=mode, long=True)
    assert found.same_as(plain)
    assert found.weights is None
    assert found.ids.tolist() == [tokenizer.padded_ids('a red boat, "sailing" on the sea')]


def test_a_token_weighs_what_it_is_given_and_no_other_changes(tokenizer: Tokenizer, features: Any) -> None:
    plain = features(tokenize(tokenizer, "a red boat"))
    heavy = tokenize(tokenizer, "a (red:1.3) boat", mode="auto")
    place = tokenizer.ids("a red boat").index(tokenizer.ids("red")[1])
    ratio = features(heavy) / plain
    assert torch.allclose(ratio[0, place], torch.tensor(1.3))
    assert torch.equal(features(heavy)[0, :place], plain[0, :place])
    assert torch.equal(features(heavy)[0, place + 1 :], plain[0, place + 1 :])
    assert heavy.ids.tolist() == [tokenizer.padded_ids("a red boat")]
    assert torch.equal(features(tokenize(tokenizer, "a (red:1) boat", mode="auto")), plain)


def test_a_long_prompt_goes_on_in_chunks(tokenizer: Tokenizer, features: Any) -> None:
    ids = tokenizer.ids(LONG)[1:-1]
    found = tokenize(tokenizer, LONG, long=True)
    room = tokenizer.model_max_length - 2
    assert found.dropped == ""
    assert found.ids.tolist() == [tokenizer.framed(ids[n : n + room]) for n in range(0, len(ids), room)]
    assert len(found.ids) > 1
    whole = features(found)
    assert whole.shape[1] == found.ids.numel()
    for number, chunk in enumerate(whole.chunk(len(found.ids), dim=1)):
        own = Tokens(found.ids[number : number + 1], 0, 0, "")
        assert torch.allclose(chunk, features(own), atol=1e-6)


def test_break_begins_another_chunk(tokenizer: Tokenizer) -> None:
    found = tokenize(tokenizer, "a red boat BREAK (the blue sea:1.2)BREAK", mode="auto", long=True)
    assert found.ids.tolist() == [tokenizer.padded_ids("a red boat"), tokenizer.padded_ids("the blue sea")]
    assert found.weights is not None
    assert found.weights[0].unique().tolist() == [1]
    # Without --long-prompt it is a word
    assert tokenize(tokenizer, "a BREAK").ids.tolist() == [tokenizer.padded_ids("a BREAK")]


def test_weights_do_not_move_where_a_text_is_cut(tokenizer: Tokenizer) -> None:
    plain = tokenize(tokenizer, LONG)
    heavy = tokenize(tokenizer, f"({LONG}:1.2)", mode="auto")
    assert heavy.ids.tolist() == plain.ids.tolist()
    assert heavy.dropped == plain.dropped != ""
    assert heavy.count == plain.count


# In a run


def test_both_prompts_have_as_many_chunks_as_the_longer(few_layers: Path) -> None:
    request = generate_request(few_layers, prompt=LONG, long_prompt=True)
    prepared, _ = prepared_model(request)
    assert len(prepared.prompt.ids) == len(prepared.negative_prompt.ids) > 1
    embeds = encode_words(attempts_at(request).placed, prepared, guided=True, clip_skip=None)
    assert isinstance(embeds, torch.Tensor)
    assert embeds.shape[:2] == (2, prepared.prompt.ids.numel())
    over_time = request.model_copy(update={"prompt": "a red boat", "prompt_at": (f"2:{LONG}",)})
    words = encode_words(attempts_at(over_time).placed, prepared_model(over_time)[0], guided=True, clip_skip=None)
    assert isinstance(words, TextsOverTime)
    assert words.features.shape[:3] == (2, 2, prepared.prompt.ids.numel())


def test_a_long_negative_prompt_that_is_not_used_makes_nothing_longer(few_layers: Path) -> None:
    request = generate_request(few_layers, negative_prompt=LONG, long_prompt=True, guidance_scale=1.0)
    assert len(prepared_model(request)[0].prompt.ids) == 1


def test_the_forwards_agree_on_a_long_prompt_with_weights(few_layers: Path) -> None:
    request = generate_request(few_layers, steps=1, prompt=f"({LONG}:1.2)", long_prompt=True)
    latents = made(request)
    for changes in ({"forward": "layerwise"}, {"forward": "layerwise", "chunk_bytes": 4096}):
        assert relative(made(request, **changes), latents) < 1e-4


@pytest.mark.slow
def test_a_short_prompt_is_the_plain_run_bit_for_bit(few_layers: Path) -> None:
    plain = our_latents(generate_request(few_layers))
    for changes in ({"long_prompt": True}, {"prompt_weights": "on"}, {"prompt_weights": "off"}):
        assert torch.equal(our_latents(generate_request(few_layers, **changes)), plain)
    heavy = generate_request(few_layers, prompt="a (red:1.4) boat sails on the blue sea")
    assert not torch.equal(our_latents(heavy), plain)
    assert not torch.equal(our_latents(heavy.model_copy(update={"prompt_weights": "off"})), our_latents(heavy))


def test_a_weight_in_the_negative_prompt_and_over_time_counts_too(few_layers: Path) -> None:
    request = generate_request(few_layers, negative_prompt="(blurry:1.3)", prompt_at=("2:a (blue:1.3) boat",))
    prepared, _ = prepared_model(request)
    assert prepared.negative_prompt.weights is not None
    assert prepared.over_time[1][1].weights is not None
    assert prepared.prompt.weights is None


class Hearing(Silent):
    def __init__(self) -> None:
        self.warned: list[str] = []
        self.said: list[str] = []

    def warn(self, line: str) -> None:
        self.warned.append(line)

    def say(self, line: str) -> None:
        self.said.append(line)


def test_weights_are_told_and_what_nothing_closes_is_warned_of(few_layers: Path) -> None:
    request = generate_request(few_layers, prompt="a (red:1.3) (boat")
    hearing = Hearing()
    prepare(request, preset_of("generate"), frames=3, report=hearing)
    assert any("weights in the prompt: 'red' 1.3, 'boat' 1.1" in line for line in hearing.said)
    (warned,) = hearing.warned
    assert "a '(' at character 13 that nothing closes, so its weight reaches to the end; write \\( for" in warned
    with pytest.raises(UsageError, match=r"nothing closes.*\(--strict\)"):
        prepare(request, preset_of("generate"), frames=3, report=Silent(), strict=True)


def test_a_prompt_of_too_many_chunks_is_refused(few_layers: Path) -> None:
    request = generate_request(few_layers, prompt=" ".join(["boat"] * 760), long_prompt=True)
    with pytest.raises(UsageError, match=r"11 chunks of at most 75; the most is 10"):
        prepare(request, preset_of("generate"), frames=3, report=Silent())


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a (red:nan) boat", "the prompt gives 'red' the weight nan; weights go from -10 to 10 (--prompt-weights off"),
        ("a (red:1e9) boat", "the prompt gives 'red' the weight 1e+09"),
        ("a (red:-inf) boat", "the weight -inf"),
        ("a ((red:9):9) boat", "the weight 81"),
        ("(" * 30 + "red:1.0" + ")" * 30, "the weight"),
        ("(red:1)" + "(" * 51, "more than 50 brackets in each other"),
    ],
)
def test_a_weight_that_is_none_is_one_sentence(prompt: str, told: str, tmp_path: Path) -> None:
    for words in ([prompt], ["a boat", "-n", prompt], ["a boat", "--prompt-at", f"3:{prompt}"]):
        done = t2v("generate", *words, "-p", "demo", "-o", tmp_path / "out.mp4")
        assert done.code == 2
        assert told.removeprefix("the prompt ") in sentence(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "wanted"), [("on", "on"), (True, "on"), (False, "off"), ("auto", "auto"), (None, "auto")]
)
def test_yaml_and_python_may_say_on_and_off(written: Any, wanted: str) -> None:
    work = work_for(Job.read({"prompt": "a boat", "preset": "demo", "prompt_weights": written}), take_up=False)
    assert work.first.prompt_weights == wanted


def test_a_hostile_prompt_is_read_in_no_time() -> None:
    assert weighted("[a" * 20 + "b(c)" * 4500, "on") is not None
    assert weighted("(red:" + "1" * 300_000 + "x)", "auto") is None


def test_a_break_in_very_long_space_is_found_in_no_time(tokenizer: Tokenizer) -> None:
    wanted = tokenize(tokenizer, "a red BREAK boat", long=True)
    assert tokenize(tokenizer, "a red" + " " * 300_000 + "BREAK boat", long=True).same_as(wanted)
