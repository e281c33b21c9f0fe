"""Stand-ins for the network, and random tensors, that several test modules share."""

from __future__ import annotations

import torch
from torch import Tensor

from tave.denoiser import Prediction
from tave.encoders import Condition
from tave.schedule import Schedule
from tave.windows import Window


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gaussian noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made_schedule(steps: int) -> Schedule:
    """Timesteps 100, 200, ... and evenly spaced alphas."""
    alphas = torch.linspace(0.99, 0.05, steps + 1, dtype=torch.float64)
    return Schedule([-1, *range(100, 100 * steps + 1, 100)], alphas)


def made_condition(value: float = 0.0, dtype: torch.dtype = torch.float32) -> Condition:
    """A condition whose image vector is filled with ``value``."""
    text = torch.zeros(1, 2, 3, dtype=dtype)
    return Condition(text, torch.full((1, 1, 2), value, dtype=dtype), text)


class Fixed:
    """Predicts a noise that depends on the timestep alone: its DDIM inversion is exact."""

    def __call__(self, latents, t, condition, guidance_scale=1.0, tap=None) -> Prediction:
        b, f, _, h, w = latents.shape
        features = draw(b, f, 6, h // 2, w // 2, seed=t + 1)
        if tap is not None and tap.read is not None:
            tap.read(features, Window(0, f, torch.ones(f)))
        return Prediction(draw(*latents.shape, seed=t), None if tap is None else features)


class Following(Fixed):
    """Predicts a noise that depends on latents and guidance too."""

    def __call__(self, latents, t, condition, guidance_scale=1.0, tap=None) -> Prediction:
        noise, features = super().__call__(latents, t, condition, guidance_scale, tap)
        return Prediction(torch.tanh(latents.roll(1, -1)) * guidance_scale + noise, features)
