"""The rows of the report: what each measures, beside which named baseline, and how far below it the project wants to be."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure import Measured, Took, command, in_turn, matmul_peak, timed

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
DEMO_MODEL = HERE.parent / "t2vcli" / "demo"
PYTHON = [sys.executable]
T2V = [sys.executable, "-m", "t2vcli"]
PROMPT = "a red boat moving right on the sea"

# Ends the process at the first call of the UNet, but for that which tries the parts out: what came before it is the start.
OURS_UNTIL = """
import os, sys
from t2vcli.engine.layerwise.unet import LayerwiseUNet
forward = LayerwiseUNet.__call__
LayerwiseUNet.__call__ = lambda unet, x, *rest: forward(unet, x, *rest) if x.is_meta else os._exit(0)
from t2vcli.cli.main import main
sys.argv = ["t2v", *sys.argv[1:]]
main()
"""
PLAIN_UNTIL = """
import os, runpy, sys
from diffusers import UNet3DConditionModel
UNet3DConditionModel.forward = lambda *_, **__: os._exit(0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Effort:
    """How much is measured: so many pairs at the most, in a folder of its own, none begun after so many `seconds`.

    `quick`: the least that shows that it works.
    """

    pairs: int
    folder: Path
    quick: bool = False
    seconds: float = math.inf

    def in_turn(self, ours: Callable[[], Took], baseline: Callable[[], Took], *, warm: bool = True) -> Measured:
        return in_turn(ours, baseline, pairs=self.pairs, warm=warm and not self.quick, seconds=self.seconds)


@dataclass(frozen=True)
class Row:
    """What is measured beside a baseline. The median ratio of what `by` names should be `bar` at the most.

    `threads` are torch's in both; a row that is `full` is of `make bench-full` alone; `most_pairs` bounds a slow one.
    """

    name: str
    baseline: str
    measure: Callable[[Effort], Measured]
    bar: float | None = None
    by: Literal["cpu_s", "wall_s", "peak_bytes"] = "cpu_s"
    threads: int = 1
    full: bool = False
    most_pairs: int = 9


def of_commands(
    ours: Callable[[Path], list[str]], baseline: Callable[[Path], list[str]], status: int = 0, *, warm: bool = True
) -> Callable[[Effort], Measured]:
    """Returns the measuring of two commands, made for a folder that is theirs; `status` is what ours exits with."""

    def measure(effort: Effort) -> Measured:
        mine, theirs = ours(effort.folder), baseline(effort.folder)
        return effort.in_turn(lambda: command(mine, status), lambda: command(theirs), warm=warm)

    return measure


# Commands


def _empty(folder: Path) -> list[str]:
    return [*PYTHON, "-c", "import typer, rich"]


def _demo(folder: Path, *more: str) -> list[str]:
    flags = ["--preset", "demo", "--seed", "1", "--quiet", "--overwrite", "--no-resume"]
    return ["generate", PROMPT, *flags, "-o", str(folder / "ours.mp4"), *more]


def _script(what: str, folder: Path, *more: str) -> list[str]:
    return [str(HERE / "plain_diffusers.py"), what, str(DEMO_MODEL), str(folder / "plain.mp4"), *more]


def _upscale(effort: Effort) -> Measured:
    source = effort.folder / "small.mp4"
    command([*T2V, *_demo(effort.folder), "-o", str(source)])
    flags = ["--preset", "demo-XL", "--prompt", PROMPT, "--seed", "1", "--quiet", "--overwrite", "--no-resume"]
    mine = [*T2V, "upscale", str(source), *flags, "-o", str(effort.folder / "ours.mp4")]
    theirs = [*PYTHON, *_script("upscale", effort.folder, str(source))]
    return effort.in_turn(lambda: command(mine), lambda: command(theirs))


def _memory(frames: int) -> Callable[[Effort], Measured]:
    """A clip in windows of 16 frames that share 8, beside one of 16 frames."""

    def clip(folder: Path, count: int) -> list[str]:
        overlap = "8" if count > 16 else "0"
        flags = ["--frames", str(count), "--steps", "2", "--window", "16", "--overlap", overlap]
        return [*T2V, *_demo(folder), *flags, "--window-schedule", "fixed"]

    def baseline(folder: Path) -> list[str]:
        return [*PYTHON, *_script("generate", folder)] if frames == 16 else clip(folder, 16)

    return of_commands(lambda folder: clip(folder, frames), baseline, warm=False)


def _full_flags(model: Path, folder: Path) -> list[str]:
    """Returns the arguments of a clip of 4 frames by a model of the full size, in bf16 on the CPU."""
    size = ["--frames", "4", "--width", "128", "--height", "128", "--steps", "2", "--guidance-scale", "2"]
    where = ["--model", str(model), "--device", "cpu", "--dtype", "bf16"]
    return ["generate", PROMPT, *where, *size, "--quiet", "--overwrite", "--no-resume", "-o", str(folder / "ours.mp4")]


def _full_model(effort: Effort) -> Path:
    model = effort.folder / "model"
    command([*PYTHON, "-m", "benchmarks.full_size", str(model)])
    return model


def _full_start(effort: Effort) -> Measured:
    model = _full_model(effort)
    mine = [*PYTHON, "-c", OURS_UNTIL, *_full_flags(model, effort.folder)]
    theirs = [*PYTHON, "-c", PLAIN_UNTIL, str(HERE / "plain_diffusers.py"), "bf16", str(model), "plain.mp4"]
    return effort.in_turn(lambda: command(mine), lambda: command(theirs))


def _full_memory(effort: Effort) -> Measured:
    """A whole job, beside a process that holds no more than the weights of the UNet, which is the largest part."""
    from benchmarks.full_size import unet_values

    model = _full_model(effort)
    mine = [*T2V, *_full_flags(model, effort.folder)]
    theirs = [*PYTHON, "-c", f"import torch; torch.ones({unet_values()}, dtype=torch.bfloat16)"]
    return effort.in_turn(lambda: command(mine), lambda: command(theirs), warm=False)


# In one process


def _forward(size: str) -> Callable[[Effort], Measured]:
    def measure(effort: Effort) -> Measured:
        from benchmarks.forward import against_plain, case_of, ways

        peak = matmul_peak()
        settings = next(iter(ways().values()))  # as a run on this CPU does it
        measured = against_plain(case_of(size), settings, effort.in_turn)
        measured.peak = peak
        return measured

    return measure


def _bf16(effort: Effort) -> Measured:
    """Our forward in bf16 beside our own in fp32, both packed where that works, of the quarter width."""
    import torch

    from benchmarks.forward import case_of, ways
    from t2vcli.engine.layerwise.unet import LayerwiseUNet

    settings = next(iter(ways().values()))
    case = case_of("demo" if effort.quick else "quarter")

    def run(dtype: torch.dtype) -> Took:
        case.unet.to(dtype)
        inputs = [each.to(dtype) if each.is_floating_point() else each for each in case.inputs]
        with contextlib.closing(LayerwiseUNet(case.unet, device="cpu", **settings)) as forward:
            forward(*inputs)
            return timed(lambda: forward(*inputs))[0]

    return effort.in_turn(lambda: run(torch.bfloat16), lambda: run(torch.float32), warm=False)


def _text(full: bool) -> Callable[[Effort], Measured]:
    """The two texts of guidance, beside transformers' CLIPTextModel on the same weights."""

    def measure(effort: Effort) -> Measured:
        import torch
        from transformers import CLIPTextConfig, CLIPTextModel

        from benchmarks.memory_table import ARCHITECTURES
        from t2vcli.engine.prompt import encode_prompt
        from t2vcli.engine.text_encoder import CLIPText

        config = ARCHITECTURES["modelscope-1.7b" if full else "demo"]["text_encoder"]
        torch.manual_seed(0)
        theirs = CLIPTextModel(CLIPTextConfig(**config)).eval()
        ours = CLIPText(config).eval()
        held = {name.removeprefix("text_model."): tensor for name, tensor in theirs.state_dict().items()}
        ours.load_state_dict({name: held[name] for name in ours.state_dict()})
        ids = torch.randint(0, config["vocab_size"], (1, config["max_position_embeddings"]))
        results: dict[str, torch.Tensor] = {}
        times = 1 if full else 20  # a text of a small model takes milliseconds

        def mine() -> None:
            for _ in range(2 * times):
                results["ours"] = encode_prompt(ours, ids, device="cpu")

        def baseline() -> None:
            with torch.inference_mode():
                for _ in range(2 * times):
                    results["theirs"] = theirs(ids).last_hidden_state

        return _with_operations(mine, baseline, results, effort)

    return measure


def _with_operations(
    mine: Callable[[], None], baseline: Callable[[], None], results: Mapping[str, torch.Tensor], effort: Effort
) -> Measured:
    """Returns both in turn, with the operations of ours and how far apart the `results` "ours" and "theirs" are."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        mine()
    measured = effort.in_turn(lambda: timed(mine)[0], lambda: timed(baseline)[0])
    measured.flops, measured.peak = counter.get_total_flops(), matmul_peak()
    ours, theirs = results["ours"], results["theirs"]
    measured.apart = float((ours - theirs).abs().max() / theirs.abs().max())
    return measured


def vae_of(*, full: bool) -> Any:
    """Returns the VAE, ours: that of the embedded model, or one of full size with random weights."""
    import torch

    from benchmarks.memory_table import ARCHITECTURES
    from t2vcli.engine.picture_vae import PictureVAE
    from t2vcli.engine.tensors import read_tensors

    torch.manual_seed(0)
    vae = PictureVAE(ARCHITECTURES["modelscope-1.7b" if full else "demo"]["vae"]).eval()
    if not full:
        vae.load_state_dict(read_tensors([DEMO_MODEL / "vae" / "diffusion_pytorch_model.safetensors"]))
    return vae


def _decode(full: bool) -> Callable[[Effort], Measured]:
    """As many frames at once as a run on this CPU decodes, beside diffusers' AutoencoderKL with all of them at once."""

    def measure(effort: Effort) -> Measured:
        import torch
        from diffusers import AutoencoderKL

        from t2vcli.engine.decode import decode_latents

        vae = vae_of(full=full)
        theirs = AutoencoderKL.from_config(dict(vae.config)).eval()
        theirs.load_state_dict(vae.state_dict())
        frames, cells = (4, 32) if full else (16, 8)
        latents = torch.randn(1, vae.config.latent_channels, frames, cells, cells) * vae.config.scaling_factor
        chunk = decode_chunk(frames, 8 * cells, 8 * cells)
        results: dict[str, torch.Tensor] = {}

        def mine() -> None:
            results["ours"] = torch.cat(list(decode_latents(vae, latents, chunk=chunk, device="cpu")))

        def baseline() -> None:
            with torch.inference_mode():
                pictures = theirs.decode(latents[0].transpose(0, 1) / theirs.config.scaling_factor).sample
                results["theirs"] = (pictures / 2 + 0.5).clamp(0, 1)

        return _with_operations(mine, baseline, results, effort)

    return measure


def decode_chunk(frames: int, width: int, height: int) -> int:
    """Returns how many frames a run of the embedded model on this CPU decodes at once."""
    from benchmarks.memory_table import ARCHITECTURES
    from t2vcli.planning.plan import candidates
    from t2vcli.planning.shape import shape_of
    from t2vcli.planning.windows import UNDIVIDED
    from t2vcli.presets import load_preset
    from t2vcli.request import GenerateRequest, build_request

    values = {**load_preset("demo").values_for(GenerateRequest), "preset": "demo", "seed": 1, "prompt": PROMPT}
    request = build_request(GenerateRequest, {**values, "frames": frames, "width": width, "height": height})
    unet = ARCHITECTURES["demo"]["unet"]
    shape = shape_of(request, UNDIVIDED, frames=frames, vae_scale=8, unet_config=unet)
    return candidates(request, device="cpu", shape=shape, unet_config=unet, vae_scale=8)[0].decode_chunk


def _written(frames: int, side: int) -> Callable[[Effort], Measured]:
    """Latents to a finished mp4, beside the longer of its two halves alone: decoding, and encoding frames that are there."""

    def measure(effort: Effort) -> Measured:
        from fractions import Fraction

        import torch

        from t2vcli.engine.decode import as_frames, decode_latents
        from t2vcli.video import Frame
        from t2vcli.video.writer import write_video

        count = 2 if effort.quick else frames
        vae, chunk = vae_of(full=False), decode_chunk(count, side, side)
        torch.manual_seed(0)
        latents = torch.randn(1, vae.config.latent_channels, count, side // 8, side // 8)

        def decoded() -> Iterator[Frame]:
            for some in decode_latents(vae, latents, chunk=chunk, device="cpu", convert=as_frames):
                yield from some.numpy()

        ready = list(decoded())

        def write(made: Iterator[Frame]) -> None:
            write_video(
                effort.folder / "clip.mp4",
                made,
                count=count,
                width=side,
                height=side,
                fps=Fraction(8),
                metadata=None,
                comment="",
                overwrite=True,
                bare=True,
            )

        def longer() -> Took:
            halves = timed(lambda: list(decoded()))[0], timed(lambda: write(iter(ready)))[0]
            return max(halves, key=lambda took: took.wall_s)

        return effort.in_turn(lambda: timed(lambda: write(decoded()))[0], longer)

    return measure


_SCRIPT = "the plain diffusers script"
_FORWARD = "diffusers' own forward"


def _forwards() -> Iterator[Row]:
    for title, size, bar, full in (
        ("demo", "demo", 1.30, False),
        ("quarter width, 16x16 latents", "quarter", 1.22, False),
        ("quarter width, 32x32 latents", "quarter-32", 1.22, False),
        ("full size (1.4 G), 4 frames", "full", 1.20, True),
    ):
        for threads in (1, 2):
            name = f"one guided step: {title}" + (", two threads" if threads == 2 else "")
            by: Literal["cpu_s", "wall_s"] = "cpu_s" if threads == 1 else "wall_s"
            yield Row(name, _FORWARD, _forward(size), 1 / bar, by=by, threads=threads, full=full, most_pairs=5)


ROWS: tuple[Row, ...] = (
    Row("`t2v --help`", "`import typer, rich`", of_commands(lambda _: [*T2V, "--help"], _empty), 1.6),
    Row(
        "a usage error",
        "`import typer, rich`",
        of_commands(lambda _: [*T2V, "generate", "a boat", "--no-such"], _empty, 2),
        2.0,
    ),
    Row(
        "`t2v plan`",
        "`import typer, rich`",
        of_commands(lambda _: [*T2V, "plan", "generate", "a boat", "--preset", "ms-1.7b"], _empty),
    ),
    Row(
        "from command to first step",
        _SCRIPT,
        of_commands(
            lambda folder: [*PYTHON, "-c", OURS_UNTIL, *_demo(folder)],
            lambda folder: [*PYTHON, "-c", PLAIN_UNTIL, *_script("generate", folder)],
        ),
        0.5,
    ),
    Row("from command to first step: full size, bf16", _SCRIPT, _full_start, 0.7, full=True, most_pairs=3),
    Row(
        "the demo job",
        _SCRIPT,
        of_commands(lambda folder: [*T2V, *_demo(folder)], lambda folder: [*PYTHON, *_script("generate", folder)]),
        0.65,
        most_pairs=5,
    ),
    Row("upscale: 64x64 to 128x128 by demo-XL", _SCRIPT, _upscale, most_pairs=3),
    Row(
        "two stages: the demo job, then demo-XL",
        f"{_SCRIPT}, both stages",
        of_commands(
            lambda folder: [*T2V, *_demo(folder), "--upscale"],
            lambda folder: [*PYTHON, *_script("both", folder)],
        ),
        most_pairs=3,
    ),
    *_forwards(),
    Row("one guided step in bf16: quarter width, 16x16 latents", "t2v's forward in fp32", _bf16, most_pairs=5),
    Row("text encode: demo, 20 times two texts", "transformers' CLIPTextModel", _text(full=False)),
    Row("text encode: full size (340 M), two texts", "transformers' CLIPTextModel", _text(full=True), full=True),
    Row("VAE decode: demo, 16 frames of 64x64", "diffusers' AutoencoderKL, all at once", _decode(full=False)),
    Row(
        "VAE decode: full size, 4 frames of 256x256",
        "diffusers' AutoencoderKL, all at once",
        _decode(full=True),
        full=True,
        most_pairs=3,
    ),
    *(
        Row(
            f"decode to finished mp4: demo, {frames} frames of {side}x{side}",
            "the longer of decoding and encoding alone",
            _written(frames, side),
            1.1,
            by="wall_s",
            most_pairs=5,
        )
        for frames, side in ((16, 64), (64, 256))
    ),
    *(
        Row(
            f"host memory: {frames:,} frames",
            _SCRIPT if frames == 16 else "t2v at 16 frames",
            _memory(frames),
            by="peak_bytes",
            most_pairs=2,
        )
        for frames in (16, 64, 256, 1024)
    ),
    Row(
        "host memory: full size, bf16, 4 frames of 128x128",
        "a process with the UNet's weights alone",
        _full_memory,
        1.1,
        by="peak_bytes",
        full=True,
        most_pairs=1,
    ),
)


def chosen(only: str, *, full: bool) -> list[Row]:
    """Returns the rows whose names hold `only`; without it those of `make bench`, or with `full` all."""
    if only:
        return [row for row in ROWS if only.casefold() in row.name.casefold()]
    return [row for row in ROWS if full or not row.full]


def measured_here(row: Row, *, pairs: int, quick: bool, seconds: float) -> Measured:
    """Returns the row, measured in this process and in commands that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        return row.measure(Effort(min(pairs, row.most_pairs), Path(folder), quick, seconds))
