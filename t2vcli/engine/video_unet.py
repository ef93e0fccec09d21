"""The video UNet of the ModelScope models (arXiv:2308.06571) as modules: their names, shapes and weights, and no forward.

The names are those of UNet3DConditionModel of diffusers, so the same files fit both. Its forward is LayerwiseUNet
(engine/layerwise); diffusers' own class is loaded where its forward is asked for, and for what `knows` refuses. It takes
half of a command's start to import.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from t2vcli.engine.settings import Settings

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
    "num_attention_heads": None,
    "time_cond_proj_dim": None,
}

_COUNTS = (
    "in_channels",
    "out_channels",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "attention_head_dim",
)
_FIXED: dict[str, object] = {
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "num_attention_heads": None,
}
_WITH_ATTENTION = {
    "CrossAttnDownBlock3D": True,
    "DownBlock3D": False,
    "CrossAttnUpBlock3D": True,
    "UpBlock3D": False,
}

FRAMES_HEADS = 8
"""The heads of the attention among frames that comes before the first block, in every model of this kind."""


def knows(config: Mapping[str, Any]) -> bool:
    """Returns whether `VideoUNet` is what diffusers' class is with this config."""
    whole = Settings.of(config, DEFAULTS)
    channels, downs, ups = (whole[name] for name in ("block_out_channels", "down_block_types", "up_block_types"))
    return (
        all(_is_count(whole[name]) for name in _COUNTS)
        and all(type(whole[name]) is type(value) and whole[name] == value for name, value in _FIXED.items())
        and (whole["time_cond_proj_dim"] is None or _is_count(whole["time_cond_proj_dim"]))
        and type(whole["norm_eps"]) in (int, float)
        and all(isinstance(each, list | tuple) and each for each in (channels, downs, ups))
        and all(map(_is_count, channels))
        and len(channels) == len(downs) == len(ups)
        and all(isinstance(name, str) and name in _WITH_ATTENTION and "Down" in name for name in downs)
        and all(isinstance(name, str) and name in _WITH_ATTENTION and "Up" in name for name in ups)
        and all(width % whole["attention_head_dim"] == 0 for width in channels)
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


class VideoUNet(nn.Module):
    """The modules of the UNet, named as in diffusers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for a config that only diffusers' class knows."""
        super().__init__()
        if not knows(config):
            raise ValueError("a config that only diffusers' own class knows")
        self.config = settings = Settings.of(config, DEFAULTS)
        widths, groups = list(settings.block_out_channels), settings.norm_num_groups
        eps = settings.norm_eps
        time_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(settings.in_channels, widths[0], 3, padding=1)
        self.time_proj = Timesteps(widths[0])
        self.time_embedding = TimeEmbedding(widths[0], time_width, settings.time_cond_proj_dim)
        self.transformer_in = FramesTransformer(
            widths[0], heads=FRAMES_HEADS, head_width=settings.attention_head_dim, groups=groups
        )
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for level, (kind, width) in enumerate(zip(settings.down_block_types, widths, strict=True)):
            block = _Block(
                ((before if number == 0 else width, width) for number in range(settings.layers_per_block)),
                settings,
                with_attention=_WITH_ATTENTION[kind],
                eps=eps,
            )
            last = level == len(widths) - 1
            block.downsamplers = None if last else nn.ModuleList([Downsample(width)])
            self.down_blocks.append(block)
            before = width
        self.mid_block = _Block([(before, before)] * 2, settings, with_attention=True, eps=eps, attentions=1)
        self.num_upsamplers = len(widths) - 1
        self.up_blocks = nn.ModuleList()
        upwards = widths[::-1]
        for level, (kind, width) in enumerate(zip(settings.up_block_types, upwards, strict=True)):
            skipped = upwards[min(level + 1, len(widths) - 1)]
            layers = settings.layers_per_block + 1
            # Each resnet takes what the one before has made, and a skip: of this width, the last of the next.
            block = _Block(
                (
                    ((before if number == 0 else width) + (skipped if number == layers - 1 else width), width)
                    for number in range(layers)
                ),
                settings,
                with_attention=_WITH_ATTENTION[kind],
                eps=eps,
            )
            last = level == len(widths) - 1
            block.upsamplers = None if last else nn.ModuleList([Upsample(width)])
            self.up_blocks.append(block)
            before = width
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], settings.out_channels, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype


class Timesteps(nn.Module):
    """Sinusoidal features of timesteps (arXiv:2006.11239): (B,) to (B, width), cosines first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        angles = timesteps[:, None].float() * torch.exp(exponent)[None, :]
        features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return F.pad(features, (0, self.width % 2))


class TimeEmbedding(nn.Module):
    """A small network over the features of timesteps, and over a condition where the model takes one."""

    def __init__(self, width: int, out_width: int, condition_width: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out_width)
        if condition_width is not None:
            self.cond_proj = nn.Linear(condition_width, width, bias=False)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(out_width, out_width)

    def forward(self, features: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        if condition is not None:
            features = features + self.cond_proj(condition)
        embedded: torch.Tensor = self.linear_2(self.act(self.linear_1(features)))
        return embedded


class _Block(nn.Module):
    """Resnets of given (in, out) channels, each with its temporal convolution and, where asked for, its transformers."""

    downsamplers: nn.ModuleList | None
    upsamplers: nn.ModuleList | None

    def __init__(
        self,
        channels: Iterable[tuple[int, int]],
        settings: Settings,
        *,
        with_attention: bool,
        eps: float,
        attentions: int | None = None,
    ) -> None:
        super().__init__()
        groups, time_width = settings.norm_num_groups, 4 * settings.block_out_channels[0]
        self.has_cross_attention = with_attention
        self.resnets, made = nn.ModuleList(), []
        for before, after in channels:  # one by one: a config may ask for any number, and `without_storage` ends that
            self.resnets.append(Resnet(before, after, groups=groups, eps=eps, time_width=time_width))
            made.append(after)
        self.temp_convs = nn.ModuleList(TemporalConv(after, groups) for after in made)
        if not with_attention:
            return
        head_width = settings.attention_head_dim
        widths = made[:attentions]
        self.attentions = nn.ModuleList(
            PixelsTransformer(
                width,
                heads=width // head_width,
                head_width=head_width,
                groups=groups,
                text_width=settings.cross_attention_dim,
            )
            for width in widths
        )
        self.temp_attentions = nn.ModuleList(
            FramesTransformer(width, heads=width // head_width, head_width=head_width, groups=groups)
            for width in widths
        )


class Resnet(nn.Module):
    """Two convolutions with norms before them, added to the input; the time embedding comes in between, if there is one."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, eps: float, time_width: int | None) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = nn.SiLU()
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class TemporalConv(nn.Module):
    """Four convolutions along the frames."""

    conv1: nn.Sequential
    conv2: nn.Sequential
    conv3: nn.Sequential
    conv4: nn.Sequential

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        for number in range(1, 5):
            stage = [nn.GroupNorm(groups, channels), nn.SiLU()]
            if number > 1:
                stage.append(nn.Dropout(0.1))  # as where it was trained: it counts in the names of the weights
            stage.append(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))
            setattr(self, f"conv{number}", nn.Sequential(*stage))


class PixelsTransformer(nn.Module):
    """Attention among the pixels of each frame, and to the text."""

    def __init__(self, channels: int, *, heads: int, head_width: int, groups: int, text_width: int) -> None:
        super().__init__()
        self.use_linear_projection = True
        self.inner_dim = heads * head_width
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, self.inner_dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(heads, head_width, text_width)])
        self.proj_out = nn.Linear(self.inner_dim, channels)


class FramesTransformer(nn.Module):
    """Attention among the frames of each pixel, twice."""

    def __init__(self, channels: int, *, heads: int, head_width: int, groups: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_dim = heads, head_width
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, heads * head_width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(heads, head_width, heads * head_width)])
        self.proj_out = nn.Linear(heads * head_width, channels)


class TransformerBlock(nn.Module):
    """Attention among the tokens, attention to others of `other_width`, and a gated feed-forward, each after its norm."""

    def __init__(self, heads: int, head_width: int, other_width: int) -> None:
        super().__init__()
        width = heads * head_width
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, other_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)


class Attention(nn.Module):
    """The four projections of an attention of tokens to others, or to themselves."""

    def __init__(self, width: int, other_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(other_width, width, bias=False)
        self.to_v = nn.Linear(other_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])


class FeedForward(nn.Module):
    """A gated linear unit of four times the width, and the way back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GatedUnit(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)])


class GatedUnit(nn.Module):
    """A linear layer whose second half, through a GELU, gates the first (arXiv:2002.05202)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        result: torch.Tensor = value * F.gelu(gate)
        return result


class Downsample(nn.Module):
    """A convolution to half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    """A convolution of a picture that is enlarged before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
