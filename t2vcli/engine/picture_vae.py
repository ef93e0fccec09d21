"""The autoencoder of pictures (arXiv:2112.10752): the module that diffusers calls AutoencoderKL, with the same names and numbers.

Ours for the same reason as the UNet (engine/video_unet.py). What only diffusers' class knows, its tiles among it, is left
to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from t2vcli.engine.settings import Settings
from t2vcli.engine.video_unet import Resnet, Upsample

if TYPE_CHECKING:
    from typing import TypeAlias

    from diffusers import AutoencoderKL

    VAE: TypeAlias = "PictureVAE | AutoencoderKL"

DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}

_COUNTS = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
_SWITCHES = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
EPS = 1e-6


def knows(config: Mapping[str, Any]) -> bool:
    """Returns whether `PictureVAE` is what diffusers' class is with this config, but for tiles."""
    whole = Settings.of(config, DEFAULTS)
    channels = whole["block_out_channels"]
    downs, ups = whole["down_block_types"], whole["up_block_types"]
    return (
        all(type(whole[name]) is int and whole[name] > 0 for name in _COUNTS)
        and all(type(whole[name]) is bool for name in _SWITCHES)
        and whole["act_fn"] == "silu"
        and all(isinstance(each, list | tuple) and each for each in (channels, downs, ups))
        and all(type(width) is int and width > 0 for width in channels)
        and len(channels) == len(downs) == len(ups)
        and all(name == "DownEncoderBlock2D" for name in downs)
        and all(name == "UpDecoderBlock2D" for name in ups)
    )


class Posterior(NamedTuple):
    """A Gaussian for each value of the latents (n, C, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, moments: torch.Tensor) -> Posterior:
        """Returns it from means and log variances (n, 2 C, h, w)."""
        mean, log_variance = torch.chunk(moments, 2, dim=1)
        return cls(mean, torch.exp(0.5 * torch.clamp(log_variance, -30.0, 20.0)))


class Encoded(NamedTuple):
    latent_dist: Posterior


class Decoded(NamedTuple):
    sample: torch.Tensor


class PictureVAE(nn.Module):
    """Pictures (n, 3, H, W) in [-1, 1] to latents (n, C, h, w) and back."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for a config that only diffusers' class knows."""
        super().__init__()
        if not knows(config):
            raise ValueError("a config that only diffusers' own class knows")
        self.config = settings = Settings.of(config, DEFAULTS)
        latents = settings.latent_channels
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1) if settings.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if settings.use_post_quant_conv else None

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def encode(self, pictures: torch.Tensor) -> Encoded:
        moments = self.encoder(pictures)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return Encoded(Posterior.of(moments))

    def decode(self, latents: torch.Tensor) -> Decoded:
        """Returns the pictures of latents that are divided by the scaling factor already."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return Decoded(self.decoder(latents))


class _Coder(nn.Module):
    """What the encoder and the decoder begin and end with."""

    def __init__(self, settings: Settings, in_channels: int, first: int, last: int, out_channels: int) -> None:
        super().__init__()
        groups, deepest = settings.norm_num_groups, settings.block_out_channels[-1]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.mid_block = Middle(deepest, groups=groups, with_attention=settings.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, last, eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)

    def _ended(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return result


class Encoder(_Coder):
    def __init__(self, settings: Settings) -> None:
        widths, groups = list(settings.block_out_channels), settings.norm_num_groups
        super().__init__(settings, settings.in_channels, widths[0], widths[-1], 2 * settings.latent_channels)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            block = Block(before, width, settings.layers_per_block, groups=groups)
            if level < len(widths) - 1:
                block.downsamplers = nn.ModuleList([PictureDownsample(width)])
            self.down_blocks.append(block)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(pictures)
        for block in self.down_blocks:
            hidden = block(hidden)
        return self._ended(self.mid_block(hidden))


class Decoder(_Coder):
    def __init__(self, settings: Settings) -> None:
        widths, groups = list(settings.block_out_channels), settings.norm_num_groups
        super().__init__(settings, settings.latent_channels, widths[-1], widths[0], settings.out_channels)
        self.up_blocks = nn.ModuleList()
        upwards = widths[::-1]
        for level, (before, width) in enumerate(zip([upwards[0], *upwards], upwards, strict=False)):
            block = Block(before, width, settings.layers_per_block + 1, groups=groups)
            if level < len(widths) - 1:
                block.upsamplers = nn.ModuleList([PictureUpsample(width)])
            self.up_blocks.append(block)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self._ended(hidden)


class Block(nn.Module):
    """Resnets, and what halves or doubles the size after them."""

    downsamplers: nn.ModuleList | None
    upsamplers: nn.ModuleList | None

    def __init__(self, in_channels: int, channels: int, layers: int, *, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            PictureResnet(in_channels if number == 0 else channels, channels, groups) for number in range(layers)
        )
        self.downsamplers = self.upsamplers = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            hidden = layer(hidden)
        return hidden


class Middle(nn.Module):
    """Two resnets, and attention among all pixels between them."""

    def __init__(self, channels: int, *, groups: int, with_attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(PictureResnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([PictureAttention(channels, groups)] if with_attention else [])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            hidden = layer(hidden)
        return hidden


class PictureResnet(Resnet):
    """A resnet without a time embedding."""

    output_scale_factor = 1.0

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, groups=groups, eps=EPS, time_width=None)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(picture)))
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        if self.conv_shortcut is not None:
            picture = self.conv_shortcut(picture)
        result: torch.Tensor = picture + hidden
        return result


class PictureAttention(nn.Module):
    """Attention of one head among all pixels of a picture, added to it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = picture.shape
        tokens = self.group_norm(picture.view(count, channels, height * width)).transpose(1, 2)
        query, key, value = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        attended = self.to_out[0](attended).transpose(-1, -2).reshape(count, channels, height, width)
        result: torch.Tensor = attended + picture
        return result


class PictureDownsample(nn.Module):
    """A convolution to half the size; at the right and at the bottom there is a row more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        smaller: torch.Tensor = self.conv(F.pad(picture, (0, 1, 0, 1)))
        return smaller


class PictureUpsample(Upsample):
    """A convolution of the picture at twice the size."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        larger: torch.Tensor = self.conv(F.interpolate(picture, scale_factor=2.0, mode="nearest"))
        return larger
