"""What every job does before a weight is read: find the model, check the words, choose the plan."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from transformers import CLIPTokenizer

from t2vcli.engine.device import DTYPES, choose_device, has_nvidia_driver, why_no_cuda
from t2vcli.engine.guidance import needs_guidance
from t2vcli.engine.loading import Model, load_model, load_tokenizer, vae_scale
from t2vcli.engine.memory import apply_plan, on_device
from t2vcli.engine.prompt import Tokens, encode_prompt, tokenize
from t2vcli.errors import UsageError
from t2vcli.models import EMBEDDED_PREFIX, ModelFiles, OnDownload, find_model
from t2vcli.plan import MemoryPlan, make_plan
from t2vcli.presets import Preset, trained_range_warning
from t2vcli.report import Report
from t2vcli.request import Request

# Words that carry no content, so that their absence from a small vocabulary needs no mention.
_FILLER = frozenset(["a", "an", "the", "and", "of", "is", "are", "with", "to", "in", "on", "at"])


@dataclass(frozen=True)
class Prepared:
    """A request that is known to be right, and everything about it that is known before loading."""

    files: ModelFiles
    plan: MemoryPlan
    prompt: Tokens
    negative_prompt: Tokens

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.plan.dtype]


def prepare(request: Request, preset: Preset, *, frames: int, report: Report, strict: bool = False) -> Prepared:
    """Returns the checked request's files, plan and tokens. Raises a T2VError before any weight is read."""
    report.stage("find")
    device = choose_device(request.device)
    files = find_model(
        request.model,
        revision=request.revision,
        variant=request.variant,
        download_bytes=preset.download_bytes,
        on_download=_download_told(report),
    )
    warning = trained_range_warning(preset, frames=frames, width=request.width, height=request.height)
    if warning:
        report.warn(warning)
    if request.device == "auto" and device == "cpu" and not request.model.startswith(EMBEDDED_PREFIX):
        reason = why_no_cuda() if has_nvidia_driver() else "no GPU was found"
        report.warn(f"{reason}; a model of this size takes hours on the CPU (--device cpu says that you know)")

    plan = make_plan(
        request,
        device=device,
        frames=frames,
        unet_config=files.config("unet"),
        vae_scale=vae_scale(files.config("vae")),
    )
    report.say(plan.summary())
    if request.offload != plan.offload and request.offload != preset.values.get("offload"):
        report.warn(f"--offload {request.offload} has no effect on {device}: its memory is the host's")
    if request.negative_prompt and not needs_guidance(request.guidance_scale):
        report.warn(
            f"the negative prompt has no effect at --guidance-scale {request.guidance_scale:g}; use more than 1"
        )
    tokenizer = load_tokenizer(files)
    _check_clip_skip(request, files)
    prompt = _checked_tokens(tokenizer, request.prompt, "prompt", report, strict)
    negative = _checked_tokens(tokenizer, request.negative_prompt, "negative prompt", report, strict)
    _say_unknown_words(files, request.prompt, report)
    return Prepared(files, plan, prompt, negative)


def _download_told(report: Report) -> OnDownload:
    """Returns what tells `report` of a download as of any other stage, in MB."""
    begun = False

    def tell(done_bytes: int, total_bytes: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            report.stage("download", math.ceil(total_bytes / 1e6), "megabyte")
        report.advance(math.ceil(done_bytes / 1e6))

    return tell


def _checked_tokens(tokenizer: CLIPTokenizer, text: str, name: str, report: Report, strict: bool) -> Tokens:
    tokens = tokenize(tokenizer, text)
    if tokens.dropped:
        line = f"the {name} is {tokens.count} tokens and the model reads {tokens.limit}; ignored: '{tokens.dropped}'"
        if strict:
            raise UsageError(f"{line} (--strict)")
        report.warn(line)
    return tokens


def _check_clip_skip(request: Request, files: ModelFiles) -> None:
    layers = files.config("text_encoder").get("num_hidden_layers", 0)
    if request.clip_skip is not None and request.clip_skip >= layers:
        raise UsageError(
            f"--clip-skip {request.clip_skip} leaves nothing of this model's {layers} text layers;"
            f" the most is {layers - 1}"
        )


def _say_unknown_words(files: ModelFiles, prompt: str, report: Report) -> None:
    vocabulary = files.vocabulary()
    if vocabulary is None:
        return
    known = vocabulary.words | _FILLER
    unknown = [w for w in re.findall(r"\w+", prompt) if w.lower() not in known]
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        report.warn(f"the demo model does not know: {names}; it knows {vocabulary.summary}")


def load(prepared: Prepared, report: Report) -> Model:
    """Returns the model, loaded and set up as planned."""
    report.stage("load")
    model = load_model(prepared.files, prepared.dtype)
    apply_plan(model, prepared.plan)
    return model


def encode_words(model: Model, prepared: Prepared, *, guided: bool, clip_skip: int | None) -> torch.Tensor:
    """Returns the conditioning: (2, L, D) with guidance, the negative prompt first, else (1, L, D).

    The negative prompt never skips layers, as in diffusers.
    """
    plan = prepared.plan
    with on_device(model.text_encoder, plan):
        rows = []
        if guided:
            rows.append(encode_prompt(model.text_encoder, prepared.negative_prompt.ids, device=plan.device))
        rows.append(encode_prompt(model.text_encoder, prepared.prompt.ids, device=plan.device, clip_skip=clip_skip))
    return torch.cat(rows).to(plan.device)
