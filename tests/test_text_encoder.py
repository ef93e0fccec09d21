"""Our text encoder against transformers' CLIPTextModel: the same features, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from t2vcli.engine.prompt import encode_prompt
from t2vcli.engine.text_encoder import CLIPText

SMALL = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}


def pair(**changes: Any) -> tuple[CLIPText, CLIPTextModel]:
    torch.manual_seed(0)
    theirs = CLIPTextModel(CLIPTextConfig(**{**SMALL, **changes})).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = CLIPText({**SMALL, **changes}).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


IDS = torch.arange(40).view(2, 20) * 7 % 100


@pytest.mark.parametrize("act", ["gelu", "quick_gelu", "gelu_pytorch_tanh", "relu", "silu"])
@torch.inference_mode()
def test_the_features_are_those_of_transformers(act: str) -> None:
    ours, theirs = pair(hidden_act=act)
    for ids in (IDS, IDS[:1], IDS[:, :9]):
        assert torch.equal(ours(ids), theirs(ids)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.inference_mode()
def test_other_types_give_the_features_of_transformers(dtype: torch.dtype) -> None:
    ours, theirs = (part.to(dtype) for part in pair())
    assert torch.equal(ours(IDS), theirs(IDS)[0])


@pytest.mark.parametrize("skipped", [0, 1, 4])
@torch.inference_mode()
def test_skipped_layers_give_the_hidden_states_of_transformers(skipped: int) -> None:
    ours, theirs = pair()
    states = theirs(IDS, output_hidden_states=True).hidden_states
    wanted = theirs.get_submodule("final_layer_norm")(states[-(skipped + 1)])
    assert torch.equal(encode_prompt(ours, IDS, device="cpu", clip_skip=skipped or None), wanted)


@torch.inference_mode()
def test_defaults_are_those_of_transformers() -> None:
    with torch.device("meta"):
        ours, theirs = CLIPText({}), CLIPTextModel(CLIPTextConfig())
    shapes = [{name: tensor.shape for name, tensor in part.state_dict().items()} for part in (ours, theirs)]
    assert shapes[0] == shapes[1]
    config = theirs.config.to_dict()
    assert {name: config[name] for name in ours.config} == ours.config


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_attention_heads": 5},
        {"hidden_size": "48"},
        {"num_hidden_layers": 0},
        {"vocab_size": True},
        {"hidden_act": "evil/kernel"},
        {"hidden_act": ["gelu"]},
        {"layer_norm_eps": None},
    ],
)
def test_settings_of_no_text_encoder_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix("num_attention_")):
        CLIPText({**SMALL, **wrong})
