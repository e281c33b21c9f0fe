"""Frames <-> latents through the autoencoder, a few frames at a time."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from tave.memory import in_chunks
from tave.options import within


class LatentsError(ValueError):
    """Frames or latents of a shape that the autoencoder can't take."""


@torch.no_grad()
def encode(vae: AutoencoderKL, frames: Tensor, chunk: int = 8) -> Tensor:
    """Frames `f 3 H W` in [-1, 1] -> latents `1 f c h w` float32, scaled by the autoencoder's own factor.

    The posterior's mean, not a sample, so that a clip has one latent (METHOD 4); ``chunk`` frames are taken at a time.
    Raises :class:`LatentsError` unless H and W are whole numbers of cells.
    """
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if frames.ndim != 4 or frames.shape[1] != vae.config["in_channels"] or not len(frames):
        raise LatentsError(f"frames of shape {tuple(frames.shape)}: give them as `f 3 H W`, at least one")
    height, width = frames.shape[-2:]
    if height % factor or width % factor:
        raise LatentsError(f"frames of {width}x{height}: make both sides multiples of {factor}")
    within("chunk", chunk, 1, 10_000)
    means = in_chunks(lambda part: vae.encode(_placed(vae, part)).latent_dist.mode(), frames, chunk)  # type: ignore[union-attr]
    return (means.float() * vae.config["scaling_factor"]).unsqueeze(0)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, chunk: int = 8) -> Tensor:
    """Latents `1 f c h w` -> frames `f 3 H W` float32, clamped to [-1, 1]. Raises :class:`LatentsError` for b > 1."""
    if latents.ndim != 5 or len(latents) != 1:
        raise LatentsError(f"latents of shape {tuple(latents.shape)}: give one clip, `1 f c h w`")
    scaled = latents[0] / vae.config["scaling_factor"]
    within("chunk", chunk, 1, 10_000)
    frames = in_chunks(lambda part: vae.decode(_placed(vae, part)).sample, scaled, chunk)  # type: ignore[union-attr]
    return frames.float().clamp(-1, 1)


def _placed(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    return pictures.to(device=vae.device, dtype=vae.dtype)
