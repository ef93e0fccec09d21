"""The only code that touches how diffusers and transformers load things, so that their next change lands here."""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet3DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from t2vcli.errors import ModelError, UsageError
from t2vcli.models import ModelFiles
from t2vcli.schedulers import SCHEDULERS

# What a damaged or foreign weight file makes the libraries raise.
_LOAD_ERRORS = (SafetensorError, OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError)


@dataclass
class Model:
    """A model's parts, in host memory, ready to run."""

    text_encoder: CLIPTextModel
    unet: UNet3DConditionModel
    vae: AutoencoderKL

    @property
    def vae_scale(self) -> int:
        """How many pixels a latent cell is wide and high."""
        return vae_scale(dict(self.vae.config))


def vae_scale(vae_config: dict[str, Any]) -> int:
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps the libraries' progress bars and load-time remarks off stderr; errors still raise."""
    diffusers_level, transformers_level = diffusers.logging.get_verbosity(), transformers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            yield
    finally:
        diffusers.logging.set_verbosity(diffusers_level)
        transformers.logging.set_verbosity(transformers_level)


def load_tokenizer(files: ModelFiles) -> CLIPTokenizer:
    """Returns the tokenizer. Raises ModelError if its files are damaged."""
    try:
        with _quietly():
            return CLIPTokenizer.from_pretrained(files.parts["tokenizer"], local_files_only=True)
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"the tokenizer in {files.parts['tokenizer']} cannot be read ({_first_line(error)}); {files.remedy}"
        ) from None


_KINDS = {"text_encoder": CLIPTextModel, "unet": UNet3DConditionModel, "vae": AutoencoderKL}


def load_model(files: ModelFiles, dtype: torch.dtype, shared: Mapping[str, nn.Module] = MappingProxyType({})) -> Model:
    """Returns the text encoder, UNet and VAE in `dtype`, in host memory and in evaluation mode.

    Those in `shared` are loaded already, as parts of a model that has the same.
    """
    parts: dict[str, Any] = {
        part: shared[part] if part in shared else _load_part(kind, files, part, dtype) for part, kind in _KINDS.items()
    }
    return Model(**parts)


def _load_part(kind: Any, files: ModelFiles, part: str, dtype: torch.dtype) -> Any:
    weights = files.weights[part]
    options: dict[str, Any] = {
        "variant": files.variant,
        "dtype": dtype,
        "use_safetensors": weights.suffix == ".safetensors",
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        with _quietly():
            module, info = kind.from_pretrained(files.parts[part], **options)
    except _LOAD_ERRORS as error:
        refused = _refused_by_the_unpickler(error)
        if refused:
            raise ModelError(
                f"{weights} cannot be loaded: it holds {refused}, and a .bin is read only as far as it holds tensors,"
                " since anything else could run code; use a model in safetensors"
            ) from None
        raise ModelError(
            f"{weights} cannot be loaded ({_first_line(error)}); {files.remedy}, or check --model and --variant"
        ) from None
    wrong = [*info.get("missing_keys", ()), *(str(k) for k in info.get("mismatched_keys", ()))]
    if wrong:
        raise ModelError(
            f"{weights} does not fit its config.json: {len(wrong)} tensors are missing or of the wrong shape,"
            f" the first is {wrong[0]}"
        )
    assert isinstance(module, nn.Module)
    # Weights keep requires_grad, as in diffusers' pipelines: nothing is recorded in inference mode, but without it
    # torch.matmul multiplies non-contiguous inputs another way and the frames differ from theirs in the last bits.
    return module.eval()


def _refused_by_the_unpickler(error: BaseException) -> str | None:
    """Returns what a pickle holds that torch's weights-only unpickler refused, such as `posix.system`, if that it was."""
    cause: BaseException | None = error
    while cause is not None:
        named = re.search(r"(?i)unsupported (?:global: )?global ([\w.]+)", str(cause))
        if named and isinstance(cause, pickle.UnpicklingError):
            return named[1]
        cause = cause.__cause__ or cause.__context__
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def make_scheduler(name: str, files: ModelFiles) -> Any:
    """Returns the scheduler called `name`, with the noise schedule that the model was trained with."""
    choice = SCHEDULERS[name]
    kind = getattr(diffusers, choice.class_name)
    config = {k: v for k, v in files.config("scheduler").items() if not k.startswith("_")}
    with _quietly():
        return kind.from_config({**config, **choice.settings})


def check_steps(name: str, files: ModelFiles, steps: int) -> None:
    """Raises UsageError if the scheduler called `name` has no sound schedule of `steps` for this model."""
    scheduler = make_scheduler(name, files)
    if isinstance(scheduler, diffusers.PNDMScheduler):
        least = 1 if scheduler.config.skip_prk_steps else scheduler.pndm_order
        if steps < least:  # it begins with that many Runge-Kutta steps
            raise UsageError(f"--steps {steps} is too few for --scheduler {name}; use {least} or more")
    scheduler.set_timesteps(steps)
    trained = scheduler.config.num_train_timesteps
    sigmas = getattr(scheduler, "sigmas", None)
    # Schedules that count from 1 go beyond the last timestep; others visit one twice, and divide by the step between.
    stands_still = sigmas is not None and scheduler.order == 1 and bool((sigmas.diff() == 0).any())
    if float(scheduler.timesteps.max()) >= trained or stands_still:
        raise UsageError(
            f"--steps {steps} is too many for --scheduler {name}: the model knows {trained} levels of noise;"
            f" use {trained - 2} or fewer"
        )
