"""Writes docs/memory.md and docs/memory.png from the table of predictions: `make memory-report`.

Needs matplotlib (pip install '.[report]'). Traces nothing: t2vcli/planning/memory_table.json is made by `make memory-table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import RESULTS, TIMES, read_results
from t2vcli.planning.forecast import table_forecast, traffic
from t2vcli.planning.plan import (
    CONTEXT_BYTES,
    FRAMES_AT_ONCE,
    GPU_RUNGS,
    MARGIN,
    MemoryPlan,
    smallest_card,
    with_prediction,
)
from t2vcli.planning.shape import Shape
from t2vcli.planning.speeds import ASSUMED_SHARES, KNOWN_CARDS, speeds_of_card
from t2vcli.planning.times import predicted_times
from t2vcli.request import GenerateRequest
from t2vcli.sizes import DRIVER_KEEPS, GIB, MIB, size_text, sold_as

ROOT = Path(__file__).parent.parent
ARCHITECTURE = "modelscope-1.7b"
JOBS = {
    "ms-1.7b, 16 frames, 256x256": Shape(16, 256, 256, guided=True, encodes_video=False),
    "ms-1.7b, 64 frames, 256x256": Shape(64, 256, 256, guided=True, encodes_video=False),
    "zeroscope-576w, 24 frames, 576x320": Shape(24, 576, 320, guided=True, encodes_video=False),
    "zeroscope-XL, 24 frames, 1024x576": Shape(24, 1024, 576, guided=True, encodes_video=True),
}
CARD = next(card for card in KNOWN_CARDS if card.name == "GeForce RTX 3060")
SPEEDS = speeds_of_card(CARD.name, CARD.limits(), "")
PLAIN = MemoryPlan(
    device="cuda:0", dtype="fp16", offload="none", decode_chunk=1, vae_tiling=False, forward_chunking=None
)
MODEL_OFFLOAD = replace(PLAIN, offload="model")
CHUNKED = replace(MODEL_OFFLOAD, chunk_bytes=8 * MIB, vae_strip_bytes=32 * MIB)
LOWEST = replace(CHUNKED, resident_bytes=0, park_skips=True, vae_strip_bytes=8 * MIB)
CURVES = {
    "diffusers, all on the GPU, no slicing": (replace(PLAIN, decode_chunk=10_000), "#b22222", "-"),
    "diffusers, model offload, VAE slicing": (MODEL_OFFLOAD, "#d2691e", "-"),
    "diffusers, sequential offload": (replace(PLAIN, offload="sequential"), "#daa520", "--"),
    "t2v balanced: exact chunks, weights resident": (CHUNKED, "#1f77b4", "-"),
    "t2v lowest: weights streamed, skips on the host": (LOWEST, "#2e8b57", "-"),
}


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def a_request(shape: Shape) -> GenerateRequest:
    """Returns a request of one step for clips of a shape; nothing else of it counts here."""
    return GenerateRequest(
        preset="any",
        model="any",
        prompt="any",
        width=shape.width,
        height=shape.height,
        frames=shape.frames,
        fps=Fraction(8),
        steps=1,
        guidance_scale=9.0,
        scheduler="ddim",
        seed=0,
    )


def rungs() -> list[MemoryPlan]:
    all_on_the_card, *others = (replace(PLAIN, level=rung.level, **rung.changes) for rung in GPU_RUNGS)
    return [replace(all_on_the_card, decode_chunk=FRAMES_AT_ONCE), *others]


def table_of(shape: Shape) -> list[str]:
    """Returns the ways to run one job, as the lines of a Markdown table."""
    forecast = table_forecast(ARCHITECTURE, shape)
    stages = [stage.name for stage in forecast(PLAIN) or ()]
    lines = [
        "| `--memory` | how | " + " | ".join(stages) + " | peak | moved a step | a step | card |",
        "|---|---|" + "---:|" * (len(stages) + 4),
    ]
    for plan in rungs():
        told = forecast(plan) or ()
        whole = traffic(ARCHITECTURE, shape, plan).total_bytes
        times = predicted_times(a_request(shape), ARCHITECTURE, shape, plan, SPEEDS)
        planned = with_prediction(plan, forecast)
        how = plan.summary().partition(", ")[2] or "as diffusers runs it"
        cells = [gib(stage.reserved_bytes) for stage in told]
        card = smallest_card(planned)
        step = next(stage for stage in times if stage.name == "denoise")
        lines.append(
            f"| {plan.level} | {how} | {' | '.join(cells)} | **{gib(planned.predicted_bytes or 0)}** |"
            f" {gib(whole) if whole > 10 * MIB else ''} | {step.round_s:.2f} s ({step.bound}) | {card} GB |"
        )
    return lines


def plot(path: Path) -> None:
    """Draws the peak against the number of frames."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6))
    for panel, (width, height) in zip(panels, ((256, 256), (1024, 576)), strict=True):
        counts = list(range(8, 65, 4))
        for name, (plan, colour, style) in CURVES.items():
            peaks = []
            for frames in counts:
                shape = Shape(frames, width, height, guided=True, encodes_video=False)
                stages = table_forecast(ARCHITECTURE, shape)(replace(plan, decode_chunk=min(plan.decode_chunk, frames)))
                peaks.append(max(stage.reserved_bytes for stage in stages or ()) / GIB)
            panel.plot(counts, peaks, style, color=colour, label=name, linewidth=2)
        for card in (4, 8, 12, 24):
            usable = (sold_as(card) - CONTEXT_BYTES) / GIB / (1 + MARGIN)
            panel.axhline(usable, color="#999999", linewidth=0.7, linestyle=":")
            panel.text(64.5, usable, f"{card} GB card", fontsize=7, color="#666666", va="center")
        panel.set_yscale("log")
        panel.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16, 32, 64], [".25", ".5", "1", "2", "4", "8", "16", "32", "64"])
        panel.set_title(f"{width}x{height}, guided, fp16")
        panel.set_xlabel("frames")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("predicted peak on the GPU, GiB")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, dpi=110)


HEAD = """# Memory

Written by `make memory-report`, the figures from the table of predictions; do not edit. {standing}

## Run in less

    t2v plan generate "a boat" --preset zeroscope-XL --frames 24 --vram 6GB

prints, in a second and before anything is loaded or downloaded, how the command would run: the predicted peak and time of every
stage, how often the UNet runs, the plan that was chosen, and every other way with the flags that choose it, its memory, what it
moves, its time, and the smallest card that it fits. `--json` is for scripts. `--exact` traces the very request. `--dry-run` of
`generate` and `upscale` prints the same for the device that they would run on, after every warning of the run itself.

Times leave out loading the model. They are predicted for the card that is here, as its driver describes it, or for a usual card
of that size, which is named. What `--cache` saves is not counted, nor that `heun` and `dpm2` run the UNet twice a step. Once a
clip of two steps or more was made here with the same model, size and device, they go by what that took, which is remembered in
`t2v/times.json` of the cache folder (`$XDG_CACHE_HOME`, or `~/.cache`). That file can be removed at any time.

By itself (`--memory auto`) t2v takes the fastest way that is predicted to fit the memory that is free, says so in one line, and keeps
the choice in the video's recipe. If memory runs out all the same, it goes on one way lower from the last step, not from the start.
Below the last way it stops with exit code 7. Every way makes the same frames, rounding apart:

| `--memory` | how it runs |
|---|---|
| `fast` | as diffusers runs it: everything on the GPU, or with model offload |
| `balanced` | UNet and VAE in exact chunks, the weights at work on the GPU |
| `low` | weights streamed layer by layer, as many kept on the GPU as fit |
| `lowest` | skip connections wait on the host, too |

The choices behind them can be set one by one:

| flag | what it does | changes the result |
|---|---|---|
| `--vram 6GB` | plans for a card of that size, not for what is free | no |
| `--chunk-size 8MiB` | runs UNet and VAE in exact chunks of this size | by rounding (1e-5) |
| `--offload none`, `model`, `group`, `sequential` | what waits in host memory: nothing, the parts, the blocks or the layers not in use | no |
| `--no-vae-slicing` | decodes and encodes all frames at once, not one by one | by rounding (1e-5) |
| `--forward-chunking N`, `auto` | diffusers' feed-forward chunks; an N that does not divide every level is refused, with those that do | by rounding (1e-5) |
| `--vae-tiling` | decodes in diffusers' blended tiles, whose flat areas shift in tone; strips (`--chunk-size`) do the same exactly | yes |
| `--weights fp8` | keeps the UNet's weights in 8 bits | yes |
| `--dtype fp16`, `bf16`, `fp32` | the type of weights and activations; fp16 on a GPU and fp32 on a CPU if not given | yes |

Of several cards, `--device cuda:1` takes the second: the run makes nothing on another, not even a context
(`tests/test_gpu.py`, on pretended cards). A model is not spread over two cards.

There is no attention slicing: with the attention of today's torch it saves nothing.

## Predictions

GiB are 2^30 bytes, half precision, guidance on (two samples), by what torch's caching allocator reserves; the process's CUDA
context comes on top (assumed: {context} GiB).

![Predicted peak against the number of frames, for diffusers' flags and for t2v's plans](memory.png)

The dotted lines are what a card sold with that many GB has for a plan: its memory (as many GiB, less {kept} % that the driver
keeps) less the context, less a margin of {margin} %. The column "card" counts the same, and so does `--vram 8GB`; `--vram 8GiB`
means exactly that much.
"""

METHOD = """## Method

- **Live tensors.** The engine's own functions (the same code that a run executes) run on tensors that have a shape and a
  place, but no data, under a tracker that counts live storages, each rounded up to 512 bytes as CUDA's allocator does.
  Attention is counted as the kernel that CUDA would choose (flash for heads up to 256 wide in half precision, else
  memory-efficient, with its float32 accumulator for heads over 128).
- **Kernel workspaces**, which no tracker of tensors sees, by a stated model: a convolution holds channels-last copies of its
  input, output and filter, where there is room; cuBLAS holds 8.1 MiB once.
- **The allocator.** The tracked allocations are replayed through the caching allocator's rules (2 and 20 MiB segments, best
  fit, splitting, merging, retry after freeing), four denoising steps in a row. That is the figure shown.
- **Between cells** of the table: linear in frames, then in pixels; beyond them no flatter than its largest cells, and never below
  its smallest. Two samples of n frames count as one of 2 n.
  `t2v plan generate --exact` traces the very request instead.

What holds this up (tests/test_estimate_*.py): on CPU runs in float32 the tracker equals torch's own records within 0.1 % and
the process's high-water mark within 2 %, but for kernels with scratch of their own, which are named and modelled there; the
same method lands within 2 % of the published A100 peaks of SD 1.5 and SDXL in bf16.

`python -m benchmarks.forward full` times the forward in pieces beside diffusers' own, full-size weights in float32 on a CPU;
its output differs by 5e-6 of the standard deviation at the most (`make test-slow`).

The table has no VAE strips smaller than 8 MiB, so `lowest`, whose strips are of 2 MiB, is shown with a decoding that takes
more than it does: for 24 frames of 1024x576 a trace of 2 MiB strips reserves 0.57 GiB to decode and 0.55 to encode, without
workspaces (with them 0.69 to decode, and it gets through on 0.62); 8 MiB strips 0.71 and 0.56 (live tensors: 0.46 each; the rest is fragmentation).

**Rows that fall with more frames** (`lowest`) are the allocator's. What lives grows with the frames; what is kept depends on which
freed blocks the next request can be cut from, and that is not in order. Where memory is short the allocator gives its free
blocks back and tries again, so a run gets through on less: one sample of 16, 48 and 128 frames of 256x256 reserves 448, 508 and
394 MiB in `lowest`, has 189, 230 and 246 alive, and gets through on 262, 276 and 294.

## Fast by design, argued from kernels and sizes

None of this was timed on a GPU; tests/test_gpu.py holds what can be held without one, on a card that is only pretended.

- **Norms in pieces.** Mean and variance are made per channel in two launches and merged by group (Chan, Golub and LeVeque 1979),
  whatever the strides. At 24 frames of 1024x576 a group is 4.4 MB, so a kernel that gives each group one thread block would use
  one of a card's tens of multiprocessors, 64 times a norm.
- **Streamed weights.** A layer is one piece of pinned memory of its own size and one copy, in place of some 30 allocations rounded
  up to powers of two and 30 copies: 83 copies a forward for ms-1.7b, not about 1,000. Layers come from afar, across the end of a
  forward: those of the deep levels are 28 to 122 MiB, those of the first 2 to 12 with most of the work.
  `lowest` has a block and a copy for each weight instead, and one layer ahead: large blocks would have to be kept for the layers
  (614, 660 and 542 MiB reserved in place of the 448, 508 and 394 above).
- **One wait a step**, for the check that all is finite. Timesteps stay on the host and reach the UNet as an argument of a kernel;
  looking at one on the device drains the queue (up to seven times a step, with ddpm), and so does each small copy
  that windows needed. Ancestral schedulers wait once more: what they draw is drawn on the host, so that every device has the same.
- **Decoding.** Where all is on the card four frames go through the VAE together: one of 256x256 leaves its kernels too small for
  the card, and four take what denoising does or less (4.51 GiB beside 4.40 at 16 frames of 256x256, 13.0 beside 14.9 at 24 of
  1024x576, predicted). Frames become 8 bits on the card, a quarter of the bytes, and travel while the next are decoded and the
  last are encoded.
- **`--vram` holds**: torch may take no more than the plan counts with. What it keeps for reuse counts as free for the next job.

## Assumptions, and what is not measured yet

- No GPU has run any of this: not the speed of the chunked forward, not the overlap of streaming, not the context's size, not
  workspaces on consumer cards, not equality in fp16 on CUDA.
- "A step" is predicted for a {card}: the most that its arithmetic, its memory's traffic, the kernels' launches or the copies
  between host and device take, and what decides it. Work is counted in the engine's own code (`make work-table`), the card's
  peaks are those of its data sheet, and what of them is sustained is assumed: {shares}, 8 µs a launch, and a
  tenth of the copies that run beside the work waited for.
  `t2v plan` predicts in the same way for the card that is here, as its driver describes it, and once a clip was made here with
  the same model, size and device, goes by what that took.
- Fragmentation differs from driver to driver; `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True` usually lowers it.
- fp32 is counted as twice the half-precision figure.

## If you have a GPU

`python -m benchmarks.gpu_check` needs no checkpoint and no network: it makes random weights of the real architectures on the
card, looks first at what must be right (every way to run in fp16 and bf16, resuming, decoding, memory that runs out, cards of
4 to 12 GiB emulated), then times every plan and reads its peaks, in ten minutes (`--minutes N` for more; a later run goes on).
Please send benchmarks/gpu.json back in an issue: it is what these figures wait for, and `make memory-report` puts it here.
"""


PREDICTED_ONLY = "**Every figure here is predicted, none was measured on a GPU.**"
BESIDE = "Every figure is predicted but those under **Measured**."


def measured(results: Mapping[str, Any]) -> list[str]:
    """Returns what gpu_check has found as lines of Markdown, nothing for no results."""
    rows: dict[str, Any] = results["rows"]
    if not rows:
        return []
    machine = rows.get("machine", {})
    lines = ["## Measured", ""]
    if "gpu" in machine:
        lines += [
            f"On {machine['gpu']} ({gib(machine['total_bytes'])} GiB), torch {machine['torch']}, CUDA {machine['cuda']}:"
            f" {machine['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s in products of matrices,"
            f" {gib(machine['memory_bytes_per_s'])} GiB/s of its own memory,"
            f" {gib(machine['pinned_to_device_bytes_per_s'])} GiB/s from pinned memory. What others and the context hold:"
            f" {gib(machine['others_and_context_bytes'])} GiB. Random weights, steps by the card's own clock, the first not"
            " counted. In brackets: predicted.",
            "",
        ]
    for name, found in rows.items():
        if "ok" in found:
            lines.append(f"- {name}: {'right' if found['ok'] else '**wrong**'}")
        if "error" in found:
            lines.append(f"- {name}: {found['error']}")
    staged = {tuple(name.split(": ", 1)): found["stages"] for name, found in rows.items() if "stages" in found}
    if staged:
        lines += ["", "| job | how | text encode | denoise | decode |", "|---|---|---|---|---|"]
    for (job, how), stages in staged.items():
        lines.append(f"| {job} | {how} | {' | '.join(_cell(stage) for stage in stages.values())} |")
    return lines


def _cell(stage: Mapping[str, Any]) -> str:
    """Returns the seconds and the reserved memory of a stage, with what was predicted of it."""
    words = [f"{stage[key]:.3g} {unit}" for key, unit in TIMES.items() if key in stage]
    if stage["peaks"]:
        words.append(size_text(stage["peaks"]["reserved_bytes"]))
    predicted = stage.get("predicted_reserved_bytes")
    return ", ".join(words) + (f" ({size_text(predicted)})" if predicted else "")


def main() -> None:
    found = measured(read_results(RESULTS))
    parts = [
        HEAD.format(
            context=gib(CONTEXT_BYTES),
            margin=int(MARGIN * 100),
            kept=int(DRIVER_KEEPS * 100),
            standing=BESIDE if found else PREDICTED_ONLY,
        )
    ]
    for name, shape in JOBS.items():
        parts += ["", f"## {name}", "", *table_of(shape)]
    parts += ["", *found]
    parts += ["", METHOD.format(card=CARD.name, shares=ASSUMED_SHARES).rstrip()]
    (ROOT / "docs" / "memory.md").write_text("\n".join(parts).replace("\n\n\n", "\n\n") + "\n", encoding="utf-8")
    plot(ROOT / "docs" / "memory.png")


if __name__ == "__main__":
    main()
