"""Frames <-> latents, and prompt plus pictures -> the condition of the UNet (docs/method.md, section 1)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from tave.backbone import Backbone
from tave.config import ConditionOptions, MemoryOptions, within
from tave.memory import at_work, in_chunks
from tave.scratch import STEP, Scratch
from tave.seeds import generator_for
from tave.video.frames import to_bytes
from tave.windows import Window

log = logging.getLogger(__name__)


class EncoderError(ValueError):
    """Frames, pictures, noise or conditions whose shapes do not go together."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The UNet's condition, one for each `b`.

    text: `b l d`, the prompt's tokens; null_text: `b l d`, the negative prompt's.
    image: `b f d`; for SD-unCLIP the noised embedding ++ the noise level, for IP-Adapter the embedding. `f` is 1 (one
        vector for the whole clip) or the number of frames.
    """

    text: Tensor
    image: Tensor
    null_text: Tensor

    def __post_init__(self) -> None:
        if self.text.ndim != 3 or self.image.ndim != 3 or self.null_text.shape != self.text.shape:
            raise EncoderError(
                f"condition of text {tuple(self.text.shape)}, null_text {tuple(self.null_text.shape)}, image "
                f"{tuple(self.image.shape)}: text and null_text must be `b l d` alike, image `b f d`"
            )
        if len(self.text) != len(self.image):
            raise EncoderError(f"condition of {len(self.text)} texts and {len(self.image)} images: give one per branch")

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All tensors, for keys and moves between devices."""
        return self.text, self.image, self.null_text

    @property
    def null_image(self) -> Tensor:
        """`b f d` zeros: the unconditional image vector, its level part included."""
        return torch.zeros_like(self.image)

    @property
    def null(self) -> Condition:
        """The unconditional condition: the negative prompt and no picture."""
        return Condition(text=self.null_text, image=self.null_image, null_text=self.null_text)

    def seen(self, window: Window) -> Condition:
        """The condition of the frames that a window's evaluation sees."""
        return self if self.image.shape[1] == 1 else replace(self, image=window.of(self.image))

    def branches(self, first: int, count: int) -> Condition:
        """``count`` of the `b` branches from ``first`` on; a single one serves all."""
        if len(self.text) == 1:
            return self
        return Condition(*(part[first : first + count] for part in self.parts))


def stack(*conditions: Condition) -> Condition:
    """Concatenate along `b`. A single image vector is repeated where another condition has one per frame.

    Raises :class:`EncoderError` if two of them have different numbers of frames.
    """
    frames = max(condition.image.shape[1] for condition in conditions)
    counts = {condition.image.shape[1] for condition in conditions}
    if not counts <= {1, frames}:
        raise EncoderError(
            f"conditions of {sorted(counts)} pictures can't be stacked: give each one picture or {frames}"
        )
    return Condition(
        text=torch.cat([condition.text for condition in conditions]),
        image=torch.cat([condition.image.expand(-1, frames, -1) for condition in conditions]),
        null_text=torch.cat([condition.null_text for condition in conditions]),
    )


class Encoders:
    """Autoencoder, text encoder and image encoder of a backbone, working on one device.

    The image noise is drawn once, from ``seed``, and shared by all conditions: equal pictures give conditions that are
    equal to the bit (docs/method.md, section 1).
    """

    def __init__(
        self,
        backbone: Backbone,
        options: ConditionOptions = ConditionOptions(),
        memory: MemoryOptions = MemoryOptions(),
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.backbone, self.options, self.memory, self.device = backbone, options, memory, torch.device(device)
        self.noise = torch.randn(1, backbone.image_width, generator=generator_for(seed, "image condition"))

    @property
    def levels(self) -> int:
        """Number of noise levels of the image vector."""
        return image_levels(self.backbone)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``f 3 H W`` in [-1, 1] -> latents ``1 f c h w`` float32."""
        with self._working(self.backbone.vae):
            return encode(self.backbone.vae, frames, self.memory.chunk).to(self.device)

    def decode(self, latents: Tensor, scratch: Scratch = Scratch()) -> Tensor:
        """Latents ``1 f c h w`` -> frames ``f 3 H W`` float32 in [-1, 1] on the CPU, in ``scratch``."""
        with self._working(self.backbone.vae):
            return decode(self.backbone.vae, latents, self.memory.chunk, scratch)

    def condition(self, prompt: str, pictures: Sequence[Tensor] = ()) -> Condition:
        """Prompt and pictures -> condition, b = 1.

        pictures: `1 3 H W` or `f 3 H W` each, in [-1, 1]; several are averaged as embeddings. None at all: the image
        vector is the unconditional one.
        """
        with self._working(self.backbone.text_encoder, self.backbone.image_encoder):
            text, null_text = encode_text(self.backbone, [prompt, self.options.negative_prompt]).split(1)
            if pictures:
                embeds = [self._embeddings(picture, STEP) for picture in pictures]
                mean = torch.stack(torch.broadcast_tensors(*embeds)).mean(0)
                image = noise_embedding(self.backbone, mean, self.options.noise_level, self.noise.to(mean.device))
            else:
                image = text.new_zeros(1, self.backbone.image_width * (1 if self.backbone.noising is None else 2))
        return Condition(*(part.to(self.device) for part in (text, image.unsqueeze(0), null_text)))

    def embed(self, frames: Tensor) -> Tensor:
        """The image embedding of each frame: `f 3 H W` -> `f e`."""
        with self._working(self.backbone.image_encoder):
            return self._embeddings(frames, self.memory.chunk)

    def _embeddings(self, frames: Tensor, chunk: int) -> Tensor:
        return in_chunks(lambda part: image_embedding(self.backbone, part), frames, chunk).to(self.device)

    def image_vector(self, embeds: Tensor, level: int, noise: Tensor) -> Tensor:
        """Embeddings `n e` noised at ``level`` -> the UNet's image vectors `n d`; see :func:`noise_embedding`."""
        return noise_embedding(self.backbone, embeds, level, noise)

    @contextmanager
    def _working(self, *parts: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(at_work(part, self.device, self.memory.offload))
            yield


# ---- autoencoder -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(vae: AutoencoderKL, frames: Tensor, chunk: int = 8) -> Tensor:
    """Frames `f 3 H W` in [-1, 1] -> latents `1 f c h w` float32, scaled by the autoencoder's own factor.

    The posterior's mean, not a sample, so that a clip has one latent; ``chunk`` frames are encoded at a time.
    Raises :class:`EncoderError` unless H and W are whole numbers of latent cells.
    """
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if frames.ndim != 4 or frames.shape[1] != vae.config["in_channels"] or not len(frames):
        raise EncoderError(f"frames of shape {tuple(frames.shape)}: give them as `f 3 H W`, at least one")
    height, width = frames.shape[-2:]
    if height % factor or width % factor:
        raise EncoderError(f"frames of {width}x{height}: make both sides multiples of {factor}")
    means = in_chunks(lambda part: vae.encode(_moved(vae, part)).latent_dist.mode().float(), frames, chunk)  # type: ignore[union-attr]
    return (means * vae.config["scaling_factor"]).unsqueeze(0)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, chunk: int = 8, scratch: Scratch = Scratch()) -> Tensor:
    """Latents `1 f c h w` -> frames `f 3 H W` float32, clamped to [-1, 1]. Raises :class:`EncoderError` for b > 1."""
    if latents.ndim != 5 or len(latents) != 1:
        raise EncoderError(f"latents of shape {tuple(latents.shape)}: give one clip, `1 f c h w`")
    scaled = latents[0] / vae.config["scaling_factor"]

    def decoded(part: Tensor) -> Tensor:
        return vae.decode(_moved(vae, part)).sample.float().clamp(-1, 1)  # type: ignore[union-attr]

    return in_chunks(decoded, scaled, chunk, scratch)


def _moved(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    return pictures.to(device=vae.device, dtype=vae.dtype)


# ---- text and image encoders -----------------------------------------------------------------------------------------


@torch.no_grad()
def encode_text(backbone: Backbone, prompts: list[str]) -> Tensor:
    """Prompts -> `n l d` tokens, padded to the tokenizer's length. A longer prompt is truncated with a warning."""
    tokenizer, encoder = backbone.tokenizer, backbone.text_encoder
    length = tokenizer.model_max_length
    for prompt in prompts:
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if count > length:
            log.warning("prompt %r has %d tokens, only the first %d are used: shorten it", prompt, count, length)
    ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return encoder(ids.to(encoder.device))[0]


@torch.no_grad()
def image_embedding(backbone: Backbone, images: Tensor) -> Tensor:
    """`n 3 H W` in [-1, 1] -> `n e`, not L2-normalised; resized and cropped by the feature extractor's settings."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise EncoderError(f"images of shape {tuple(images.shape)}: give them as `n 3 H W` in [-1, 1]")
    # uint8, since the extractor's resampling rounds to whole bytes
    pixels = to_bytes(images)
    inputs = backbone.feature_extractor(images=list(pixels), return_tensors="pt", input_data_format="channels_first")
    encoder = backbone.image_encoder
    return encoder(inputs.pixel_values.to(device=encoder.device, dtype=encoder.dtype)).image_embeds


def level_embedding(levels: Tensor, width: int) -> Tensor:
    """The sinusoidal embedding of noise levels `n` -> `n e` float32, e = ``width``, as in SD-unCLIP's training."""
    return get_timestep_embedding(levels, width, flip_sin_to_cos=True, downscale_freq_shift=0)


def noise_levels(
    scheduler: DDPMScheduler, embeds: Tensor, levels: Tensor, noise: Tensor, mean: Tensor, std: Tensor
) -> Tensor:
    """Noise image embeddings `n e` in the space that ``mean`` and ``std`` `e` normalise.

    levels: `n` ints; noise: `n e`, or `1 e` shared by all. Returns `n e`, back in the embeddings' own scale.
    """
    mean, std = mean.to(embeds.device), std.to(embeds.device)
    normalised = (embeds - mean) / std
    drawn = noise.to(normalised).expand_as(normalised)
    timesteps = cast(torch.IntTensor, levels.to(embeds.device))
    return scheduler.add_noise(normalised, drawn, timesteps) * std + mean


@torch.no_grad()
def noise_embedding(backbone: Backbone, embeds: Tensor, level: int | Tensor, noise: Tensor) -> Tensor:
    """`n e` -> `n d`, float32 at least: the image vector that the family's UNet takes.

    SD-unCLIP: noised at ``level``, then the level's own embedding beside it, d = 2e. IP-Adapter: the embedding, d = e.
    level: one for all, or `n` of them; noise: `n e`, or `1 e` shared by all. Level 0 adds noise too (sigma 0.0064), so
    conditions that are compared must share one draw. Raises OptionError for a level out of range.
    """
    levels = torch.as_tensor(level, device=embeds.device).expand(len(embeds))
    for bound in (levels.min(), levels.max()):
        within("condition.noise_level", int(bound), 0, image_levels(backbone) - 1)
    if backbone.noising is None:
        return embeds.float()
    count, width = embeds.shape
    if noise.shape not in {(count, width), (1, width)}:
        raise EncoderError(
            f"noise {tuple(noise.shape)} for embeddings {tuple(embeds.shape)}: draw it as `n e` or `1 e`"
        )
    noising = backbone.noising
    noised = noise_levels(noising.scheduler, embeds, levels, noise, noising.mean, noising.std)
    return torch.cat([noised, level_embedding(levels, width).to(noised)], dim=1)


def image_levels(backbone: Backbone) -> int:
    """Number of noise levels of the image vector; 1 (no noise) where the family does not noise it."""
    return 1 if backbone.noising is None else int(backbone.noising.scheduler.config["num_train_timesteps"])


def unet_inputs(unet: nn.Module, text: Tensor, image: Tensor) -> dict[str, Any]:
    """Text `m l d` and image `m d` as keyword arguments of ``unet``'s forward, by its family.

    SD-unCLIP adds the vector to the timestep embedding; IP-Adapter appends image tokens to the text's.
    """
    if getattr(getattr(unet, "config", None), "encoder_hid_dim_type", None) == "ip_image_proj":
        return {"encoder_hidden_states": text, "added_cond_kwargs": {"image_embeds": [image.unsqueeze(1)]}}
    return {"encoder_hidden_states": text, "class_labels": image}
