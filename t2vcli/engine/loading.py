"""From a model's files to its parts: built from the configs, filled from the weights, tried out together.

The parts are of classes of our own, with the names and the numbers of diffusers'. Where a plan asks for something that only
diffusers' classes do, or a config for something that only they know, they are of those: this is the only code that makes
them, so that their next change lands here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from t2vcli.choices import Spacing
from t2vcli.engine import dpm_solver, picture_vae, text_encoder, video_unet
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.lora.condition import LAYER as CONDITION
from t2vcli.engine.lora.condition import condition_width
from t2vcli.engine.lora.merge import PARTS as LORA_PARTS
from t2vcli.engine.lora.merge import Fitted, adding, changes_of, fitted
from t2vcli.engine.lora.pairs import Held, read_pairs
from t2vcli.engine.lora.places import Places
from t2vcli.engine.picture_vae import PictureVAE
from t2vcli.engine.settings import Settings
from t2vcli.engine.sources import fill, put_off, read_ahead
from t2vcli.engine.tensors import read_tensors, without_storage
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.tokenizer import Tokenizer, read_tokenizer
from t2vcli.engine.video_unet import VideoUNet
from t2vcli.errors import ModelError, OutOfMemoryError, T2VError
from t2vcli.limits import refuse_limit
from t2vcli.planning.forecast import architecture_of, configs_of
from t2vcli.quiet import keep_quiet
from t2vcli.schedulers import SCHEDULERS
from t2vcli.weights.models import Adapter, ModelFiles

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet3DConditionModel


def diffusers() -> Any:
    """Returns the library. Its models take several times as long to import as torch does."""
    library = importlib.import_module("diffusers")
    for name in ("accelerate", "diffusers", "transformers"):  # it imports the others
        keep_quiet(name)
    return library


@dataclass
class Model:
    """A model's parts, in host memory, ready to run."""

    text_encoder: CLIPText
    unet: VideoUNet | UNet3DConditionModel
    vae: PictureVAE | AutoencoderKL

    @property
    def vae_scale(self) -> int:
        """How many pixels a latent cell is wide and high."""
        return vae_scale(dict(self.vae.config))


def vae_scale(vae_config: dict[str, Any]) -> int:
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


@contextlib.contextmanager
def reading(what: str, files: ModelFiles) -> Iterator[None]:
    """Makes whatever goes wrong inside an error of the model. Of the embedded one it would be a bug."""
    if files.is_embedded:
        yield
        return
    with _reading_a_strangers(what, f"{files.remedy}, or check --model and --variant"):
        yield


def _reading_lora(adapter: Adapter) -> contextlib.AbstractContextManager[None]:
    """Makes whatever goes wrong inside an error of the LoRA: a stranger's file, whatever the model is."""
    return _reading_a_strangers(f"the LoRA {adapter.path}", "get the file again, or check --lora")


@contextlib.contextmanager
def _reading_a_strangers(what: str, way_out: str) -> Iterator[None]:
    """Makes whatever goes wrong inside a ModelError: a stranger's files may make any library raise anything.

    Memory that runs out is that.
    """
    try:
        yield
    except T2VError:
        raise
    except BaseException as error:
        # The tokenizers library is written in Rust, and its panics are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        from t2vcli.engine.memory import memory_shortage

        short = memory_shortage(error)
        if short:
            raise OutOfMemoryError(f"memory ran out while {what} was read ({short})") from None
        refuse_limit(error)
        raise ModelError(f"{what} cannot be loaded ({_first_line(error)}); {way_out}") from None


def _first_line(error: BaseException) -> str:
    """Returns the kind of error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """Returns the tokenizer. Its `model_max_length` is the most that the text encoder has places for.

    Raises ModelError if its files are damaged.
    """
    what = f"the tokenizer in {files.parts['tokenizer']}"
    with reading(what, files):
        tokenizer = read_tokenizer(files.parts["tokenizer"])
        places = files.config("text_encoder").get("max_position_embeddings", 77)
        limit = min(tokenizer.model_max_length, places)
        if not isinstance(limit, int) or limit < 3:
            raise ValueError(f"a length of {limit!r:.80} tokens")
        tokenizer.model_max_length = limit
        # Some mistakes show only in use.
        ids = tokenizer.padded_ids("a")
        words = files.config("text_encoder").get("vocab_size", 49408)
        if len(ids) != limit:
            raise ValueError(f"it pads to {len(ids)} tokens, not to {limit}")
        highest = max([tokenizer.highest(), *ids])
        if highest >= words:
            raise ValueError(f"a token has the number {highest}, and the text encoder knows {words}")
    return tokenizer


THEIRS = frozenset({"unet", "vae"})
"""The parts that diffusers has classes of."""


def load_model(
    files: ModelFiles,
    dtype: torch.dtype,
    shared: Mapping[str, nn.Module] = MappingProxyType({}),
    *,
    theirs: Collection[str] = THEIRS,
    when_used: bool = False,
    loras: Sequence[Fitted] | None = None,
) -> Model:
    """Returns the text encoder, UNet and VAE in `dtype`, in host memory and in evaluation mode.

    With `when_used` each part has its weights only while a PlacedModel lends it out, and no two parts have them together.

    Those in `shared` are loaded already, as parts of a model that has the same. Those in `theirs` are of diffusers'
    classes, for whoever calls what only these do; the others of ours, where those know the config. Each part is built
    from its config without its weights, these are fitted in by name and shape, and the parts are tried out together
    before anything is converted, if it is not known that they go together. No library is left to look for files, or to do
    what a config says beyond the numbers of the model. What the model's adapters change is added to each weight before it
    is converted: `loras`, as `fit_loras` has found them together with `files`; None reads them here.
    """
    if loras is None:
        files, loras = fit_loras(files)
    built: dict[str, Any] = {}
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for part in _BUILDERS:
        built[part], weights[part] = _fitted(files, part, part in theirs)
    configs = json.dumps({part: files.config(part) for part in _BUILDERS}, sort_keys=True)
    if not files.is_embedded and not _is_known(built) and configs not in _tried:
        with reading(files.source, files):
            _try_out(**built)
        _tried.add(configs)
    changes = changes_of(loras)
    for part, module in built.items():
        if part in shared and not (part in theirs and isinstance(shared[part], VideoUNet | PictureVAE)):
            built[part] = shared[part]
            continue
        in_the_files = functools.partial(reading, ", ".join(map(str, files.weights[part])), files)
        convert = adding(changes.get(part, {}))
        if when_used:
            put_off(module, weights.pop(part), dtype, convert, in_the_files)
            continue
        with in_the_files():
            fill(module, weights.pop(part), dtype, convert)
    if when_used:
        read_ahead(files.weights["unet"])  # while the text encoder is at work
    return Model(**built)


def fit_loras(files: ModelFiles) -> tuple[ModelFiles, list[Fitted]]:
    """Returns a model's files as its LoRAs have them, and how each fits, before a weight is loaded. Each file is read here once.

    Where one has the UNet take the guidance scale as a condition, so does the config in these files. The weight that such a
    LoRA changes is in no file, and zero: so without the LoRA the UNet is the plain one. Raises ModelError if one does not fit.
    """
    if not files.adapters:
        return files, []
    held = [_held(adapter) for adapter in files.adapters]
    parts = {part: _fitted(files, part, False)[0] for part in LORA_PARTS}
    with_condition = _with_condition(files, held, parts)
    if with_condition is not files:
        files, parts["unet"] = with_condition, _fitted(with_condition, "unet", False)[0]
    found = []
    for adapter, pairs in zip(files.adapters, held, strict=True):
        with _reading_lora(adapter):
            found.append(fitted(adapter, pairs, parts, files.source))
    return files, found


def _held(adapter: Adapter) -> Held:
    with _reading_lora(adapter):
        return read_pairs(adapter)


def _with_condition(files: ModelFiles, held: Sequence[Held], parts: Mapping[str, nn.Module]) -> ModelFiles:
    config = files.config("unet")
    if config.get("time_cond_proj_dim") is not None:
        return files
    layers = sum(not layer.is_embedding for layer in Places(parts).layers["unet"])
    channels = config.get("block_out_channels", [0])[0]
    for adapter, pairs in zip(files.adapters, held, strict=True):
        with _reading_lora(adapter):
            width = condition_width(pairs, layers, channels)
        if width is not None:
            unet = {**config, "time_cond_proj_dim": width}
            return replace(files, configs={**files.configs, "unet": unet}, zero=(f"{CONDITION}.weight",))
    return files


# Building the parts. The settings that make them what they are; all else in a config is not for us.


def _text_encoder(config: Mapping[str, Any], theirs: bool) -> CLIPText:
    return CLIPText(config)


def _unet(config: Mapping[str, Any], theirs: bool) -> Any:
    if not theirs and video_unet.knows(config):
        return VideoUNet(config)
    return _of_diffusers("UNet3DConditionModel", config)


def _vae(config: Mapping[str, Any], theirs: bool) -> Any:
    if not theirs and picture_vae.knows(config):
        return PictureVAE(config)
    return _of_diffusers("AutoencoderKL", config)


def _of_diffusers(name: str, config: Mapping[str, Any]) -> Any:
    kind = getattr(diffusers(), name)
    return kind.from_config(known_settings(kind, config))


def known_settings(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a class of diffusers is made with, of all that a config holds."""
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


_BUILDERS: dict[str, Callable[[Mapping[str, Any], bool], Any]] = {
    "text_encoder": _text_encoder,
    "unet": _unet,
    "vae": _vae,
}
"""How each part is made of its config, the second argument telling whether it must be of diffusers' class."""


def _fitted(files: ModelFiles, part: str, theirs: bool) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Returns a part without storage, and its weights, under its own names and in its shapes."""
    weights, config = files.weights[part], files.config_path(part)
    with reading(", ".join(map(str, weights)), files):
        tensors = read_tensors(weights)
    with reading(str(config), files), without_storage(most_parameters=2 * len(tensors) + 100):
        module: nn.Module = _BUILDERS[part](files.config(part), theirs).eval()
    wanted = module.state_dict()
    named = {_present_name(name, wanted): tensor for name, tensor in tensors.items()}
    for name in files.zero if part == "unet" else ():
        if name not in named and name in wanted:
            named[name] = torch.zeros(wanted[name].shape)
    wrong = [name for name, empty in wanted.items() if name not in named or named[name].shape != empty.shape]
    if wrong:
        raise ModelError(
            f"{weights[0]} does not fit its {config.name}: {len(wrong)} tensors are missing or of the wrong shape,"
            f" the first is {wrong[0]}; {files.remedy}, or check --model and --variant"
        )
    return module, {name: named[name] for name in wanted}


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _present_name(name: str, wanted: Mapping[str, object]) -> str:
    """Returns the name that a tensor has in the libraries of today.

    The attention of a VAE was renamed in diffusers 0.17, and since transformers 5.6 the text encoder's tower has no
    level of its own.
    """
    if name in wanted:
        return name
    renamed = re.sub(r"\.(query|key|value|proj_attn)\.", lambda match: f".{_OLD_ATTENTION[match[1]]}.", name)
    for candidate in (renamed, name.removeprefix("text_model."), f"text_model.{name}"):
        if candidate in wanted:
            return candidate
    return name


_OURS: dict[str, tuple[type[nn.Module], Mapping[str, Any]]] = {
    "text_encoder": (CLIPText, text_encoder.DEFAULTS),
    "unet": (VideoUNet, video_unet.DEFAULTS),
    "vae": (PictureVAE, picture_vae.DEFAULTS),
}
"""The class of each part, and the settings that it has by default."""


def _is_known(built: Mapping[str, Any]) -> bool:
    """Returns whether the parts are, setting for setting, those of an architecture that the table of predictions is made of.

    The table's making ran them, and trying them out takes a fifth of the time to the first step.
    """
    if not all(isinstance(built[part], kind) for part, (kind, _) in _OURS.items()):
        return False
    architecture = architecture_of(built["unet"].config)
    if architecture is None:
        return False
    configs = configs_of(architecture)
    return all(
        _numbers(built[part].config) == _numbers(Settings.of(configs[part], defaults))
        for part, (_, defaults) in _OURS.items()
    )


def _numbers(settings: Mapping[str, Any]) -> str:
    """Returns the settings as text, in which true is not 1, without the size that a picture has by default."""
    return json.dumps({**settings, "sample_size": None}, sort_keys=True)


_tried: set[str] = set()  # configs that go together


def _try_out(text_encoder: Any, unet: Any, vae: Any) -> None:
    """Runs parts without storage one after the other as a video needs them: shapes and types only, nothing is computed.

    So what does not go together is known before hours are spent. Raises whatever the libraries do.
    """
    with torch.device("meta"), torch.no_grad():
        frames, scale = 2, vae_scale(dict(vae.config))
        cells = 2 ** (len(unet.config.block_out_channels) - 1)
        words = text_encoder(torch.zeros(1, text_encoder.config.max_position_embeddings, dtype=torch.long))
        latents = torch.zeros(1, unet.config.in_channels, frames, cells, cells)
        if isinstance(unet, VideoUNet):
            noise_pred = LayerwiseUNet(unet, device="meta")(latents, torch.tensor(1), words)
        else:
            noise_pred = unet(latents, torch.tensor(1), encoder_hidden_states=words).sample
        if noise_pred.shape != latents.shape:
            raise ValueError(f"the UNet turns latents {_shape(latents)} into {_shape(noise_pred)}")
        flat = latents.transpose(1, 2).flatten(0, 1)
        factor = vae.config.scaling_factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor) or not factor:
            raise ValueError(f"the VAE has a scaling_factor of {factor!r:.80}")
        pictures = vae.decode(flat / factor).sample
        wanted = (frames, 3, scale * cells, scale * cells)
        if pictures.shape != wanted:
            raise ValueError(f"the VAE decodes latents {_shape(flat)} to {_shape(pictures)}, not to {wanted}")
        encoded = vae.encode(torch.zeros(wanted)).latent_dist.mean
        if encoded.shape != flat.shape:
            raise ValueError(f"the VAE encodes pictures {wanted} to {_shape(encoded)}, not to {_shape(flat)}")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


MAX_TRAINED_STEPS = 100_000  # 1000 in all models known; a schedule is made of as many numbers


def scheduler_class(name: str) -> Any:
    """Returns diffusers' class of the scheduler called `name`. Its import takes longer than that of torch."""
    return getattr(diffusers(), SCHEDULERS[name].class_name)


def make_scheduler(
    name: str, files: ModelFiles, spacing: Spacing = "auto", *, timestep_scaling: float | None = None
) -> Any:
    """Returns the scheduler called `name`, with the noise schedule that the model was trained with.

    Its timesteps are spaced as the model's configuration has it ("auto"), or in that way (arXiv:2305.08891, table 2).
    `timestep_scaling` is of a consistency scheduler: how fast its output leaves the input as the noise grows. Where ours gives the same numbers as diffusers' class (engine/dpm_solver.py), it is ours.
    """
    choice, config = SCHEDULERS[name], files.config("scheduler")
    laid_over = choice.settings if spacing == "auto" else {**choice.settings, "timestep_spacing": spacing}
    if timestep_scaling is not None:
        laid_over = {**laid_over, "timestep_scaling": timestep_scaling}
    with reading(str(files.config_path("scheduler")), files):
        trained = config.get("num_train_timesteps", 1000)
        if not isinstance(trained, int) or not 0 < trained <= MAX_TRAINED_STEPS:
            raise ValueError(f"num_train_timesteps is {trained!r:.80}")
        if choice.class_name == dpm_solver.DIFFUSERS_CLASS:
            settings = {key: value for key, value in config.items() if key in dpm_solver.SETTINGS} | laid_over
            if dpm_solver.knows(settings):
                return dpm_solver.DPMSolver(settings)
        kind = scheduler_class(name)
        return kind.from_config({**known_settings(kind, config), **laid_over})


def schedule_remark(name: str, files: ModelFiles) -> str | None:
    """Returns what to say if the scheduler called `name` does not suit a model that was trained down to pure noise.

    A few of diffusers' schedulers do not know `rescale_betas_zero_snr` (arXiv:2305.08891), and would leave it out unsaid;
    Karras' spacing over such a schedule spends most steps where there is nothing but noise.
    """
    if not files.config("scheduler").get("rescale_betas_zero_snr") or _suits_pure_noise(name):
        return None
    suited = [each for each in SCHEDULERS if _suits_pure_noise(each)]
    return (
        f"--scheduler {name} does not suit this model, which was trained down to pure noise: expect a picture that is a"
        f" little off; these do: {', '.join(suited)}"
    )


def _suits_pure_noise(name: str) -> bool:
    choice = SCHEDULERS[name]
    if choice.settings.get("use_karras_sigmas"):
        return False
    if choice.class_name == dpm_solver.DIFFUSERS_CLASS:
        return True
    return "rescale_betas_zero_snr" in inspect.signature(scheduler_class(name).__init__).parameters
