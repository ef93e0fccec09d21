"""Our tokenizer against transformers' CLIPTokenizer: the same tokens for every text and every folder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from t2vcli.engine import tokenizer as ours
from t2vcli.engine.tokenizer import read_tokenizer
from t2vcli.weights.models import EMBEDDED_FOLDER

TEXTS = [
    "",
    " ",
    "a red boat moving right on the sea",
    "A Red BOAT,  moving\tright\nof it!!! 12345 don't we'll it's",
    "zürich 日本 🎈 ﬁ İstanbul e\u0301 \u00a0\u2003x",
    "<|startoftext|> a <|endoftext|> b<|endoftext|>!",
    "</w> a</w>b ! !! <pad> [UNK] \x00\x1b[31m",
    "word " * 100,
]


def _random_text(generator: random.Random) -> str:
    pieces = [
        "a",
        "boat",
        " ",
        "  ",
        "!",
        "'s",
        "9",
        "é",
        "日",
        "🎈",
        "<|endoftext|>",
        "<|",
        "\n",
        "Ω",
        "_",
        "\u200d",
        "B",
    ]
    return "".join(generator.choices(pieces, k=generator.randrange(40)))


def _settings(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _as_it_is(folder: Path) -> None: ...


def _no_special_map(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()


def _no_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def _new_padding(folder: Path) -> None:
    _settings(folder, "special_tokens_map.json", pad_token="<pad>")


def _stripping(folder: Path) -> None:
    token = {"content": "boat", "lstrip": True, "rstrip": True, "single_word": True, "normalized": True}
    _settings(folder, "special_tokens_map.json", unk_token=token)


def _start_in_settings(folder: Path) -> None:
    _no_special_map(folder)
    token = {"__type": "AddedToken", "content": "boat", "lstrip": False, "rstrip": False, "single_word": False}
    _settings(folder, "tokenizer_config.json", bos_token={**token, "normalized": False})


PLAIN = [_as_it_is, _no_special_map, _no_settings, _new_padding, _stripping, _start_in_settings]


def _added_tokens(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"boat": 0}))


def _more_special(folder: Path) -> None:
    _settings(folder, "special_tokens_map.json", additional_special_tokens=["boat"])


def _left(folder: Path) -> None:
    _settings(folder, "tokenizer_config.json", padding_side="left")


@pytest.fixture(params=["demo", "ms-1.7b"])
def folder(request: pytest.FixtureRequest, ms_checkpoint: Path, tmp_path: Path) -> Path:
    source = EMBEDDED_FOLDER if request.param == "demo" else ms_checkpoint
    return Path(shutil.copytree(source / "tokenizer", tmp_path / "tokenizer"))


@pytest.mark.parametrize("change", PLAIN)
def test_the_tokens_are_those_of_transformers(
    change: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder)
    monkeypatch.setattr(ours, "_by_transformers", None)  # not needed here
    _assert_same_tokens(folder)


@pytest.mark.parametrize("change", [_added_tokens, _more_special, _left])
def test_what_only_transformers_knows_is_read_by_it(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    _assert_same_tokens(folder)


def _assert_same_tokens(folder: Path) -> None:
    mine, theirs = read_tokenizer(folder), CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert mine.model_max_length == theirs.model_max_length
    assert mine.highest() == max(theirs.get_vocab().values())
    limit = mine.model_max_length = min(mine.model_max_length, 40)
    generator = random.Random(0)
    for text in [*TEXTS, *(_random_text(generator) for _ in range(300))]:
        whole = theirs(text, padding=False, truncation=False, verbose=False).input_ids
        assert mine.ids(text) == whole, text
        cut = theirs(text, padding="max_length", max_length=limit, truncation=True).input_ids
        assert mine.padded_ids(text) == cut, text
        assert mine.ids(text) == whole, "after one that was padded"
        assert mine.decode(whole[1:-1]) == theirs.decode(whole[1:-1]).strip(), text
