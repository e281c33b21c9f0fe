"""A folder in the layout of `StableUnCLIPImg2ImgPipeline.save_pretrained` -> Backbone. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone.parts import Backbone, BackboneError

LAYOUT = "the folder that StableUnCLIPImg2ImgPipeline.save_pretrained writes"
PLAIN = {  # subfolder -> files, any one of which makes it whole
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "feature_extractor": ("preprocessor_config.json",),
    "scheduler": ("scheduler_config.json",),
    "image_noising_scheduler": ("scheduler_config.json",),
}
MODELS = {  # subfolder -> name of its weights
    "text_encoder": "model",
    "image_encoder": "model",
    "image_normalizer": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
Part = TypeVar("Part")


def load_backbone(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load an SD-unCLIP backbone, its weights cast to ``dtype`` (half-precision files as well).

    path: a folder, or the `owner/name` of a hub repository of which a local copy exists. Weights are safetensors only.
    The DDIM scheduler is built from the folder's scheduler config, whatever class wrote it. Raises
    :class:`BackboneError`, in one line, for what is missing, unreadable, or of another family.
    """
    folder = _folder(path)
    for part, names in PLAIN.items():
        if not any((folder / part / name).is_file() for name in names):
            raise _missing(folder, part, " or ".join(names))
    weights = {part: _weight_files(folder, part) for part in MODELS}
    if _config(folder / "unet" / "config.json").get("class_embed_type") != "projection":
        raise BackboneError(
            f"{folder}/unet takes no image condition (class_embed_type is not 'projection'): "
            "use an SD-unCLIP checkpoint, such as stable-diffusion-2-1-unclip-small"
        )
    mean, std = _normalizer(folder, weights["image_normalizer"])
    return Backbone(
        tokenizer=_read(CLIPTokenizer, folder / "tokenizer"),
        text_encoder=_model(CLIPTextModel, folder / "text_encoder", weights["text_encoder"], dtype=dtype),
        feature_extractor=_read(CLIPImageProcessor, folder / "feature_extractor"),
        image_encoder=_model(CLIPVisionModelWithProjection, folder / "image_encoder", weights["image_encoder"], dtype=dtype),
        normalizer_mean=mean,
        normalizer_std=std,
        image_noising_scheduler=_read(DDPMScheduler, folder / "image_noising_scheduler"),
        unet=_model(UNet2DConditionModel, folder / "unet", weights["unet"], torch_dtype=dtype),
        scheduler=_ddim(_config(folder / "scheduler" / "scheduler_config.json")),
        vae=_model(AutoencoderKL, folder / "vae", weights["vae"], torch_dtype=dtype),
        name=str(path),
        hashes={str(file.relative_to(folder)): _sha256(file) for files in weights.values() for file in files},
    )


def _folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    owner, _, name = str(path).partition("/")
    if owner.strip("./~") and name and "/" not in name:
        try:
            return Path(snapshot_download(str(path), local_files_only=True))
        except (OSError, ValueError):  # no local copy, or no such name: the answer is the same
            pass
    raise BackboneError(f"backbone {path} not found: put {LAYOUT} there, or give the folder of one that you downloaded")


def _missing(folder: Path, part: str, file: str) -> BackboneError:
    return BackboneError(f"{folder / part} lacks {file}: copy the subfolder {part} there from {LAYOUT}")


def _weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors files of one model: a single one or shards, full precision before fp16."""
    stem, inside = MODELS[part], folder / part
    if not (inside / "config.json").is_file():
        raise _missing(folder, part, "config.json")
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (inside / name).is_file():
            return [inside / name]
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"):
        if (inside / name).is_file():
            shards = sorted(set(_config(inside / name).get("weight_map", {}).values()))
            for shard in shards:
                if not (inside / shard).is_file():
                    raise _missing(folder, part, shard)
            return [inside / shard for shard in shards]
    raise _missing(folder, part, f"{stem}.safetensors (weights in another format are not read)")


def _config(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file} is not readable as JSON ({_line(error)}): copy it again") from error


def _read(kind: type[Part], folder: Path, **settings: Any) -> Part:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **settings)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise BackboneError(f"{folder} can't be read as {kind.__name__} ({_line(error)}): copy it again") from error


def _model(kind: type[Part], folder: Path, weights: list[Path], **settings: Any) -> Part:
    """A model whose every parameter came from its file: the libraries would fill gaps with random numbers."""
    variant = "fp16" if ".fp16" in weights[0].name else None
    found: Any = _read(kind, folder, use_safetensors=True, variant=variant, output_loading_info=True, **settings)
    model, info = found
    if lacking := sorted(info["missing_keys"]):
        raise BackboneError(f"{folder}: weights lack {lacking[0]} ({len(lacking)} in all): copy the whole file again")
    return model


def _normalizer(folder: Path, weights: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """`e` float32 each. Read without the library's module, see :class:`Backbone`."""
    try:
        tensors = load_file(weights[0])
        return tensors["mean"].float().flatten(), tensors["std"].float().flatten()
    except (OSError, KeyError, SafetensorError) as error:
        raise BackboneError(f"{weights[0]} holds no mean and std ({_line(error)}): copy it again") from error


def _ddim(config: dict[str, Any]) -> DDIMScheduler:
    """DDIM over the same noise levels. What other classes leave unsaid they mean otherwise than DDIM's defaults."""
    unsaid = {} if config.get("_class_name") == "DDIMScheduler" else {"clip_sample": False, "set_alpha_to_one": False}
    return cast(DDIMScheduler, DDIMScheduler.from_config(unsaid | config))


def _sha256(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
