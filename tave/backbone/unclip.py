"""SD-unCLIP: load a folder in the layout of `StableUnCLIPImg2ImgPipeline.save_pretrained`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone import files
from tave.backbone.files import read_model, read_part
from tave.backbone.parts import Backbone, BackboneError, ImageNoising
from tave.config import BackboneOptions

LAYOUT = "the folder that StableUnCLIPImg2ImgPipeline.save_pretrained writes"
PLAIN = ("tokenizer", "feature_extractor", "scheduler", "image_noising_scheduler")
MODELS = ("text_encoder", "image_encoder", "image_normalizer", "unet", "vae")


def load_unclip(options: BackboneOptions, tuned_from: Mapping[str, str] | None = None) -> Backbone:
    """Load an SD-unCLIP backbone; see :func:`tave.backbone.load_backbone`."""
    path, name = options.path, options.name

    def check(folder: Path) -> files.Files:
        _check_family(folder, name)
        return files.pipeline_files(folder, PLAIN, MODELS, LAYOUT)

    remedy = f"put {LAYOUT} there, or give the folder of one that you downloaded"
    if path is None:
        mirrors = ", ".join(options.mirrors)
        remedy = f"none of {mirrors} is in the local hub cache; give backbone.path=FOLDER, {LAYOUT}"
    missing = f"backbone {path or name} not found: {remedy}: {files.listing((*PLAIN, *MODELS))}"
    folder, weights = files.find(path, options.mirrors, check, missing)
    hashes, unverified = files.verified(weights, folder, options.sha256, name or str(path), tuned_from)
    return Backbone(
        tokenizer=read_part(CLIPTokenizer, folder / "tokenizer"),
        text_encoder=read_model(CLIPTextModel, folder / "text_encoder", weights["text_encoder"]),
        feature_extractor=files.read_extractor(folder / "feature_extractor"),
        image_encoder=read_model(CLIPVisionModelWithProjection, folder / "image_encoder", weights["image_encoder"]),
        noising=_noising(folder, weights["image_normalizer"][0]),
        unet=read_model(UNet2DConditionModel, folder / "unet", weights["unet"]),
        scheduler=files.read_scheduler(folder / "scheduler" / "scheduler_config.json", options.prediction_type),
        vae=read_model(AutoencoderKL, folder / "vae", weights["vae"]),
        name=name or str(path),
        hashes=hashes,
        unverified=tuple(unverified),
        conditioner=str(folder / "image_encoder"),
        licence=options.licence,
    )


def _check_family(folder: Path, name: str | None) -> None:
    config = files.unet_config(folder)
    if not config:
        return
    if config.get("class_embed_type") != "projection":
        raise BackboneError(
            f"{folder}/unet takes no image vector (class_embed_type is not 'projection'); {files.option_for(config)}"
        )
    variant = files.UNCLIP_VARIANTS.get(config.get("projection_class_embeddings_input_dim", 0), name)
    if name in files.UNCLIP_VARIANTS.values() and variant != name:
        raise BackboneError(f"{folder} does not hold {name}, its UNet is that of {variant}: use backbone={variant}")


def _noising(folder: Path, normalizer: Path) -> ImageNoising:
    """The statistics are read without the library's module, see :class:`ImageNoising`."""
    scheduler = files.read_noising(folder / "image_noising_scheduler" / "scheduler_config.json")
    try:
        tensors = load_file(normalizer)
        mean, std = (tensors[key].float().flatten() for key in ("mean", "std"))
    except (OSError, KeyError, SafetensorError) as error:
        raise BackboneError(f"{normalizer} has no mean and std ({files.line(error)}): {files.COPY}") from error
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise BackboneError(f"{normalizer}: mean and std are no statistics (std > 0): {files.COPY}")
    return ImageNoising(mean, std, scheduler)
