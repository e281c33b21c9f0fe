"""What a backbone is made of: the components of the library's `StableUnCLIPImg2ImgPipeline`."""

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
    """A folder that is no SD-unCLIP backbone; the message names what is wrong and what to put where."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """All parts in eval mode and frozen; inflating and tuning change ``unet`` in place.

    normalizer_mean, normalizer_std: `e` float32, the image embedding's statistics, as plain tensors (the library's own
    module makes fresh trainable parameters whenever it is moved).
    hashes: weight file, relative to the folder -> SHA-256 in hexadecimal.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    feature_extractor: CLIPImageProcessor
    image_encoder: CLIPVisionModelWithProjection
    normalizer_mean: Tensor
    normalizer_std: Tensor
    image_noising_scheduler: DDPMScheduler
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    vae: AutoencoderKL
    name: str
    hashes: dict[str, str]

    def __post_init__(self) -> None:
        for part in (self.text_encoder, self.image_encoder, self.unet, self.vae):
            part.eval().requires_grad_(False)
        width, seen = self.normalizer_mean.numel(), self.image_encoder.config.projection_dim
        told = self.unet.config["projection_class_embeddings_input_dim"]
        if seen != width or told != 2 * width:
            raise BackboneError(
                f"backbone {self.name}: image encoder ({seen}), normalizer ({width}) and UNet ({told}, should be twice "
                "that) differ in width: take all subfolders from one checkpoint"
            )

    @property
    def vae_factor(self) -> int:
        """Pixels to one latent cell, along each side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)
