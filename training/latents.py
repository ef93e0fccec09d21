"""Drawn clips as the VAE's latents, kept in a file that grows while the UNet trains.

Clip number i of a file is always the same scene, so the file holds nothing but latents, and a run that was killed in
the middle of writing one goes on after the last whole one.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import world

NIGHT_SHARE = 2  # how often a scene at night is drawn, of once for the other places: night is the hardest to learn


def frames_to_tensor(frames: np.ndarray) -> torch.Tensor:
    """(F, H, W, 3) uint8 -> (F, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encode(vae: AutoencoderKL, frames: np.ndarray) -> torch.Tensor:
    """Returns a clip's latents (8, F, S/8, S/8); frames is (F, S, S, 3) uint8."""
    return vae.encode(frames_to_tensor(frames)).latent_dist.mean.transpose(0, 1)


class LatentClips:
    """A growing file of whole clips (TRAJECTORY_FRAMES frames) in half precision, with the scenes they were drawn from.

    `held_out` clips show the combinations that training never sees; they measure it.
    """

    def __init__(
        self, path: Path, vae: AutoencoderKL, *, size: int = 64, held_out: bool = False, night_share: int = NIGHT_SHARE
    ) -> None:
        self.path, self.vae, self.size, self.held_out = path, vae, size, held_out
        self.night_share = night_share
        self.shape = self.shape_of_a_clip()
        self._bytes = 2 * int(np.prod(self.shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.count = path.stat().st_size // self._bytes
        with path.open("r+b") as file:
            file.truncate(self.count * self._bytes)
        self._clips = self._map()

    def _map(self) -> np.ndarray:
        if self.count == 0:
            return np.empty((0, *self.shape), np.float16)
        return np.memmap(self.path, np.float16, "r", shape=(self.count, *self.shape))

    def scene(self, index: int) -> world.Scene:
        """Returns what clip `index` shows; in training clips, night more often than other places."""
        rng = random.Random(f"clip {index} of {self.path.stem}")
        if self.held_out:
            return world.sample_scene(rng, rng.choice(world.held_out_combinations()))
        combinations = world.training_combinations()
        nights = [c for c in combinations if c[3] == "night"]
        return world.sample_scene(rng, rng.choice(combinations + nights * (self.night_share - 1)))

    def shape_of_a_clip(self) -> tuple[int, ...]:
        return (self.vae.config.latent_channels, world.TRAJECTORY_FRAMES, self.size // 8, self.size // 8)

    def draw(self, index: int) -> torch.Tensor:
        """Returns what is kept of clip `index`."""
        return encode(self.vae, world.draw_clip(self.scene(index), size=self.size))

    def grow(self, count: int) -> None:
        """Draws and encodes clips until there are `count` of them."""
        with self.path.open("ab") as file:
            while self.count < count:
                file.write(self.draw(self.count).half().contiguous().numpy().tobytes())
                self.count += 1
        self._clips = self._map()

    def latents(self, index: int) -> torch.Tensor:
        """Returns what is kept of clip `index` in fp32: its latents, (8, 16, S/8, S/8)."""
        return torch.from_numpy(self._clips[index].astype(np.float32))

    def sample(
        self, rng: random.Random, batch: int, frames: int, *, among: int, empty: float
    ) -> tuple[torch.Tensor, torch.Tensor, list[str], list[world.Scene]]:
        """Returns latents (B, 8, F, S/8, S/8), frame numbers (B, F), captions and scenes of clips below number `among`.

        A share `empty` of the captions is empty, for classifier-free guidance. Whatever `frames` is, a clip shows the
        whole way from end to end: so the first frame of "left" is always on the right, and the words for a motion
        matter as much as those for a colour.
        """
        clips, numbers, captions, scenes = [], [], [], []
        for _ in range(batch):
            index = rng.randrange(among)
            scene = self.scene(index)
            stride = (world.TRAJECTORY_FRAMES - 1) // (frames - 1) if frames > 1 else 1
            first = rng.randint(0, world.TRAJECTORY_FRAMES - 1 - stride * (frames - 1))
            chosen = torch.arange(frames) * stride + first
            clips.append(self.latents(index)[:, chosen])
            numbers.append(chosen)
            captions.append("" if rng.random() < empty else world.caption(scene, rng))
            scenes.append(scene)
        return torch.stack(clips), torch.stack(numbers), captions, scenes


def subject_cells(scenes: list[world.Scene], numbers: torch.Tensor, cells: int) -> torch.Tensor:
    """Returns which latent cells (B, 1, F, cells, cells) touch the subject, as 0 and 1; numbers are frames (B, F)."""
    centres = torch.tensor(
        [[s.centre(float(n)) for n in row] for s, row in zip(scenes, numbers, strict=True)]
    )  # (B, F, 2)
    reach = torch.tensor([1.2 * s.radius for s in scenes])[:, None, None, None] + 0.5 / cells
    middles = (torch.arange(cells) + 0.5) / cells
    near_x = (middles[None, None, None, :] - centres[..., 0][..., None, None]).abs() < reach
    near_y = (middles[None, None, :, None] - centres[..., 1][..., None, None]).abs() < reach
    return (near_x & near_y).float()[:, None]
