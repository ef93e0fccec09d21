"""Words to token numbers: CLIP's byte-pair encoding, by the `tokenizers` library itself.

What transformers' CLIPTokenizer makes of the same folder, without the import of that library. A folder that holds more
than a vocabulary, its merges and the usual settings is still read by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from t2vcli.quiet import keep_quiet
from t2vcli.strangers import read_json
from t2vcli.weights.models import MAX_WORDS_BYTES

_START, _END = "<|startoftext|>", "<|endoftext|>"
_SPECIAL = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
"""The special tokens with their defaults, in the order in which transformers numbers those that the vocabulary lacks."""

# Settings that make no difference to the tokens, in transformers as here.
_NO_MATTER = frozenset(
    {
        "add_prefix_space",
        "auto_map",
        "clean_up_tokenization_spaces",
        "do_lower_case",
        "errors",
        "model_max_length",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_class",
    }
)
_FILES = frozenset({"vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"})
_TOKEN_SETTINGS = frozenset({"content", "lstrip", "rstrip", "single_word", "normalized"})

_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """A tokenizer and the number of tokens that it is cut and padded to, its start and end among them."""

    def __init__(self, backend: Backend, *, limit: int, padding: str, pad_side: str = "right") -> None:
        self.backend = backend
        self.model_max_length = limit
        self._padding = padding
        self._pad_side = pad_side

    def ids(self, text: str) -> list[int]:
        """Returns all tokens of `text` with the start and the end, however many there are."""
        self.backend.no_padding()
        self.backend.no_truncation()
        return list(self.backend.encode(text).ids)

    def padded_ids(self, text: str) -> list[int]:
        """Returns the tokens of `text`, as many as the limit: cut before the end, or padded."""
        self.backend.enable_truncation(self.model_max_length)
        pad = self.backend.token_to_id(self._padding)
        self.backend.enable_padding(
            direction=self._pad_side, length=self.model_max_length, pad_id=pad, pad_token=self._padding
        )
        return list(self.backend.encode(text).ids)

    def framed(self, ids: list[int]) -> list[int]:
        """Returns tokens, at most two fewer than the limit, as `padded_ids` has those of a text: start, end and padding."""
        start, end = self.ids("")
        pad: Any = self.backend.token_to_id(self._padding)
        padding = [pad] * (self.model_max_length - 2 - len(ids))
        whole = [start, *ids, end]
        return padding + whole if self._pad_side == "left" else whole + padding

    def first_place(self, count: int) -> int:
        """Returns where in `framed` the first of so many tokens stands."""
        return self.model_max_length - 1 - count if self._pad_side == "left" else 1

    @property
    def end(self) -> int:
        """The token that a text ends with."""
        return self.ids("")[-1]

    def decode(self, ids: list[int]) -> str:
        """Returns the text that tokens stand for, in small letters."""
        text: str = self.backend.decode(ids, skip_special_tokens=False)
        return text.replace("</w>", " ").strip()

    def highest(self) -> int:
        """Returns the highest number of a token."""
        return max(self.backend.get_vocab().values(), default=0)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a folder; its limit is what the settings say. Raises whatever the libraries do."""
    settings, special = (_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    limit = settings.get("model_max_length")
    tokens = _special_tokens(settings, special)
    if tokens is None or not _is_plain(folder):
        return _by_transformers(folder)
    words = {name: str(token.content) for name, token in tokens.items()}
    backend = Backend(
        BPE(
            vocab=str(folder / "vocab.json"),
            merges=str(folder / "merges.txt"),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=words["unk_token"],
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    once = {token.content: token for token in reversed(tokens.values())}  # of two alike the first
    backend.add_tokens([once[content] for content in dict.fromkeys(words.values())])
    numbers = backend.get_vocab()
    end, start = ((words[name], numbers[words[name]]) for name in ("eos_token", "bos_token"))
    backend.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return Tokenizer(backend, limit=_NO_LIMIT if limit is None else limit, padding=words["pad_token"])


_NO_LIMIT = int(1e30)


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, MAX_WORDS_BYTES)
    except FileNotFoundError:
        return {}


def _is_plain(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if path.suffix in (".json", ".txt", ".jinja", ".model")}
    return names <= _FILES and {"vocab.json", "merges.txt"} <= names


def _special_tokens(settings: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, AddedToken] | None:
    """Returns the special tokens by their names, or None where there is something that only transformers knows."""
    if settings.keys() - _NO_MATTER - _SPECIAL.keys() or special.keys() - _SPECIAL.keys():
        return None
    given = {**_SPECIAL, **settings, **special}
    tokens: dict[str, AddedToken] = {}
    for name in _SPECIAL:
        value = given[name]
        if isinstance(value, dict) and name not in special:
            if value.get("__type") != "AddedToken":
                return None
            value = {key: each for key, each in value.items() if key != "__type"}
        if isinstance(value, dict):
            value = {key: each for key, each in value.items() if key != "special"}
            if value.keys() - _TOKEN_SETTINGS or not isinstance(value.get("content"), str):
                return None
            tokens[name] = AddedToken(**value, special=True)
        elif isinstance(value, str):
            tokens[name] = AddedToken(value, special=True)
        else:
            return None
    return tokens


def _by_transformers(folder: Path) -> Tokenizer:
    from transformers import CLIPTokenizer

    keep_quiet("transformers")
    theirs = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return Tokenizer(
        theirs.backend_tokenizer,
        limit=theirs.model_max_length,
        padding=str(theirs.pad_token),
        pad_side=theirs.padding_side,
    )
