"""Stable Diffusion 1.5 with IP-Adapter: load a `StableDiffusionPipeline` folder and the adapter's files.

The image embedding becomes a few tokens, for which each cross-attention has keys and values of its own. Both are layers
of the library that are added to the UNet, so inflation and tuning see one network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone import files
from tave.backbone.files import read_model, read_part
from tave.backbone.parts import Backbone, BackboneError
from tave.config import BackboneOptions

LAYOUT = "the folder that StableDiffusionPipeline.save_pretrained writes"
PLAIN, MODELS = ("tokenizer", "scheduler"), ("text_encoder", "unet", "vae")
ENCODER, ADAPTER = "models/image_encoder", "models/ip-adapter_sd15.safetensors"
ADAPTER_LAYOUT = "the repository h94/IP-Adapter"
TOKENS = 4  # of the plain adapter, the only one that is supported


def load_ip_adapter(options: BackboneOptions, tuned_from: Mapping[str, str] | None = None) -> Backbone:
    """Load Stable Diffusion 1.5 and put IP-Adapter into its UNet; see :func:`tave.backbone.load_backbone`.

    The adapter and its image encoder are found by ``adapter`` and ``adapter_mirrors``, in the layout of their own
    repository.
    """
    needed = f"{LAYOUT}: {files.listing((*PLAIN, *MODELS))}"
    missing = _missing("path", options.path, options.mirrors, needed)
    folder, weights = files.find(options.path, options.mirrors, _check, missing)
    needed = f"{ENCODER}/config.json + model.safetensors, {ADAPTER}"
    missing = _missing("adapter", options.adapter, options.adapter_mirrors, needed)
    place, beside = files.find(options.adapter, options.adapter_mirrors, _check_adapter, missing, "adapter")
    name = options.name or f"{options.path} + {options.adapter}"
    hashes, unverified = files.verified(weights, folder, options.sha256, name, tuned_from)
    more_hashes, more_unverified = files.verified(beside, place, options.sha256, name, tuned_from)
    encoder = read_model(CLIPVisionModelWithProjection, place / ENCODER, beside["image_encoder"])
    parts: dict[str, Any] = {
        "tokenizer": read_part(CLIPTokenizer, folder / "tokenizer"),
        "text_encoder": read_model(CLIPTextModel, folder / "text_encoder", weights["text_encoder"]),
        "feature_extractor": _extractor(folder / "feature_extractor", cast(int, encoder.config.image_size)),
        "image_encoder": encoder,
        "unet": read_model(UNet2DConditionModel, folder / "unet", weights["unet"]),
        "scheduler": files.read_scheduler(folder / "scheduler" / "scheduler_config.json", options.prediction_type),
        "vae": read_model(AutoencoderKL, folder / "vae", weights["vae"]),
    }
    tensors = _adapter(place / ADAPTER, parts["unet"], int(encoder.config.projection_dim))
    pipeline = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)  # type: ignore[arg-type]
    with _without_empty_warning():
        try:
            pipeline.load_ip_adapter(cast(Any, tensors), subfolder="", weight_name="")
        except Exception as error:  # whatever the library raises for a file's content
            raise BackboneError(
                f"{place / ADAPTER} does not fit the UNet ({files.line(error)}): {files.COPY}"
            ) from error
    return Backbone(
        **parts,
        name=name,
        hashes=hashes | more_hashes,
        unverified=(*unverified, *more_unverified),
        conditioner=str(place / ENCODER),
        licence=options.licence,
    )


def _check(folder: Path) -> files.Files:
    config = files.unet_config(folder)
    if config.get("class_embed_type") or config.get("addition_embed_type") or config.get("cross_attention_dim") == 1024:
        raise BackboneError(f"{folder}/unet is not Stable Diffusion 1.5; {files.option_for(config)}")
    return files.pipeline_files(folder, PLAIN, MODELS, LAYOUT)


def _check_adapter(folder: Path) -> files.Files:
    file = folder / ADAPTER
    if not file.is_file():
        pickle = file.with_suffix(".bin")
        reason = f"; {pickle.name} is a pickle, which could run code and is not read" if pickle.is_file() else ""
        raise BackboneError(f"{folder} lacks {ADAPTER}: copy it there from {ADAPTER_LAYOUT}{reason}")
    encoder = files.weight_files(folder / ENCODER, files.WEIGHTS["image_encoder"], ADAPTER_LAYOUT)
    files.check_network(CLIPVisionModelWithProjection, folder / ENCODER, encoder)
    return {"image_encoder": encoder, "adapter": [file]}


def _missing(key: str, path: str | None, mirrors: Sequence[str], needed: str) -> str:
    if path is not None:
        return f"backbone.{key}={path} not found: put there {needed}"
    return f"none of {', '.join(mirrors)} is in the local hub cache: give backbone.{key}=FOLDER that has {needed}"


def _extractor(folder: Path, side: int) -> CLIPImageProcessor:
    """As the library's pipeline: its folder has one for the safety checker, the adapter's repository has none."""
    if (folder / "preprocessor_config.json").is_file():
        return files.read_extractor(folder)
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _adapter(file: Path, unet: UNet2DConditionModel, width: int) -> dict[str, dict[str, Tensor]]:
    """The adapter's tensors in the library's form: image projection, and keys and values of each cross-attention.

    Raises :class:`BackboneError` unless all of them fit ``unet`` and an image embedding of ``width``.
    """
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in load_file(file).items():
        group, _, rest = key.partition(".")
        state.setdefault(group, {})[rest] = tensor
    text = int(unet.config["cross_attention_dim"])
    shape = getattr(state["image_proj"].get("proj.weight"), "shape", None)
    if shape is None or len(shape) != 2:
        raise BackboneError(
            f"{file} is no plain IP-Adapter (it lacks image_proj.proj.weight): use {Path(ADAPTER).name}"
        )
    if shape != (TOKENS * text, width):
        raise BackboneError(
            f"{file} makes {TOKENS} tokens of {shape[0] // TOKENS} from an embedding of {shape[1]}, but UNet and image "
            f"encoder have {text} and {width}: use {Path(ADAPTER).name} with Stable Diffusion 1.5 and {ENCODER}"
        )
    # The file counts all attention layers, of which every second one is a cross-attention.
    layers = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    expected = {f"{2 * i + 1}.to_{kind}_ip.weight" for i in range(layers) for kind in "kv"}
    if wrong := sorted(expected ^ set(state["ip_adapter"])):
        raise BackboneError(
            f"{file} does not fit the UNet's {layers} cross-attentions ({wrong[0]}): use that of SD 1.5"
        )
    return state


@contextmanager
def _without_empty_warning() -> Iterator[None]:
    """Drop the library's warning about modules that casting the UNet would spoil where it names none."""
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def names_any(record: logging.LogRecord) -> bool:
        return "should be kept in float32: []" not in record.getMessage()

    logger.addFilter(names_any)
    try:
        yield
    finally:
        logger.removeFilter(names_any)
