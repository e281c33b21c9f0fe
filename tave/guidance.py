"""Predictors around a predictor: words and picture led away from by scales of their own; a picture confined to the mask.

Both leave the network and its weights alone, and cost what they say; without them nothing is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from tave.conditions import Condition, stack
from tave.denoiser import Denoiser, NoisePredictor, Prediction, Tap

BLOCKS = (ResnetBlock2D, Transformer2DModel)  # in the one or the other a picture speaks


@dataclass(frozen=True)
class SeparateGuidance:
    """``null + s_i (image - null) + s_t (both - image)``, after InstructPix2Pix (arXiv 2211.09800, equation 3).

    Three branches instead of two: neither words nor picture, the picture alone, both. ``guidance_scale`` of a call is
    the words' ``s_t``, ``image_scale`` the picture's ``s_i``; equal scales are the plain guidance, ones are none.
    """

    denoiser: NoisePredictor
    image_scale: float

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        each = _for_each(condition, len(latents))
        picture = replace(each, text=each.null_text)
        branches = stack(each.null, picture, each)
        found = self.denoiser(torch.cat([latents] * 3), t, branches, 1.0, _last(tap, len(latents)))
        null, image, both = found.noise.chunk(3)
        noise = null + self.image_scale * (image - null) + guidance_scale * (both - image)
        return Prediction(noise, None if found.features is None else found.features[-len(latents) :])


@dataclass(frozen=True)
class Confined:
    """The target's picture speaks inside the mask alone, another one outside: an image vector that knows the place.

    The network takes one vector for a whole frame, in its residual blocks or (IP-Adapter) in its cross-attention. So each
    clip runs twice, under either vector, and after each block both runs go on with the blend of the two, by the mask on
    that block's grid: a vector for each pixel, but that norms within a block see either vector everywhere. It costs
    twice the time. Self-attention still carries what it sees from place to place, and words reach every place.

    mask: `1 f 1 h w` on the latent grid, in [0, 1], 1 = target. outside: image vectors `1 1 d` or `1 f d` for the rest.
    """

    denoiser: Denoiser
    mask: Tensor
    outside: Tensor

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        b = len(latents)
        inside = _for_each(condition, b)
        told = inside.image.any(dim=-1, keepdim=True)  # a branch that is told no picture is told none outside either
        elsewhere = replace(inside, image=self.outside.to(inside.image) * told)
        with self._blended(b):
            found = self.denoiser(torch.cat([latents] * 2), t, stack(inside, elsewhere), guidance_scale, _first(tap, b))
        return Prediction(found.noise[:b], None if found.features is None else found.features[:b])

    @contextmanager
    def _blended(self, b: int) -> Iterator[None]:
        """While open, the two runs of each clip leave every block as one; ``b``: clips in a guidance branch."""
        mask = self.mask[0]  # f 1 h w

        def blend(_module: nn.Module, _inputs: object, output: Any) -> Any:
            if not isinstance(output, Tensor):  # a transformer's, of one
                return (blend(_module, _inputs, output[0]),)
            runs = output.unflatten(0, (-1, 2, b, len(mask)))  # g 2 b f c h' w'
            share = adaptive_avg_pool2d(mask.to(output), (output.shape[-2], output.shape[-1])).expand(
                -1, output.shape[1], -1, -1
            )
            one = torch.lerp(runs[:, 1], runs[:, 0], share.expand_as(runs[:, 0]))
            return torch.stack([one, one], dim=1).flatten(0, 3)

        blocks = [module for module in self.denoiser.unet.modules() if isinstance(module, BLOCKS)]
        handles = [block.register_forward_hook(blend) for block in blocks]
        try:
            with self.denoiser.hooked():
                yield
        finally:
            for handle in handles:
                handle.remove()


def _for_each(condition: Condition, b: int) -> Condition:
    return condition if len(condition.text) == b else stack(*[condition] * b)


def _last(tap: Tap | None, b: int) -> Tap | None:
    """The tap for a call whose last ``b`` branches are the ones it asks about."""
    rewrite = tap.rewrite if tap is not None else None
    if tap is None or rewrite is None:
        return tap
    return replace(tap, rewrite=lambda conditional, whole: rewrite(conditional[-b:], whole))


def _first(tap: Tap | None, b: int) -> Tap | None:
    """The tap for a call whose first ``b`` branches are the ones it asks about."""
    rewrite = tap.rewrite if tap is not None else None
    if tap is None or rewrite is None:
        return tap
    return replace(tap, rewrite=lambda conditional, whole: rewrite(conditional[:b], whole))
