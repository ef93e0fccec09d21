"""What a UNet of diffusers may be, for its forward to be ours: nothing but what these models have."""

from __future__ import annotations

from diffusers import UNet3DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_3d_blocks import (
    CrossAttnDownBlock3D,
    CrossAttnUpBlock3D,
    DownBlock3D,
    UNetMidBlock3DCrossAttn,
    UpBlock3D,
)


def refuse_what_differs(unet: UNet3DConditionModel) -> None:
    """Raises ValueError for a UNet whose plain forward does something that the one in pieces does not."""
    blocks = {"down_blocks": (CrossAttnDownBlock3D, DownBlock3D), "up_blocks": (CrossAttnUpBlock3D, UpBlock3D)}
    for name, kinds in blocks.items():
        for block in getattr(unet, name):
            if not isinstance(block, kinds):
                raise ValueError(f"{name} of kind {type(block).__name__} cannot run layer by layer")
    if unet.mid_block is not None and not isinstance(unet.mid_block, UNetMidBlock3DCrossAttn):
        raise ValueError(f"a mid_block of kind {type(unet.mid_block).__name__} cannot run layer by layer")
    if any(getattr(block, factor, None) for block in unet.up_blocks for factor in ("s1", "s2", "b1", "b2")):
        raise ValueError("FreeU cannot run layer by layer: call unet.disable_freeu() first")
    for module in unet.modules():
        if isinstance(module, Attention):
            _refuse_attention(module)
        if isinstance(module, ResnetBlock2D) and (
            module.time_embedding_norm != "default" or module.output_scale_factor != 1.0 or module.skip_time_act
        ):
            raise ValueError("a resnet of a kind that these models do not have cannot run layer by layer")
        if not isinstance(module, BasicTransformerBlock):
            continue
        if module._chunk_size is not None:
            raise ValueError(
                "forward chunking is set, which pieces replace: call unet.disable_forward_chunking() first"
            )
        if module.norm_type != "layer_norm" or module.only_cross_attention or module.pos_embed is not None:
            raise ValueError("a transformer block of a kind that these models do not have cannot run layer by layer")


def _refuse_attention(attn: Attention) -> None:
    """Raises ValueError for an attention that is more than its four projections."""
    extras = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    if type(attn.processor) is not AttnProcessor2_0:
        raise ValueError(f"attention by {type(attn.processor).__name__} cannot run layer by layer")
    if any(extras) or attn.residual_connection or attn.rescale_output_factor != 1.0:
        raise ValueError("an attention of a kind that these models do not have cannot run layer by layer")
