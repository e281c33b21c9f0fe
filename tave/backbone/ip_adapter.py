"""Stable Diffusion 1.5 with IP-Adapter: a `StableDiffusionPipeline` folder and the adapter's files -> Backbone.

The picture's embedding becomes a few tokens, and each cross-attention gets keys and values of its own for them. The
library's classes do both; the UNet carries them, so that inflating and tuning find one network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone.files import (
    WEIGHTS,
    Known,
    check_channels,
    find,
    listing,
    option_for,
    pipeline_files,
    read_model,
    read_part,
    read_scheduler,
    unet_config,
    verified,
    weight_files,
)
from tave.backbone.parts import Backbone, BackboneError

LAYOUT = "the folder that StableDiffusionPipeline.save_pretrained writes"
PLAIN, MODELS = ("tokenizer", "scheduler"), ("text_encoder", "unet", "vae")
ENCODER, ADAPTER = "models/image_encoder", "models/ip-adapter_sd15.safetensors"
ADAPTER_LAYOUT = "the repository h94/IP-Adapter"
TOKENS = 4  # that the plain adapter makes of an embedding; the library knows it by no other name


def load_ip_adapter(
    path: str | Path | None,
    adapter: str | Path | None,
    *,
    mirrors: Sequence[str] = (),
    adapter_mirrors: Sequence[str] = (),
    name: str | None = None,
    prediction_type: str | None = None,
    sha256: Known | None = None,
    licence: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load Stable Diffusion 1.5 and put IP-Adapter into its UNet, all weights cast to ``dtype``.

    path, mirrors: as for :func:`tave.backbone.load_backbone`; the adapter and its image encoder are found likewise by
        adapter, adapter_mirrors, at the places that their own repository gives them.
    The other arguments as for ``load_backbone``.

    Raises :class:`BackboneError`, in one line, for what is missing, unreadable, altered, or of another family;
    :class:`BackboneMissingError` where there is nothing at all of backbone or adapter.
    """

    def whole(folder: Path) -> dict[str, list[Path]]:
        _check_family(folder)
        files = pipeline_files(folder, PLAIN, MODELS, LAYOUT)
        check_channels(folder)
        return files

    def whole_adapter(folder: Path) -> dict[str, list[Path]]:
        file = folder / ADAPTER
        if not file.is_file():
            pickled = file.with_suffix(".bin").is_file()
            told = f"; {file.with_suffix('.bin').name} is a pickle, which could run code and is not read" if pickled else ""
            raise BackboneError(f"{folder} lacks {ADAPTER}: copy it there from {ADAPTER_LAYOUT}{told}")
        return {"image_encoder": weight_files(folder / ENCODER, WEIGHTS["image_encoder"], ADAPTER_LAYOUT), "adapter": [file]}

    folder = find(path, mirrors, whole, _absent("path", path, mirrors, f"{LAYOUT}: {listing((*PLAIN, *MODELS))}"))
    files = f"{ENCODER}/config.json + model.safetensors, {ADAPTER}"
    place = find(adapter, adapter_mirrors, whole_adapter, _absent("adapter", adapter, adapter_mirrors, files), "adapter")
    weights, beside = whole(folder), whole_adapter(place)
    called = name or f"{path} + {adapter}"
    hashes, unverified = verified(weights, folder, sha256, called)
    more, unverified_too = verified(beside, place, sha256, called)
    encoder = read_model(CLIPVisionModelWithProjection, place / ENCODER, beside["image_encoder"], dtype=dtype)
    # As the library's pipeline does: its folder brings one for the safety checker, the adapter's repository none.
    if (folder / "feature_extractor" / "preprocessor_config.json").is_file():
        extractor = read_part(CLIPImageProcessor, folder / "feature_extractor")
    else:
        side = cast(int, encoder.config.image_size)
        extractor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    parts: dict[str, Any] = {
        "tokenizer": read_part(CLIPTokenizer, folder / "tokenizer"),
        "text_encoder": read_model(CLIPTextModel, folder / "text_encoder", weights["text_encoder"], dtype=dtype),
        "feature_extractor": extractor,
        "image_encoder": encoder,
        "unet": read_model(UNet2DConditionModel, folder / "unet", weights["unet"], torch_dtype=dtype),
        "scheduler": read_scheduler(folder / "scheduler" / "scheduler_config.json", prediction_type),
        "vae": read_model(AutoencoderKL, folder / "vae", weights["vae"], torch_dtype=dtype),
    }
    tensors = _adapter(place / ADAPTER, parts["unet"], int(encoder.config.projection_dim))
    pipeline = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)  # type: ignore[arg-type]
    with _without_empty_warning():
        pipeline.load_ip_adapter(cast(Any, tensors), subfolder="", weight_name="")
    return Backbone(
        **parts,
        name=called,
        hashes=hashes | more,
        unverified=(*unverified, *unverified_too),
        conditioner=str(place / ENCODER),
        licence=licence,
    )


def _check_family(folder: Path) -> None:
    config = unet_config(folder) or {}
    if config.get("class_embed_type") or config.get("addition_embed_type") or config.get("cross_attention_dim") == 1024:
        raise BackboneError(f"{folder}/unet is not Stable Diffusion 1.5; {option_for(config)}")


@contextmanager
def _without_empty_warning() -> Iterator[None]:
    """The library casts the UNet with its adapter, and warns of modules that a cast spoils even where it names none."""
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def telling(record: logging.LogRecord) -> bool:
        return "should be kept in float32: []" not in record.getMessage()

    logger.addFilter(telling)
    try:
        yield
    finally:
        logger.removeFilter(telling)


def _absent(key: str, path: str | Path | None, mirrors: Sequence[str], files: str) -> str:
    if path is not None:
        return f"backbone.{key}={path} not found: put there {files}"
    return f"of {', '.join(mirrors)} none is in the local hub cache: give backbone.{key}=FOLDER that holds {files}"


def _adapter(file: Path, unet: UNet2DConditionModel, width: int) -> dict[str, dict[str, Tensor]]:
    """The adapter's tensors as the library takes them: its image projection, keys and values of each cross-attention.

    Raises :class:`BackboneError` unless every one has its place in ``unet``, for an image embedding of ``width``.
    """
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in load_file(file).items():
        group, _, rest = key.partition(".")
        state.setdefault(group, {})[rest] = tensor
    text = int(unet.config["cross_attention_dim"])
    shape = getattr(state["image_proj"].get("proj.weight"), "shape", None)
    if shape is None:
        raise BackboneError(f"{file} is no plain IP-Adapter (image_proj.proj.weight is not in it): use {Path(ADAPTER).name}")
    if shape != (TOKENS * text, width):
        raise BackboneError(
            f"{file} makes {TOKENS} tokens of {shape[0] // TOKENS} from an embedding of {shape[1]}, but UNet and image "
            f"encoder have {text} and {width}: use {Path(ADAPTER).name} with Stable Diffusion 1.5 and {ENCODER}"
        )
    # The file counts all attention layers, of which every second one is a cross-attention.
    layers = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    due = {f"{2 * i + 1}.to_{kind}_ip.weight" for i in range(layers) for kind in "kv"}
    if strange := sorted(due ^ set(state["ip_adapter"])):
        raise BackboneError(f"{file} does not fit the UNet's {layers} cross-attentions ({strange[0]}): use that of SD 1.5")
    return state
