"""What a backbone is made of, whichever its family: two encoders, a UNet, a scheduler, an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer


class BackboneError(ValueError):
    """Files that are no backbone, or not the one that was asked for; the message names file and remedy."""


class BackboneMissingError(BackboneError):
    """Nothing is there at all; ``key`` of the backbone's options (path, adapter) is the one to give."""

    def __init__(self, message: str, key: str = "path"):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, eq=False)
class ImageNoising:
    """SD-unCLIP's alone: image embeddings are noised in the space of their own statistics.

    mean, std: `e` float32, plain tensors (the library's module makes fresh trainable parameters whenever it is moved).
    """

    mean: Tensor
    std: Tensor
    scheduler: DDPMScheduler


@dataclass(frozen=True, eq=False)
class Backbone:
    """All parts in eval mode and frozen; inflating and tuning change ``unet`` in place.

    noising: None where the family takes the image embedding as it is.
    name: of the checkpoint where it has one, else where it came from; with ``hashes`` it says what a tuning was made from.
    hashes: weight file, relative to its folder -> SHA-256 in hexadecimal.
    unverified: those of them that should be compared with a published value and of which none is known.
    conditioner: the folder of the image encoder, so that metrics can tell whether they judge by what steered the edit.
    licence: of the weights; it holds for what is tuned from them too.
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
        seen, told = self.text_encoder.config.hidden_size, self.unet.config["cross_attention_dim"]
        if seen != told:
            raise BackboneError(
                f"backbone {self.name}: text encoder ({seen}) and UNet ({told}) differ in width: take all subfolders "
                "from one checkpoint"
            )
        if self.noising is not None:
            width, told = self.noising.mean.numel(), self.unet.config["projection_class_embeddings_input_dim"]
            if self.image_width != width or told != 2 * width:
                raise BackboneError(
                    f"backbone {self.name}: image encoder ({self.image_width}), normalizer ({width}) and UNet ({told}, "
                    "should be twice that) differ in width: take all subfolders from one checkpoint"
                )

    @property
    def image_width(self) -> int:
        """`e`, of the image encoder's embedding."""
        return int(self.image_encoder.config.projection_dim)

    @property
    def vae_factor(self) -> int:
        """Pixels to one latent cell, along each side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)
