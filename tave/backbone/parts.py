"""The parts of a backbone of any family: two encoders, UNet, scheduler, autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.files import FileError


class BackboneError(FileError):
    """Files that are no backbone, or not the requested one; the message names the file and the remedy."""


class BackboneMissingError(BackboneError):
    """There are no files at all; ``key`` (path, adapter) is the option of the backbone to give."""

    def __init__(self, message: str, key: str = "path"):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, eq=False)
class ImageNoising:
    """Noising of image embeddings in normalised space, for SD-unCLIP alone.

    mean, std: `e` float32. The library's module makes new trainable parameters whenever it is moved; these are tensors.
    """

    mean: Tensor
    std: Tensor
    scheduler: DDPMScheduler


@dataclass(frozen=True, eq=False)
class Backbone:
    """All parts in eval mode and frozen; inflation and tuning change ``unet`` in place.

    noising: None if the family takes the image embedding as it is.
    name: of the checkpoint, else its path; with ``hashes`` it identifies what a tuning was made from.
    hashes: weight file, relative to its folder -> SHA-256 in hexadecimal.
    unverified: those of them without a published value to compare with.
    conditioner: folder of the image encoder, by which metrics recognise the encoder that steered the edit.
    licence: of the weights; it applies to weights tuned from them too.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    feature_extractor: CLIPImageProcessor
    image_encoder: CLIPVisionModelWithProjection
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    vae: AutoencoderKL
    name: str
    hashes: dict[str, str]
    noising: ImageNoising | None = None
    unverified: tuple[str, ...] = ()
    conditioner: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        for part in (self.text_encoder, self.image_encoder, self.unet, self.vae):
            part.eval().requires_grad_(False)
        remedy = "differ in width: take all subfolders from one checkpoint"
        text, expected = self.text_encoder.config.hidden_size, self.unet.config["cross_attention_dim"]
        if text != expected:
            raise BackboneError(f"backbone {self.name}: text encoder ({text}) and UNet ({expected}) {remedy}")
        self._check_inputs()
        if self.noising is not None:
            width, expected = self.noising.mean.numel(), self.unet.config["projection_class_embeddings_input_dim"]
            if self.image_width != width or expected != 2 * width:
                raise BackboneError(
                    f"backbone {self.name}: image encoder ({self.image_width}), normalizer ({width}) and UNet "
                    f"({expected}, should be twice that) {remedy}"
                )

    def _check_inputs(self) -> None:
        """Raise :class:`BackboneError` if tokenizer or feature extractor make what the encoders don't take."""
        text, side = self.text_encoder.config, self.image_encoder.config.image_size
        length, remedy = self.tokenizer.model_max_length, "take all subfolders from one checkpoint"
        if not isinstance(length, int) or not 0 < length <= text.max_position_embeddings:
            raise BackboneError(
                f"backbone {self.name}: the tokenizer makes {str(length)[:20]} tokens, the text encoder takes "
                f"{text.max_position_embeddings}: {remedy}"
            )
        try:
            ids = self.tokenizer(["a"], padding="max_length", max_length=length).input_ids
            pixels = self.feature_extractor(
                images=[np.zeros((3, 16, 16), np.uint8)], input_data_format="channels_first"
            )
            shape = np.asarray(pixels["pixel_values"]).shape
        except Exception as error:  # whatever the library raises for a file's content
            line = " ".join(str(error).split())[:160]
            raise BackboneError(
                f"backbone {self.name}: tokenizer or feature extractor fail ({line}): {remedy}"
            ) from error
        if len(self.tokenizer) > text.vocab_size or max(ids[0]) >= text.vocab_size or shape != (1, 3, side, side):
            raise BackboneError(
                f"backbone {self.name}: the tokenizer knows {len(self.tokenizer)} tokens, the text encoder "
                f"{text.vocab_size}; the feature extractor makes pictures of {shape}, the image encoder takes "
                f"{side}x{side}: {remedy}"
            )

    @property
    def image_width(self) -> int:
        """Width `e` of the image embedding."""
        return int(self.image_encoder.config.projection_dim)

    @property
    def vae_factor(self) -> int:
        """Side of a latent cell in pixels."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def check_size(self, width: int, height: int) -> None:
        """Raise :class:`BackboneError` for frames with fewer than two cells at the UNet's coarsest level."""
        least = self.vae_factor * 2 ** len(self.unet.config["down_block_types"])
        if min(width, height) < least:
            raise BackboneError(
                f"frames of {width}x{height} px are too small for {self.name}: set video.width and video.height to at "
                f"least {least}"
            )
