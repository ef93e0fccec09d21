"""The kill test: a real t2v, killed at seeded random moments of its life, never leaves a lie and never loses a step.

    python tests/kill_test.py --count 200 --seed 1

Each kill (SIGKILL, the process alone or with all that it started) is followed by the checks of the two promises:

    after the kill          the output is absent, the old file byte for byte, or complete with the right frames; beside it
                            lie only the run's folder and hidden temporaries; no process of ours lives on
    after the same command  (or `t2v resume`) the output's decoded frames are those of an undisturbed run, bit for bit,
                            and there is nothing else in the folder

Half of the kills meet an older file and --overwrite, a third an upscale. The moment is drawn by stage and then evenly
within the stage, as long as that took undisturbed, so that short ones such as the renaming at the end are met, too.
Most processes are forked from this one after it has imported torch, for the import takes most of a small run's time;
those killed before or while they import, and every tenth besides, are started as people do.

Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commandline import Forked, command, contents, environment, untimed

OUT, CLIP, OLD = "out.mp4", "in.mp4", b"the old file, byte for byte"
STAGES = {"begin": 1, "start": 1, "find": 1, "load": 2, "encode": 2, "denoise": 5, "decode and write": 4, "end": 6}
"""The stages of a process's life, and how often one is drawn. "begin" is before it has said anything."""
IMPORTING = ("begin", "start")

PROMPT = "a red boat moving right on the sea"
SMALL = ("--seed", "1", "--steps", "6", "--keep-every", "0", "-o", OUT)
TASKS = {
    "generate": ("generate", PROMPT, "--preset", "demo", "--frames", "4", *SMALL),
    "upscale": ("upscale", f"../{CLIP}", "--preset", "demo-XL", "--scale", "1", "--strength", "0.6", *SMALL),
}
LIMIT_S = 300.0
_TEMPORARY = re.compile(r"\.t2v-[0-9a-f]{8}\.part\.mp4")


@dataclass
class Life:
    """A process that has ended: its exit status, what it said, and when each stage began, in seconds."""

    status: int = 0
    said: str = ""
    began_s: dict[str, float] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return list(self.began_s)[-1]


@dataclass
class Undisturbed:
    """What a run that nobody kills makes: the hash of its frames, and how long its stages take."""

    frames: str
    lasts_s: dict[str, float]


class Process:
    """A t2v in a session of its own, by which whatever it starts can be found again."""

    def __init__(self, arguments: Sequence[str], folder: Path, *, fresh: bool) -> None:
        self._started_s = time.monotonic()
        self.life = Life(began_s={"begin": 0.0})
        self._stderr, writing = os.pipe()
        self._process = (subprocess.Popen if fresh else Forked)(
            command(*arguments),
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
            start_new_session=True,
        )
        self.pid = self._process.pid
        os.close(writing)
        self._unread = b""

    def listen(self, until: str | None = None, limit_s: float = LIMIT_S) -> bool:
        """Reads what it says for at most `limit_s`. Returns whether the stage `until` has begun; False if it ended."""
        deadline_s = time.monotonic() + limit_s
        while until not in self.life.began_s:
            left_s = deadline_s - time.monotonic()
            ready, _, _ = select.select([self._stderr], [], [], max(0.0, left_s))
            if not ready:
                return False
            piece = os.read(self._stderr, 65536)
            if not piece:
                return False
            self._unread += piece
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                self._hear(line.decode())
        return True

    def _hear(self, line: str) -> None:
        self.life.said += line + "\n"
        told = untimed(line)
        is_last = re.match(r"decode and write: (\d+) of \1 ", told)
        stage = "end" if is_last else told.partition(":")[0]
        if stage in STAGES and stage not in self.life.began_s:
            self.life.began_s[stage] = time.monotonic() - self._started_s

    def kill(self, *, whole: bool) -> None:
        for pid in self.members() if whole else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> Life:
        """Returns how it lived, once it has ended."""
        self.listen(limit_s=LIMIT_S)
        self.life.status = self._process.wait()
        self.life.began_s["gone"] = time.monotonic() - self._started_s
        os.close(self._stderr)
        return self.life

    def members(self) -> list[int]:
        """Returns the processes of its session that live, itself first."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with contextlib.suppress(OSError):
                    state, _, _, session = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.pid and state not in "ZX":
                        found.append(int(entry))
        return sorted(found, key=lambda pid: pid != self.pid)

    def orphans(self, limit_s: float = 20.0) -> list[int]:
        """Returns which processes of its session outlive it by more than `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        while (found := self.members()) and time.monotonic() < deadline_s:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                ending = os.pidfd_open(found[0])
                select.select([ending], [], [], max(0.0, deadline_s - time.monotonic()))
                os.close(ending)
        return found


def frames_hash(path: Path) -> str:
    """Returns the hash of a video's decoded frames."""
    from t2vcli.video.reader import read_frames

    digest = hashlib.sha256()
    for frame in read_frames(path):
        digest.update(frame.tobytes())
    return digest.hexdigest()


def undisturbed(task: str, folder: Path, *, fresh: bool) -> Undisturbed:
    life = Process(TASKS[task], folder, fresh=fresh).end()
    if life.status:
        raise SystemExit(f"the undisturbed {task} failed:\n{life.said}")
    times = list(life.began_s.items())
    lasts_s = {stage: later - began for (stage, began), (_, later) in itertools.pairwise(times)}
    return Undisturbed(frames_hash(folder / OUT), lasts_s)


@dataclass
class Kill:
    """One kill: what it met, what was found after it, how the run was gone on with, and what was wrong."""

    number: int
    stage: str
    task: str
    fresh: bool
    whole: bool
    old: bool
    found: str = ""
    then: str = ""
    wrong: list[str] = field(default_factory=list)


def kill_once(kill: Kill, moment_s: float, folder: Path, reference: Undisturbed) -> None:
    """Carries out one kill in an empty folder, and fills in what came of it."""
    out = folder / OUT
    if kill.old:
        out.write_bytes(OLD)
    arguments = [*TASKS[kill.task], *(["--overwrite"] if kill.old else [])]
    process = Process(arguments, folder, fresh=kill.fresh)
    process.listen(until=kill.stage)
    process.listen(limit_s=moment_s)
    process.kill(whole=kill.whole)
    life = process.end()
    if orphans := process.orphans():
        kill.wrong.append(f"processes {orphans} live on")
    kill.stage = [stage for stage in life.began_s if stage != "gone"][-1] if life.status else "too late"
    _check_output(kill, out, reference)
    run_folder = f"{OUT}.t2v-run"
    for name in os.listdir(folder):
        if name not in (OUT, run_folder) and not _TEMPORARY.fullmatch(name):
            kill.wrong.append(f"{name} was left behind")

    if kill.number % 3 == 2 and (folder / run_folder / "run.json").exists():
        arguments = ["resume", run_folder, *(["--overwrite"] if kill.old else [])]
    again = Process(arguments, folder, fresh=False).end()
    kill.then = _how_it_went_on(again.said)
    if again.status and not (again.status == 8 and kill.found == "complete" and kill.then == "refused"):
        kill.wrong.append(f"t2v {' '.join(arguments)} ended with {again.status}:\n{again.said}")
    if (left := sorted(contents(folder))) != [OUT]:
        kill.wrong.append(f"at the end the folder holds {', '.join(left)}")
    elif frames_hash(out) != reference.frames:
        kill.wrong.append("the frames are not those of an undisturbed run")


def _check_output(kill: Kill, out: Path, reference: Undisturbed) -> None:
    from t2vcli.errors import InputError
    from t2vcli.video.reader import read_metadata

    kill.found = "absent"
    if not out.exists():
        if kill.old:
            kill.wrong.append("the old file is gone")
        return
    kill.found = "old"
    if kill.old and out.read_bytes() == OLD:
        return
    kill.found = "complete"
    try:
        if frames_hash(out) != reference.frames or not read_metadata(out):
            kill.wrong.append("after the kill the output is another video")
    except InputError as error:
        kill.wrong.append(f"after the kill the output is neither absent, nor old, nor complete: {error}")


def _how_it_went_on(said: str) -> str:
    for sign, what in (
        ("is complete already", "cleared away"),
        ("exists already", "refused"),
        ("all steps are done", "from the latents"),
        ("going on from", "from a step"),
    ):
        if sign in said:
            return what
    return "anew"


def drawn(count: int, seed: int) -> list[tuple[Kill, float]]:
    """Returns the kills to come, each with how far into its stage it falls, from 0 to 1."""
    draw = random.Random(seed)
    kills = []
    for number in range(count):
        (stage,) = draw.choices(list(STAGES), list(STAGES.values()))
        task = draw.choice(["generate", "generate", "upscale"])
        fresh = stage in IMPORTING or number % 10 == 9
        kill = Kill(number, stage, task, fresh, whole=number % 2 == 1, old=number // 2 % 2 == 1)
        kills.append((kill, draw.random()))
    return kills


def run(count: int, seed: int, folder: Path) -> list[Kill]:
    """Returns what came of `count` kills."""
    import t2vcli.jobs.run  # noqa: F401 - so that forked processes need not

    to_come = drawn(count, seed)
    references = {}
    for task in TASKS:
        (folder / task).mkdir()
        # Only of a fresh process is the undisturbed time of the import's stages known, and only fresh ones are killed there.
        fresh = task == "generate" and any(kill.fresh for kill, _ in to_come)
        references[task] = undisturbed(task, folder / task, fresh=fresh)
        if task == "generate":
            (folder / CLIP).write_bytes((folder / task / OUT).read_bytes())
    kills = []
    for kill, part in to_come:
        number, task = kill.number, kill.task
        moment_s = part * references["generate" if kill.stage in IMPORTING else task].lasts_s[kill.stage]
        place = folder / f"kill-{number}"
        place.mkdir()
        kill_once(kill, moment_s, place, references[task])
        for wrong in kill.wrong:
            print(f"kill {number} ({kill}, after {moment_s:.3f} s): {wrong}", flush=True)
        kills.append(kill)
        if number % 20 == 19:
            print(f"{number + 1} kills", flush=True)
    return kills


def summary(kills: Sequence[Kill], elapsed_s: float) -> str:
    """Returns the figures as text."""

    def counted(values: Sequence[str]) -> str:
        return ", ".join(f"{what} {n}" for what, n in Counter(values).most_common())

    stages = Counter(kill.stage for kill in kills)
    lines = [
        f"{len(kills)} kills in {elapsed_s:.0f} s",
        f"killed in:      {', '.join(f'{s} {stages[s]}' for s in [*STAGES, 'too late'] if stages[s])}",
        f"killed:         {counted(['the process and its children' if k.whole else 'the process alone' for k in kills])}",
        f"started:        {counted(['as people do' if k.fresh else 'forked after the import' for k in kills])}",
        f"task:           {counted([k.task for k in kills])}",
        f"output before:  {counted(['an old file, --overwrite' if k.old else 'none' for k in kills])}",
        f"output after:   {counted([k.found for k in kills])}",
        f"then:           {counted([k.then for k in kills])}",
        f"violations:     {sum(bool(k.wrong) for k in kills)}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many kills (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    options = parser.parse_args(arguments)
    os.environ.update(environment())  # for forked processes, and before torch is imported
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kills = run(options.count, options.seed, Path(folder))
    print(summary(kills, time.monotonic() - started_s))
    return int(any(kill.wrong for kill in kills))


if __name__ == "__main__":
    sys.exit(main())
