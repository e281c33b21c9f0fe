"""Prompt and picture -> what the network is told: text tokens, image vector and their unconditional pair (METHOD 1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from tave.backbone import Backbone
from tave.options import choice, within
from tave.video.frames import to_bytes

log = logging.getLogger(__name__)


class ConditionError(ValueError):
    """Pictures, noise or conditions whose shapes don't go together."""


@dataclass(frozen=True)
class ConditionOptions:
    """noise_level: of the reference's embedding, 0 (nearly as it is) to 999; negative_prompt: what guidance avoids."""

    noise_level: int = 0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        within("condition.noise_level", self.noise_level, 0, 999)


@dataclass(frozen=True, eq=False)
class Condition:
    """One condition for each `b`.

    text: `b l d`, the prompt's tokens; null_text: `b l d`, the negative prompt's.
    image: `b f d`, of SD-unCLIP noised embedding ++ noise level, of IP-Adapter the embedding; `f` is 1 (one picture for
        the whole clip) or the number of frames.
    """

    text: Tensor
    image: Tensor
    null_text: Tensor

    def __post_init__(self) -> None:
        if self.text.ndim != 3 or self.image.ndim != 3 or self.null_text.shape != self.text.shape:
            raise ConditionError(
                f"condition of text {tuple(self.text.shape)}, null_text {tuple(self.null_text.shape)}, image "
                f"{tuple(self.image.shape)}: text and null_text must be `b l d` alike, image `b f d`"
            )
        if len(self.text) != len(self.image):
            raise ConditionError(f"condition of {len(self.text)} texts and {len(self.image)} images: give one per branch")

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that it tells."""
        return self.text, self.image, self.null_text

    @property
    def null_image(self) -> Tensor:
        """`b f d` zeros: the unconditional image vector, its level part included."""
        return torch.zeros_like(self.image)

    @property
    def null(self) -> Condition:
        """The unconditional condition: the negative prompt and no picture."""
        return Condition(text=self.null_text, image=self.null_image, null_text=self.null_text)

    def branches(self, first: int, count: int) -> Condition:
        """``count`` of the `b` branches from ``first`` on; a single one serves all."""
        if len(self.text) == 1:
            return self
        return Condition(*(part[first : first + count] for part in self.parts))


def stack(*conditions: Condition) -> Condition:
    """Concatenate along `b`. Where one has a picture per frame and another a single one, the single one is repeated.

    Raises :class:`ConditionError` if two of them count frames differently.
    """
    frames = max(condition.image.shape[1] for condition in conditions)
    counts = {condition.image.shape[1] for condition in conditions}
    if not counts <= {1, frames}:
        raise ConditionError(f"conditions of {sorted(counts)} pictures can't be stacked: give each one picture or {frames}")
    return Condition(
        text=torch.cat([condition.text for condition in conditions]),
        image=torch.cat([condition.image.expand(-1, frames, -1) for condition in conditions]),
        null_text=torch.cat([condition.null_text for condition in conditions]),
    )


@torch.no_grad()
def encode_text(backbone: Backbone, prompts: list[str]) -> Tensor:
    """Prompts -> `n l d` tokens, padded to the tokenizer's length. A longer prompt is cut, and the log says so."""
    tokenizer, encoder = backbone.tokenizer, backbone.text_encoder
    length = tokenizer.model_max_length
    for prompt in prompts:
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if count > length:
            log.warning("prompt %r has %d tokens, only the first %d count: shorten it", prompt, count, length)
    ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return encoder(ids.to(encoder.device))[0]


@torch.no_grad()
def image_embedding(backbone: Backbone, images: Tensor) -> Tensor:
    """`n 3 H W` in [-1, 1] -> `n e`, not L2-normalised; resized and cropped as the feature extractor's settings say."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConditionError(f"images of shape {tuple(images.shape)}: give them as `n 3 H W` in [-1, 1]")
    # whole bytes, because that is what the extractor is made for: its resampling rounds to them
    pixels = to_bytes(images)
    inputs = backbone.feature_extractor(images=list(pixels), return_tensors="pt", input_data_format="channels_first")
    encoder = backbone.image_encoder
    return encoder(inputs.pixel_values.to(device=encoder.device, dtype=encoder.dtype)).image_embeds


def joint_embedding(embeds: Sequence[Tensor], several: str, frames: int) -> Tensor:
    """Embeddings of several pictures of one object, `1 e` or `f e` each, as one: `1 e` or `f e`.

    average: their mean, shorter than any of them where they differ. alternate: frame i is told picture i modulo their
    number, `f e` with f = ``frames``. A single picture stays as it is.
    """
    choice("reference.several", several, ("average", "alternate"))
    if len(embeds) == 1:
        return embeds[0]
    if several == "average":
        return torch.stack(torch.broadcast_tensors(*embeds)).mean(0)
    each = torch.stack([embed.expand(frames, -1) for embed in embeds], dim=1)  # f n e
    turns = torch.arange(frames, device=each.device)
    return each[turns, turns % len(embeds)]


def level_embedding(levels: Tensor, width: int) -> Tensor:
    """The sinusoidal embedding of noise levels `n` -> `n e` float32, e = ``width``, as SD-unCLIP learnt it."""
    return get_timestep_embedding(levels, width, flip_sin_to_cos=True, downscale_freq_shift=0)


def noise_levels(scheduler: DDPMScheduler, embeds: Tensor, levels: Tensor, noise: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Noise image embeddings `n e` in the space that ``mean`` and ``std`` `e` normalise (METHOD 1).

    levels: `n` ints; noise: `n e`, or `1 e` shared by all. Returns `n e`, back in the embeddings' own scale.
    """
    mean, std = mean.to(embeds.device), std.to(embeds.device)
    normalised = (embeds - mean) / std
    drawn = noise.to(normalised).expand_as(normalised)
    timesteps = cast(torch.IntTensor, levels.to(embeds.device))
    return scheduler.add_noise(normalised, drawn, timesteps) * std + mean


@torch.no_grad()
def noise_embedding(backbone: Backbone, embeds: Tensor, level: int | Tensor, noise: Tensor) -> Tensor:
    """`n e` -> `n d`, float32 at least: what the family's UNet takes of a picture (METHOD 1).

    SD-unCLIP: noised at ``level``, then the level's own embedding beside it, d = 2e. IP-Adapter: the embedding, d = e.
    level: one for all, or `n` of them; noise: `n e`, or `1 e` shared by all. Level 0 adds noise as well (sigma 0.0064),
    so whoever compares two conditions gives both the same draw. Raises OptionError for a level out of range.
    """
    levels = torch.as_tensor(level, device=embeds.device).expand(len(embeds))
    for bound in (levels.min(), levels.max()):
        within("condition.noise_level", int(bound), 0, image_levels(backbone) - 1)
    if backbone.noising is None:
        return embeds.float()
    count, width = embeds.shape
    if noise.shape not in {(count, width), (1, width)}:
        raise ConditionError(f"noise {tuple(noise.shape)} for embeddings {tuple(embeds.shape)}: draw it as `n e` or `1 e`")
    noising = backbone.noising
    noised = noise_levels(noising.scheduler, embeds, levels, noise, noising.mean, noising.std)
    return torch.cat([noised, level_embedding(levels, width).to(noised)], dim=1)


def image_levels(backbone: Backbone) -> int:
    """How many noise levels the image vector has; 1, the clean one, where the family doesn't noise it."""
    return 1 if backbone.noising is None else int(backbone.noising.scheduler.config["num_train_timesteps"])


def unet_inputs(unet: nn.Module, text: Tensor, image: Tensor) -> dict[str, Any]:
    """Text `m l d` and image `m d` as the arguments by which ``unet``'s family takes them, for its forward.

    SD-unCLIP adds the vector to the timestep's embedding; IP-Adapter makes tokens of it beside the text's.
    """
    if getattr(getattr(unet, "config", None), "encoder_hid_dim_type", None) == "ip_image_proj":
        return {"encoder_hidden_states": text, "added_cond_kwargs": {"image_embeds": [image.unsqueeze(1)]}}
    return {"encoder_hidden_states": text, "class_labels": image}


def text_tokens(encoder_hidden_states: Tensor | tuple[Tensor, Any]) -> Tensor:
    """The text's part `m l d` of what cross-attention is given; IP-Adapter's image tokens come beside it."""
    return encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states


def draw_noise(backbone: Backbone, generator: torch.Generator) -> Tensor:
    """`1 e`: the one draw that source and target condition share. Always made on the generator's own device."""
    return torch.randn(1, backbone.image_width, generator=generator, device=generator.device)


def encode_condition(
    backbone: Backbone,
    prompt: str,
    images: Tensor | Sequence[Tensor | Sequence[Tensor]] | None,
    *,
    several: str = "average",
    frames: int = 1,
    level: int = 0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    negative_prompt: str = "",
) -> Condition:
    """One prompt with its picture(s) -> :class:`Condition` of b = 1.

    images: `n 3 H W` in [-1, 1]; n is 1, or the number of frames for a picture per frame. A sequence of such: several
        pictures of one object, joined as ``several`` says (:func:`joint_embedding`) over ``frames``; one of them may be
        a sequence itself, views of one picture whose embeddings are averaged first. None: words alone, the image vector
        is the unconditional one.
    noise: `1 e` or `n e`; else it is drawn once from ``generator``. Raises :class:`ConditionError` if neither is given.
    """
    text, null_text = encode_text(backbone, [prompt, negative_prompt]).split(1)
    if images is None:
        nothing = text.new_zeros(1, 1, backbone.image_width * (1 if backbone.noising is None else 2))
        return Condition(text=text, image=nothing, null_text=null_text)
    if isinstance(images, Tensor):
        images = [images]
    if noise is None:
        if generator is None:
            raise ConditionError("the image condition needs its noise: pass noise, or a generator to draw it once")
        noise = draw_noise(backbone, generator)
    pictures = [[picture] if isinstance(picture, Tensor) else picture for picture in images]
    views = [[image_embedding(backbone, view) for view in picture] for picture in pictures]
    embeds = joint_embedding([joint_embedding(seen, "average", frames) for seen in views], several, frames)
    image = noise_embedding(backbone, embeds, level, noise.to(embeds.device))
    return Condition(text=text, image=image.unsqueeze(0), null_text=null_text)
