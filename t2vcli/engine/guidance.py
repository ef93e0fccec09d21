"""Functions that predict noise: the UNet's own, and what wraps it. All have the form `predict_noise(latents, t)`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet3DConditionModel

PredictNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
UNetForward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(sample (B, C, F, H, W), timestep, encoder_hidden_states (B, L, D) or, a text per frame, (B F, L, D)) -> noise_pred"""


def plain_forward(unet: UNet3DConditionModel, condition: torch.Tensor | None = None) -> UNetForward:
    """Returns diffusers' own forward as a function of three tensors, with a `condition` (1, D) of every timestep."""

    def forward(sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        batch, texts = len(sample), encoder_hidden_states
        per_frame = len(texts) != batch
        with _text_per_frame(unet, texts) if per_frame else contextlib.nullcontext():
            first = texts[:: len(texts) // batch] if per_frame else texts  # the forward itself takes one per sample
            noise_pred: torch.Tensor = unet(
                sample, timestep, encoder_hidden_states=first, timestep_cond=condition, return_dict=False
            )[0]
        return noise_pred

    return forward


@contextlib.contextmanager
def _text_per_frame(unet: UNet3DConditionModel, texts: torch.Tensor) -> Iterator[None]:
    """Has each of the layers that attend to the text see one per frame, (B F, L, D), while the block runs."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    def swapped(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": texts}

    with contextlib.ExitStack() as hooks:
        for module in unet.modules():
            if isinstance(module, Transformer2DModel):
                hooks.callback(module.register_forward_pre_hook(swapped, with_kwargs=True).remove)
        yield


def unet_prediction(
    unet: UNet3DConditionModel | UNetForward,
    embeds: torch.Tensor | Callable[[], torch.Tensor],
    *,
    together: bool = True,
    on_half: Callable[[int | None], None] = lambda half: None,
) -> PredictNoise:
    """Returns the prediction (B, C, F, H, W) for embeddings (B, L, D); latents of batch 1 serve every row.

    Where each frame has a text of its own, `embeds` gives those of the frames at hand, (B, F, L, D). The rows (with guidance
    two) run as one batch, or one after the other in half of the memory. `on_half` is told of each call before it is made:
    the number of its row, None where all rows are in it.
    """
    forward = plain_forward(unet) if isinstance(unet, nn.Module) else unet

    def predict_noise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        # (rows, texts of a row, L, D)
        texts = embeds[:, None] if isinstance(embeds, torch.Tensor) else embeds()
        timestep = _brought(timestep, latents.device)
        if len(texts) == 1 or together:
            on_half(None)
            sample = latents if len(texts) == 1 else torch.cat([latents] * len(texts))
            return forward(sample, timestep, texts.flatten(0, 1))
        rows = []
        for number, row in enumerate(texts):
            on_half(number)
            rows.append(forward(latents, timestep, row))
        return torch.cat(rows)

    return predict_noise


def _brought(timestep: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a timestep of the host on a device, as an argument of a kernel there: for a copy the host would wait."""
    if timestep.device == device:
        return timestep
    return torch.full((), timestep.item(), dtype=timestep.dtype, device=device)


def with_guidance(
    predict_noise: PredictNoise, scale: float, *, rescale: float = 0.0, projected: Projected | None = None
) -> PredictNoise:
    """Returns classifier-free guidance (arXiv:2207.12598) over predictions of a (negative, prompt) pair.

    `rescale` is by how much of the way its deviation is brought back to that of the prompt's prediction
    (arXiv:2305.08891, section 3.4); `projected`, how the difference of the two is taken apart. Both are of what the UNet
    sees at once: of a window, where there are several.
    """

    def guided(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        negative, positive = predict_noise(latents, timestep).chunk(2)
        if projected is None:
            pushed = negative + scale * (positive - negative)
        else:
            pushed = positive + (scale - 1) * projected.of(positive - negative, positive)
        if not rescale:
            return pushed
        dims = list(range(1, pushed.ndim))
        ratio = positive.std(dim=dims, keepdim=True) / pushed.std(dim=dims, keepdim=True)
        return rescale * (pushed * ratio) + (1 - rescale) * pushed

    return guided


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (arXiv:2410.02416), without its momentum.

    Of the difference, `eta` times as much is taken of what lies along the prompt's prediction, which burns colours in;
    `most` is the norm that the difference is cut to, 0 for any.
    """

    eta: float
    most: float = 0.0

    def of(self, difference: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Returns what of the difference (B, ...) guides."""
        dims = list(range(1, difference.ndim))
        if self.most > 0:
            norm = difference.norm(p=2, dim=dims, keepdim=True)
            difference = difference * torch.minimum(torch.ones_like(difference), self.most / norm)
        exact = torch.float64 if difference.device.type != "mps" else torch.float32  # which has no wider one
        whole, direction = difference.to(exact), F.normalize(positive.to(exact), dim=dims)  # type: ignore[arg-type]
        along = (whole * direction).sum(dim=dims, keepdim=True) * direction
        return (whole - along).to(difference.dtype) + self.eta * along.to(difference.dtype)


def guided_where(guided: PredictNoise, alone: PredictNoise, is_guided: Callable[[], bool]) -> PredictNoise:
    """Returns the guided prediction where `is_guided` says so, elsewhere that of the prompt `alone` (arXiv:2404.07724)."""

    def predict_noise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return guided(latents, timestep) if is_guided() else alone(latents, timestep)

    return predict_noise


def guidance_condition(scale: float, unet: Any) -> torch.Tensor | None:
    """Returns the guidance scale as a condition (1, D) of a UNet that takes it so, None for one that takes none.

    Sines of scale * 1000, then cosines, as T2V-Turbo was trained (arXiv:2405.18750, arXiv:2310.04378).
    """
    width = unet.config.time_cond_proj_dim
    if width is None:
        return None
    half = width // 2
    angles = (
        1000.0 * scale * torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / max(half - 1, 1)))
    )
    features = torch.cat([torch.sin(angles), torch.cos(angles)])
    return F.pad(features, (0, width % 2))[None]
