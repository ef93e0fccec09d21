"""What every training stage shares: two worker processes with averaged gradients, schedule, EMA, resumable state.

Two processes of one thread each train 1.4 times faster than one process of two threads at these sizes, because the
layers are too small for a thread barrier after each.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate: linear warm-up, constant until `hold` of the steps, then a cosine to `floor` of the peak."""

    peak: float
    steps: int
    warmup: int = 200
    hold: float = 0.5
    floor: float = 0.02
    minutes: float | None = None  # ends the stage sooner on a slow machine, with the whole decay

    def progress(self, step: int, elapsed_s: float) -> float:
        """Returns how much of the stage is done, 0 to 1."""
        spent = elapsed_s / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, spent))

    def rate(self, step: int, progress: float) -> float:
        """Returns the learning rate."""
        warm = min(1.0, (step + 1) / self.warmup)
        decay = max(0.0, (progress - self.hold) / (1 - self.hold))
        return self.peak * warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * decay)))


def spawn(worker: Callable[..., None], workers: int, *args: object) -> None:
    """Runs `worker(rank, workers, *args)` in `workers` processes of one thread each."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))
    mp.spawn(_enter, args=(workers, worker, args), nprocs=workers)


def _enter(rank: int, workers: int, worker: Callable[..., None], args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1000 + rank)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    try:
        worker(rank, workers, *args)
    finally:
        dist.destroy_process_group()


class Trainer:
    """Steps an optimizer over the modules' parameters with gradients averaged over workers, and keeps their EMA."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        schedule: Schedule,
        checkpoint: Path,
        *,
        ema_decay: float = 0.999,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.modules = modules
        self.schedule = schedule
        self.checkpoint = checkpoint
        self.ema_decay = ema_decay
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=schedule.peak, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.step = 0
        self.started_s = time.monotonic()
        self.spent_s = 0.0
        self.ema = {name: copy.deepcopy(m).requires_grad_(False) for name, m in modules.items()}
        if checkpoint.exists():
            self._load()
        for p in self.parameters:
            dist.broadcast(p.data, 0)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.ema[name].load_state_dict(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.spent_s = state["spent_s"]

    def save(self) -> None:
        if dist.get_rank() != 0:
            return
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "modules": {n: m.state_dict() for n, m in self.modules.items()},
                "ema": {n: m.state_dict() for n, m in self.ema.items()},
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "spent_s": self.elapsed_s(),
            },
            temporary,
        )
        temporary.replace(self.checkpoint)

    def elapsed_s(self) -> float:
        return self.spent_s + time.monotonic() - self.started_s

    def progress(self) -> float:
        """Returns how much of the schedule is done, the same number in every worker."""
        value = torch.tensor(self.schedule.progress(self.step, self.elapsed_s()))
        dist.broadcast(value, 0)
        return float(value)

    def update(self, loss: torch.Tensor, clip_norm: float = 1.0) -> None:
        """Takes one step down the gradient of `loss`, a scalar of this worker's share of the batch."""
        lr = self.schedule.rate(self.step, self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        flat *= min(1.0, clip_norm / (flat.norm().item() + 1e-6))
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                torch._foreach_lerp_(list(self.ema[name].parameters()), list(module.parameters()), 1 - decay)

    def steps(self, *, save_every: int = 500) -> Iterable[int]:
        """Yields step numbers until the schedule ends, saving as it goes and at the end."""
        while self.progress() < 1:
            yield self.step
            if self.step % save_every == 0:
                self.save()
        self.save()


def log(trainer: Trainer, every: int = 100, **values: float) -> None:
    """Prints the step's values, from the first worker only."""
    if dist.get_rank() == 0 and trainer.step % every == 0:
        shown = " ".join(f"{k} {v:.4g}" for k, v in values.items())
        print(f"step {trainer.step}/{trainer.schedule.steps} {trainer.elapsed_s():.0f} s {shown}", flush=True)
