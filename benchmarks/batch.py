"""Measures `t2v batch` beside a bare loop of the engine and beside commands of their own, and with a list of 100,000 jobs.

    python -m benchmarks.batch [--jobs 60]

CPU seconds, this process's and its children's, so that what else the machine does matters less; start-up is told apart.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import cpu_s, timed
from t2vcli.asking.job import Job, Policy
from t2vcli.batches.loop import Unwatched, Watch
from t2vcli.batches.run import run_batch
from t2vcli.batches.workers import Event, Finished, Made, Ready, Task
from t2vcli.stopping import Stop

PROMPTS = ("a red boat", "a yellow star", "a blue ball", "a green fish", "a white square", "a purple triangle")
FIELDS = {"preset": "demo", "frames": 8}
MOST_AT_ONCE = 1_000


def measured(work: Callable[[], object]) -> float:
    return timed(work)[0].cpu_s


def listed(count: int) -> list[dict[str, Any]]:
    return [{**FIELDS, "prompt": PROMPTS[n % len(PROMPTS)], "seed": n, "output": f"{n}.mp4"} for n in range(count)]


class Bare:
    """The engine's own loop over one loaded model: words, noise, steps, frames, a verified file; nothing around it.

    As in a batch, a prompt is encoded once, and the model stays as it is set up.
    """

    def __init__(self) -> None:
        from t2vcli.asking.work import work_for
        from t2vcli.engine.loading import load_model, load_tokenizer
        from t2vcli.engine.memory import PlacedModel
        from t2vcli.engine.prompt import encode_tokens, tokenize
        from t2vcli.jobs.around import Around
        from t2vcli.jobs.run import prepared_stages

        work = work_for(Job.read({**FIELDS, "prompt": "a boat"}), take_up=False)
        (self.prepared,) = prepared_stages(work, Policy(), Around())
        self.request, self.fps = work.first, work.fps
        self.placed = PlacedModel(load_model(self.prepared.files, self.prepared.dtype, theirs=()))
        self.placed.place(self.prepared.plan)
        tokenizer = load_tokenizer(self.prepared.files)

        @functools.cache
        def encoded(text: str) -> Any:
            with self.placed.text_encoder() as encoder:
                return encode_tokens(encoder, tokenize(tokenizer, text), device=self.prepared.plan.device)

        self.encoded = encoded

    def make(self, job: dict[str, Any], path: Path) -> None:
        import torch

        from t2vcli.engine.denoise import denoise
        from t2vcli.engine.guidance import unet_prediction, with_guidance
        from t2vcli.engine.latents import make_generator, noise_state
        from t2vcli.engine.schedule import laid_out
        from t2vcli.jobs.sample import decoded_frames
        from t2vcli.video.writer import write_video

        request, device = self.request, self.prepared.plan.device
        embeds = torch.cat([self.encoded(request.negative_prompt), self.encoded(job["prompt"])])
        generator, scheduler = make_generator(job["seed"]), laid_out(request, self.prepared.files)
        channels, scale = self.placed.model.unet.config.in_channels, self.placed.model.vae_scale
        shape = 1, channels, job["frames"], request.height // scale, request.width // scale
        state = noise_state(scheduler, generator, shape=shape, dtype=self.prepared.dtype, device=device)
        with self.placed.unet() as forward:
            predict = with_guidance(unet_prediction(forward, embeds), request.guidance_scale)
            *_, last = denoise(predict, scheduler, state, generator)
        write_video(
            path,
            decoded_frames(self.placed, last.latents),
            count=job["frames"],
            width=request.width,
            height=request.height,
            fps=self.fps,
            metadata=None,
            comment="",
        )


class Clock(Unwatched):
    """Notes the CPU seconds that have gone by at the end of each job of a batch."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def ended(self, *_: object) -> None:
        self.at.append(cpu_s())


def batch(folder: Path, count: int) -> list[float]:
    """Returns the CPU seconds of each job of a batch in this process."""
    clock = Clock()
    before = cpu_s()
    run_batch(listed(count), folder, watch=clock)
    return [later - earlier for earlier, later in zip([before, *clock.at], clock.at, strict=False)]


def frames_of(path: Path) -> list[bytes]:
    from t2vcli.video.reader import probe, read_frames

    return [frame.tobytes() for frame in read_frames(path, probe(path))]


def processes(folder: Path, count: int) -> float:
    """Returns the CPU seconds a job takes as a command of its own."""

    def each() -> None:
        for job in listed(count):
            command = [sys.executable, "-m", "t2vcli", "generate", job["prompt"], "--quiet", "-p", job["preset"]]
            values = ["--frames", str(job["frames"]), "--seed", str(job["seed"]), "-o", str(folder / job["output"])]
            subprocess.run([*command, *values], check=True, stdout=subprocess.DEVNULL)

    return measured(each) / count


# A long list, in a process of its own, whose memory is then its alone


class Idle:
    """Workers that say at once that they have made their clips."""

    def __init__(self) -> None:
        self._done: list[Event] = [Ready(f"w{number}") for number in range(MOST_AT_ONCE)]

    def start(self) -> int:
        return MOST_AT_ONCE

    def give(self, worker: str, task: Task) -> None:
        self._done.append(Finished(worker, Made(task.job.output, 10, 20, "0" * 64)))

    def events(self, timeout_s: float) -> Iterable[Event]:
        done, self._done = self._done, []
        return done

    def replace(self, worker: str) -> bool:
        raise AssertionError

    def end(self, worker: str, reason: str) -> None:
        raise AssertionError

    def stop(self) -> None: ...

    def close(self) -> None: ...


def driven(folder: Path, count: int) -> dict[str, float]:
    """Drives a batch of so many jobs, and returns the CPU seconds until the first begins and after it, and the memory.

    That is what is held with all of them queued and at the end, the more of the two, and the most while they were read.
    """
    jobs = folder / "jobs.jsonl"
    with jobs.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({**FIELDS, "prompt": f"a red boat {n}"}) + "\n" for n in range(count))
    began: list[float] = []
    queued: list[int] = []

    def idle(folder: Path, policy: Policy, watch: Watch, stop: Stop) -> Idle:
        began.append(cpu_s())
        queued.append(memory("VmRSS"))
        return Idle()

    before = cpu_s()
    run_batch(jobs, folder, workers=idle)
    driven_s, held = cpu_s() - began[0], max(queued[0], memory("VmRSS"))
    most = memory("VmHWM")
    return {"read_s": began[0] - before, "driven_s": driven_s, "held_mib": held / 2**20, "most_mib": most / 2**20}


def memory(name: str) -> int:
    """Returns the memory that this process holds (VmRSS), or the most that it has held (VmHWM), in bytes.

    What getrusage tells of the latter has in it what the process that started this one held then.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+([0-9]+) kB", status)[1]) * 1024  # type: ignore[index]


def read_again(folder: Path) -> dict[str, float]:
    """Returns the CPU seconds that the journal in a folder takes to be read."""
    from t2vcli.batches.made import Ledger

    return {"journal_s": measured(lambda: Ledger(folder))}


def alone(name: str, folder: Path, count: int) -> dict[str, float]:
    """Returns what `driven` or `read_again` returns in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.batch", "--alone", name, str(folder), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def folders(*names: str) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder) / name for name in names]
        for each in made:
            each.mkdir()
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60, help="how many jobs, 4 at the least")
    parser.add_argument("--processes", type=int, default=3, help="how many jobs are made as commands of their own")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        name, folder, count = given.alone
        print(json.dumps(driven(Path(folder), int(count)) if name == "driven" else read_again(Path(folder))))
        return
    started_s, jobs = time.time(), listed(given.jobs)
    with folders("bare", "batch", "alone", "few", "many") as (bare_at, batch_at, alone_at, few_at, many_at):
        bare: list[float] = []
        engine = None

        def loop(part: list[dict[str, Any]]) -> None:
            assert engine is not None
            for job in part:
                bare.append(measured(functools.partial(engine.make, job, bare_at / job["output"])))

        def begin() -> None:
            nonlocal engine
            engine = Bare()

        load_s = measured(begin)
        loop(jobs[: given.jobs // 2])
        ours = batch(batch_at, given.jobs)
        loop(jobs[given.jobs // 2 :])
        same = sum(frames_of(batch_at / job["output"]) == frames_of(bare_at / job["output"]) for job in jobs[:6])
        by_command = processes(alone_at, given.processes)
        few, many = (alone("driven", at, count) for at, count in ((few_at, 10), (many_at, given.lines)))
        journal_s = alone("read_again", many_at, given.lines)["journal_s"]
    each, later = sum(bare[1:]) / (given.jobs - 1), sum(ours[1:]) / (given.jobs - 1)
    print(f"imports and one loaded model                     {load_s:6.2f} CPU s")
    print(f"a job of the engine's bare loop, {given.jobs} jobs         {each:6.3f} CPU s")
    print(f"a job of a batch                                 {later:6.3f} CPU s   {later / each:.3f} of the bare loop")
    print(f"the same frames                                  {same} of {len(jobs[:6])} looked at")
    print(f"the second job of a batch against the first      {ours[1]:6.3f} CPU s   {ours[1] / ours[0]:.2f}")
    print(
        f"a job as a command of its own                    {by_command:6.2f} CPU s   a batch's: {later / by_command:.2f}"
    )
    print(f"a list of {given.lines:,} lines checked                {many['read_s']:6.1f} CPU s")
    print(f"its jobs given out, and journaled                {many['driven_s']:6.1f} CPU s")
    print(f"the driver's memory, above that of 10 jobs       {many['held_mib'] - few['held_mib']:6.1f} MiB")
    print(f"while the list is read                           {many['most_mib'] - few['most_mib']:6.1f} MiB")
    print(f"its journal read                                 {journal_s:6.2f} CPU s")
    print(f"in {time.time() - started_s:.0f} s of wall time")


if __name__ == "__main__":
    main()
