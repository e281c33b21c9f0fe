"""SD-unCLIP: a folder in the layout of `StableUnCLIPImg2ImgPipeline.save_pretrained` -> Backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone.files import (
    UNCLIP_VARIANTS,
    Known,
    check_channels,
    find,
    line,
    listing,
    option_for,
    pipeline_files,
    read_model,
    read_part,
    read_scheduler,
    scheduler_config,
    unet_config,
    verified,
)
from tave.backbone.parts import Backbone, BackboneError, ImageNoising

LAYOUT = "the folder that StableUnCLIPImg2ImgPipeline.save_pretrained writes"
PLAIN = ("tokenizer", "feature_extractor", "scheduler", "image_noising_scheduler")
MODELS = ("text_encoder", "image_encoder", "image_normalizer", "unet", "vae")


def load_backbone(
    path: str | Path | None,
    *,
    mirrors: Sequence[str] = (),
    name: str | None = None,
    prediction_type: str | None = None,
    sha256: Known | None = None,
    licence: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load an SD-unCLIP backbone, its weights cast to ``dtype`` (half-precision files as well).

    path: a folder, or the `owner/name` of a hub repository of which a local copy exists; None: the first of ``mirrors``
        of which a whole one does. Weights are safetensors only.
    name: the checkpoint's, by which what is tuned from it is known wherever the files lie; None: the path.
    prediction_type: what the weights predict, to be held against the scheduler's config; None: as that says.
    sha256: see :func:`tave.backbone.files.verified`. licence: see :class:`Backbone`.

    Raises :class:`BackboneError`, in one line, for what is missing, unreadable, altered, or of another family;
    :class:`BackboneMissingError` where there is nothing at all.
    """

    def whole(folder: Path) -> dict[str, list[Path]]:
        _check_family(folder, name)
        files = pipeline_files(folder, PLAIN, MODELS, LAYOUT)
        check_channels(folder)
        return files

    wanted = f"put {LAYOUT} there, or give the folder of one that you downloaded"
    if path is None:
        wanted = f"of {', '.join(mirrors)} none is in the local hub cache; give backbone.path=FOLDER that holds {LAYOUT}"
    absent = f"backbone {path or name} not found: {wanted}: {listing((*PLAIN, *MODELS))}"
    folder = find(path, mirrors, whole, absent)
    weights = whole(folder)
    called = name or str(path)
    hashes, unverified = verified(weights, folder, sha256, called)
    return Backbone(
        tokenizer=read_part(CLIPTokenizer, folder / "tokenizer"),
        text_encoder=read_model(CLIPTextModel, folder / "text_encoder", weights["text_encoder"], dtype=dtype),
        feature_extractor=read_part(CLIPImageProcessor, folder / "feature_extractor"),
        image_encoder=read_model(
            CLIPVisionModelWithProjection, folder / "image_encoder", weights["image_encoder"], dtype=dtype
        ),
        noising=_noising(folder, weights["image_normalizer"][0]),
        unet=read_model(UNet2DConditionModel, folder / "unet", weights["unet"], torch_dtype=dtype),
        scheduler=read_scheduler(folder / "scheduler" / "scheduler_config.json", prediction_type),
        vae=read_model(AutoencoderKL, folder / "vae", weights["vae"], torch_dtype=dtype),
        name=called,
        hashes=hashes,
        unverified=tuple(unverified),
        conditioner=str(folder / "image_encoder"),
        licence=licence,
    )


def _check_family(folder: Path, name: str | None) -> None:
    if (config := unet_config(folder)) is None:
        return
    if config.get("class_embed_type") != "projection":
        raise BackboneError(f"{folder}/unet takes no image vector (class_embed_type is not 'projection'); {option_for(config)}")
    variant = UNCLIP_VARIANTS.get(config.get("projection_class_embeddings_input_dim", 0), name)
    if name in UNCLIP_VARIANTS.values() and variant != name:
        raise BackboneError(f"{folder} does not hold {name}, its UNet is that of {variant}: use backbone={variant}")


def _noising(folder: Path, normalizer: Path) -> ImageNoising:
    """The statistics are read without the library's module, see :class:`ImageNoising`."""
    scheduler_config(folder / "image_noising_scheduler" / "scheduler_config.json")
    scheduler = read_part(DDPMScheduler, folder / "image_noising_scheduler")
    try:
        tensors = load_file(normalizer)
        return ImageNoising(tensors["mean"].float().flatten(), tensors["std"].float().flatten(), scheduler)
    except (OSError, KeyError, SafetensorError) as error:
        raise BackboneError(f"{normalizer} holds no mean and std ({line(error)}): copy it again") from error
