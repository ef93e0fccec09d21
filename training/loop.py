"""What every training stage shares: steps, schedule, EMA, bf16 arithmetic, and a state that survives kill -9.

One process of one thread trains. With two workers, two such processes average their gradients, which is 1.4 times
faster than one process of two threads at these sizes, because the layers are too small for a thread barrier after each.

All that is random in a step is drawn from `Trainer.random()`, which is seeded by the step's number. So a run that was
killed and goes on from its checkpoint takes the same steps as one that was never killed.
"""

from __future__ import annotations

import copy
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn as torch_spawn


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
    """Runs `worker(rank, workers, *args)` in `workers` processes of one thread each; one worker is this process."""
    if workers == 1:
        torch.set_num_threads(1)
        worker(0, 1, *args)
        return
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))
    torch_spawn(_enter, args=(workers, os.getpid(), worker, args), nprocs=workers)


def _enter(rank: int, workers: int, parent: int, worker: Callable[..., None], args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    Trainer.parent = parent
    try:
        worker(rank, workers, *args)
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Returns whether this is the worker that saves and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


class Trainer:
    """Steps an optimizer over the modules' parameters with gradients averaged over workers, and keeps their EMA.

    The modules keep their weights in fp32. `working` holds what runs forward and backward: the modules themselves, or
    with `dtype` bfloat16 copies of them in it, brought up to date after every step.
    """

    parent: int | None = None  # the process that started this worker; without it nobody would read the result

    def __init__(
        self,
        modules: dict[str, nn.Module],
        schedule: Schedule,
        checkpoint: Path,
        *,
        dtype: torch.dtype = torch.float32,
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
        if dist.is_initialized():
            for p in self.parameters:
                dist.broadcast(p.data, 0)
        self.working = (
            modules if dtype == torch.float32 else {n: copy.deepcopy(m).to(dtype) for n, m in modules.items()}
        )
        self.working_parameters = [p for m in self.working.values() for p in m.parameters() if p.requires_grad]

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.ema[name].load_state_dict(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.spent_s = state["spent_s"]

    def save(self) -> None:
        """Writes the checkpoint beside the old one, then puts it in its place: a kill at any instant loses no state."""
        if not is_first():
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
        value = self.schedule.progress(self.step, self.elapsed_s())
        if not dist.is_initialized():
            return value
        shared = torch.tensor(value)
        dist.broadcast(shared, 0)
        return float(shared)

    def random(self) -> random.Random:
        """Returns this step's source of random numbers, and seeds torch's with it."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        rng = random.Random(f"step {self.step} of worker {rank}")
        torch.manual_seed(rng.getrandbits(60))
        return rng

    def update(self, loss: torch.Tensor, clip_norm: float = 1.0) -> None:
        """Takes one step down the gradient of `loss`, a scalar of this worker's share of the batch."""
        if self.parent is not None and os.getppid() != self.parent:
            raise SystemExit("the process that started this worker is gone")
        lr = self.schedule.rate(self.step, self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss.backward()
        used = [(p, w) for p, w in zip(self.parameters, self.working_parameters, strict=True) if w.grad is not None]
        flat = torch.cat([w.grad.reshape(-1) for _, w in used if w.grad is not None]).float()
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        flat *= min(1.0, clip_norm / (flat.norm().item() + 1e-6))
        for (p, w), piece in zip(used, flat.split([p.numel() for p, _ in used]), strict=True):
            # Of the parameter's own memory layout: the fused optimizer pairs numbers by where they lie.
            p.grad = torch.empty_like(p).copy_(piece.view_as(p))
            if w is not p:
                w.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.working is not self.modules:
            with torch.no_grad():
                torch._foreach_copy_(list(self.working_parameters), list(self.parameters))
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                torch._foreach_lerp_(list(self.ema[name].parameters()), list(module.parameters()), 1 - decay)

    def steps(self, *, save_every: int = 500, save_seconds: float = 180) -> Iterator[int]:
        """Yields step numbers until the schedule ends, saving every so many steps or seconds, and at the end."""
        saved = time.monotonic()
        while self.progress() < 1:
            yield self.step
            if self.step % save_every == 0 or time.monotonic() - saved > save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()


def log(trainer: Trainer, every: int = 100, **values: float) -> None:
    """Prints the step's values and the time left, from the first worker only."""
    if is_first() and trainer.step % every == 0:
        shown = " ".join(f"{k} {v:.4g}" for k, v in values.items())
        elapsed = trainer.elapsed_s()
        done = trainer.schedule.progress(trainer.step, elapsed)  # trainer.progress() would wait for the other workers
        left = f"{elapsed / done * (1 - done) / 60:.0f} min left" if done > 0 else "time left unknown"
        print(f"step {trainer.step} ({done:.0%}) {elapsed / 60:.1f} min, {left}: {shown}", flush=True)
