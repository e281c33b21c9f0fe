from __future__ import annotations

import pytest
import torch

from tave.backbone import Backbone
from tave.latents import LatentsError, decode, encode


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(5, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_the_scaled_posterior_mean(tiny: Backbone, frames: torch.Tensor):
    latents = encode(tiny.vae, frames)
    assert latents.shape == (1, 5, 4, 8, 10) and latents.dtype == torch.float32 and not latents.requires_grad
    mean = tiny.vae.encode(frames).latent_dist.mean  # type: ignore[union-attr]
    assert torch.allclose(latents[0], mean * tiny.vae.config["scaling_factor"], atol=1e-6)


def test_chunks_do_not_matter(tiny: Backbone, frames: torch.Tensor):
    latents = encode(tiny.vae, frames, chunk=2)
    assert torch.allclose(latents, encode(tiny.vae, frames), atol=1e-5)
    assert torch.allclose(decode(tiny.vae, latents, chunk=3), decode(tiny.vae, latents), atol=1e-5)


def test_decoded_frames_stay_in_range(tiny: Backbone, frames: torch.Tensor):
    decoded = decode(tiny.vae, 100 * encode(tiny.vae, frames))
    assert decoded.shape == frames.shape and decoded.dtype == torch.float32
    assert float(decoded.abs().max()) <= 1


@pytest.mark.parametrize("shape", [(5, 3, 30, 40), (5, 1, 32, 32), (3, 32, 32), (0, 3, 32, 32)])
def test_frames_that_do_not_fit_are_refused(tiny: Backbone, shape: tuple[int, ...]):
    with pytest.raises(LatentsError, match="frames of"):
        encode(tiny.vae, torch.zeros(shape))


def test_only_one_clip_is_decoded(tiny: Backbone):
    with pytest.raises(LatentsError, match="one clip"):
        decode(tiny.vae, torch.zeros(2, 3, 4, 8, 8))
