"""The files of a checkpoint: finding, verifying and reading them. Nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from huggingface_hub import snapshot_download
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection

from tave.backbone.parts import BackboneError, BackboneMissingError
from tave.backbone.sizes import COPY, LEVELS, check_network, check_types, header_of, line, part_config
from tave.config import PACKAGE
from tave.files import FileError, file_digest, read_json

LARGEST_PICTURE = 2048  # side in px of what an image encoder sees: of the published ones 224 or 336
Part = TypeVar("Part")
Files = dict[str, list[Path]]
"""Part -> its weight files, one or shards."""

SETTINGS = (".json", ".txt")  # what describes a part beside its weights: configuration, vocabulary
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
WEIGHTS = {"text_encoder": "model", "image_encoder": "model"}  # part -> stem of its weights' name
STEM = "diffusion_pytorch_model"  # that of the other parts
# Width of the UNet's image vector, twice the image encoder's -> name of the checkpoint.
UNCLIP_VARIANTS = {2048: "sd21_unclip", 1536: "sd21_unclip_small"}
NETWORKS: dict[str, type] = {
    "text_encoder": CLIPTextModel,
    "image_encoder": CLIPVisionModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
PLAIN = {  # part without weights -> alternative sets of files
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "feature_extractor": (("preprocessor_config.json",),),
    "scheduler": (("scheduler_config.json",),),
    "image_noising_scheduler": (("scheduler_config.json",),),
}


def find(
    path: str | Path | None, mirrors: Sequence[str], check: Callable[[Path], Files], missing: str, key: str = "path"
) -> tuple[Path, Files]:
    """Find a checkpoint: ``path``, or the first complete one of ``mirrors`` in the hub's local cache.

    ``check`` returns the weight files of a folder or raises :class:`BackboneError`. Raises
    :class:`BackboneMissingError` with the message ``missing``, about the option ``key``, if there is no folder at all.
    """
    incomplete: FileError | None = None
    for place in mirrors if path is None else [path]:
        folder = local_copy(place)
        if folder is None:
            continue
        try:
            return folder, check(folder)
        except FileError as error:
            incomplete = incomplete or error
    raise incomplete or BackboneMissingError(missing, key)


def local_copy(place: str | Path) -> Path | None:
    """The folder ``place``, or the copy of the repository `owner/name` in the hub's local cache."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    owner, _, name = str(place).partition("/")
    if not owner.strip("./~") or not name or "/" in name:
        return None
    try:
        return Path(snapshot_download(str(place), local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or not a repository's name
        return None


def listing(parts: Sequence[str]) -> str:
    """The files that make up ``parts``, for a message: `unet/config.json + ...`."""
    return ", ".join(f"{part}/{_files_of(part)}" for part in parts)


def _files_of(part: str) -> str:
    if part in PLAIN:
        return " or ".join(" + ".join(names) for names in PLAIN[part])
    return f"config.json + {WEIGHTS.get(part, STEM)}.safetensors"


def pipeline_files(folder: Path, plain: Sequence[str], models: Sequence[str], layout: str) -> Files:
    """The weight files of ``models`` in a pipeline's folder, whose parts without weights are ``plain``.

    Raises :class:`BackboneError` for a missing file, for a network that the files can't hold
    (:mod:`tave.backbone.sizes`), and for a UNet with more input channels than latents have.
    """
    for part in plain:
        if not any(all((folder / part / name).is_file() for name in names) for names in PLAIN[part]):
            raise BackboneError(
                f"{folder / part} lacks {_files_of(part)}: copy the subfolder {part} there from {layout}"
            )
    found = {part: weight_files(folder / part, WEIGHTS.get(part, STEM), layout) for part in models}
    for part in NETWORKS.keys() & found.keys():
        check_network(NETWORKS[part], folder / part, found[part])
    inputs = part_config(folder / "unet" / "config.json").get("in_channels", 4)
    latents = part_config(folder / "vae" / "config.json").get("latent_channels", 4)
    if inputs != latents:
        raise BackboneError(
            f"{folder / 'unet'} takes {inputs} channels, but its autoencoder makes {latents}: use the plain checkpoint "
            "instead of one for inpainting"
        )
    return found


def weight_files(inside: Path, stem: str, layout: str) -> list[Path]:
    """The safetensors files of the model in ``inside``: a single one or shards, full precision before fp16.

    Raises :class:`BackboneError` for what is missing, and for a pickle, which can run code when it is read.
    """

    def lacks(file: str) -> BackboneError:
        return BackboneError(f"{inside} lacks {file}: copy its files there from {layout}")

    if not (inside / "config.json").is_file():
        raise lacks("config.json")
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (inside / name).is_file():
            return [inside / name]
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"):
        if (inside / name).is_file():
            shards = _shards(inside / name)
            if absent := [shard for shard in shards if not (inside / shard).is_file()]:
                raise lacks(absent[0])
            return [inside / shard for shard in shards]
    if pickles := sorted(file.name for file in inside.iterdir() if file.suffix in (".bin", ".ckpt")):
        raise BackboneError(
            f"{inside} has {pickles[0]}, a pickle, which could run code and is not read: put {stem}.safetensors there"
        )
    raise lacks(f"{stem}.safetensors")


def _shards(index: Path) -> list[str]:
    """The files that an index names, all beside it."""
    names = read_json(index, COPY).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BackboneError(f"{index} has no weight_map of file names: {COPY}")
    if outside := sorted(name for name in names.values() if Path(name).name != name):
        raise BackboneError(f"{index} names {outside[0]}, which is not beside it: {COPY}")
    return sorted(set(names.values()))


def unet_config(folder: Path) -> dict[str, Any]:
    """The UNet's ``config.json``, empty if there is none: the family is checked before its files are."""
    file = folder / "unet" / "config.json"
    config = part_config(file) if file.is_file() else {}
    for key in ("class_embed_type", "addition_embed_type"):
        if not isinstance(config.get(key), str | None):
            raise BackboneError(f"{file}: {key} is no name: {COPY}")
    if not isinstance(config.get("projection_class_embeddings_input_dim"), int | None):
        raise BackboneError(f"{file}: projection_class_embeddings_input_dim is no number: {COPY}")
    return config


def verified(
    files: Files, root: Path, known: Mapping[str, Any], name: str, tuned_from: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Hash ``files`` and compare with ``known``: part -> precision (fp32, fp16) -> published SHA-256 of a single file.

    ``tuned_from``: path within ``root`` -> SHA-256 of what a clip was tuned from. Returns such hashes, with those of
    the parts' configurations, tokenizers and schedulers, which make other results too; and the paths of weights
    without a published value, this package's own excepted. Raises :class:`BackboneError` for a hash that differs, and
    for a file that is not in safetensors format.
    """
    weights = {file: part for part, found in files.items() for file in found}
    folders = {file.parent for file in weights} | {root / part for part in PLAIN if (root / part).is_dir()}
    settings = (file for folder in folders for file in folder.iterdir() if file.suffix in SETTINGS and file.is_file())
    hashes: dict[str, str] = {}
    unverified: list[str] = []
    for file in (*weights, *sorted(settings)):
        inside = str(file.relative_to(root))
        precision = _precision(file) if file in weights else ""
        hashes[inside] = file_digest(file)
        if tuned_from is not None and tuned_from.get(inside) != hashes[inside]:
            raise BackboneError(
                f"{file} is from another backbone than the clip was tuned from (its SHA-256 is {hashes[inside]}, "
                f"not {tuned_from.get(inside)}): give that one by backbone.path=FOLDER, or tune again"
            )
        if file in weights:
            part = weights[file]
            listed = known.get(part) or {}
            if not isinstance(listed, Mapping):
                raise BackboneError(
                    f"backbone.sha256.{part}={listed} names no precision: give {{fp32: ..., fp16: ...}}"
                )
            published = listed.get(precision) if len(files[part]) == 1 else None
            if published is None:
                unverified += [] if root.is_relative_to(PACKAGE) else [inside]
            elif hashes[inside] != published:
                raise BackboneError(
                    f"{file} has SHA-256 {hashes[inside]}, but {name}'s {part} in {precision} has {published}: {COPY}"
                )
    return hashes, unverified


def _precision(file: Path) -> str:
    """fp32, fp16, bf16 or mixed, from the header alone."""
    floating = header_of([file]).types & set(PRECISIONS)
    return PRECISIONS[floating.pop()] if len(floating) == 1 else "mixed"


def option_for(unet: Mapping[str, Any]) -> str:
    """The option that suits a UNet's ``config.json``, as the end of a message."""
    if unet.get("class_embed_type") == "projection":
        choice = UNCLIP_VARIANTS.get(unet.get("projection_class_embeddings_input_dim", 0), "folder")
        return f"it is an SD-unCLIP checkpoint: use backbone={choice}"
    if unet.get("addition_embed_type") is not None:
        return "SDXL is not supported: use backbone=sd21_unclip or sd15_ip_adapter with their own weights"
    if unet.get("cross_attention_dim") == 1024:
        return "plain Stable Diffusion 2 takes no image: use an SD-unCLIP checkpoint with backbone=sd21_unclip"
    return "for Stable Diffusion 1.5 use backbone=sd15_ip_adapter, else an SD-unCLIP checkpoint"


def read_part(kind: type[Part], folder: Path, **settings: Any) -> Part:
    """``kind.from_pretrained`` with errors in one line, whatever the library raises for a file's content."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **settings)  # type: ignore[attr-defined]
    except Exception as error:
        raise BackboneError(f"{folder} can't be read as {kind.__name__} ({line(error)}): {COPY}") from error


def read_extractor(folder: Path) -> CLIPImageProcessor:
    """The feature extractor in ``folder``: its pictures are small, so that resizing them takes no memory."""
    part_config(folder / "preprocessor_config.json", LARGEST_PICTURE)
    return read_part(CLIPImageProcessor, folder)


def read_model(kind: type[Part], folder: Path, weights: list[Path], **settings: Any) -> Part:
    """A model in float32. Weights with gaps are refused: the libraries would fill these with random numbers."""
    settings["torch_dtype" if issubclass(kind, ModelMixin) else "dtype"] = torch.float32  # diffusers' and transformers'
    settings["variant"] = "fp16" if ".fp16" in weights[0].name else None
    found: Any = read_part(kind, folder, use_safetensors=True, output_loading_info=True, **settings)
    model, info = found
    if missing := sorted(info["missing_keys"]):
        raise BackboneError(f"{folder}: weights lack {missing[0]} ({len(missing)} in all): copy the whole file again")
    return model


def scheduler_config(file: Path) -> dict[str, Any]:
    """Read a ``scheduler_config.json``; it must give the noise levels, or the library would use its own."""
    config = part_config(file)
    if not str(config.get("_class_name", "Scheduler")).endswith("Scheduler"):
        raise BackboneError(f"{file} is of a {config['_class_name']}, not of a scheduler: {COPY}")
    levels = config.get("num_train_timesteps", 1000)
    if not isinstance(levels, int) or not 1 <= levels <= LEVELS:
        raise BackboneError(f"{file}: num_train_timesteps={levels} is not between 1 and {LEVELS}: {COPY}")
    if config.get("trained_betas"):
        return config
    ends = () if config.get("beta_schedule") == "squaredcos_cap_v2" else ("beta_start", "beta_end")
    for key in ("beta_schedule", *ends):
        if config.get(key) is None:
            raise BackboneError(f"{file} lacks {key}, which defines the noise levels: {COPY} from the checkpoint")
    return config


def read_noising(file: Path) -> DDPMScheduler:
    """The scheduler that adds noise to image embeddings."""
    return _scheduler(DDPMScheduler, scheduler_config(file), file)


def _scheduler(kind: Any, config: dict[str, Any], file: Path) -> Any:
    """A scheduler whose levels are some: shares of signal in (0, 1] that fall, one for each timestep."""
    check_types(kind, config, file)
    try:
        made = kind.from_config(config)
        copy.deepcopy(made).set_timesteps(1)
        shares = made.alphas_cumprod
    except Exception as error:  # whatever the library raises for a file's content
        raise BackboneError(f"{file} describes no scheduler ({line(error)}): {COPY}") from error
    falls = ((shares > 0) & (shares <= 1)).all() and (shares.diff() <= 0).all()
    if not falls or len(shares) != made.config["num_train_timesteps"]:
        raise BackboneError(f"{file}: its noise levels don't rise from 0 to 1, one a timestep: {COPY}")
    return made


def read_scheduler(file: Path, prediction_type: str | None) -> DDIMScheduler:
    """DDIM over the noise levels of any scheduler's config, which must not contradict ``prediction_type``."""
    config = scheduler_config(file)
    defaults: dict[str, Any] = {}
    if config.get("_class_name") != "DDIMScheduler":  # these classes' defaults are not DDIM's
        defaults = {"clip_sample": False, "set_alpha_to_one": False}
    if prediction_type is not None:
        defaults["prediction_type"] = prediction_type
        if (stated := config.get("prediction_type", prediction_type)) != prediction_type:
            raise BackboneError(
                f"{file} has prediction_type={stated}, but these weights predict {prediction_type}: {COPY} from them"
            )
    return cast(DDIMScheduler, _scheduler(DDIMScheduler, defaults | config, file))
