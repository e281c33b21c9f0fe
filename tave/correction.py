"""Corrections of the running latents during sampling (docs/method.md, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tave.config import CorrectionOptions
from tave.correspondence import Field, agreeing, blend, coarsen, correspond, upsample
from tave.denoiser import Tap
from tave.inversion import Trajectory
from tave.masking import part_of
from tave.schedule import to_clean
from tave.windows import Window


@dataclass(frozen=True)
class Level:
    """Where a step of sampling is: from level ``index + 1`` to ``index`` of ``total``.

    ``alpha_from`` and ``alpha_to`` are alphas_cumprod before and after the step, 0-dim float64.
    """

    index: int
    total: int
    alpha_from: Tensor
    alpha_to: Tensor


@dataclass(frozen=True)
class Step:
    """One step of sampling; tensors `b f c h w`.

    ``noisy`` went in, ``noise`` was predicted, ``latents`` came out (with the corrections so far).
    """

    level: Level
    noisy: Tensor
    noise: Tensor
    latents: Tensor


class Correction(Protocol):
    """The interface of a correction."""

    def tap(self, index: int, total: int) -> Tap | None:
        """What to read from (and rewrite in) the forward of the step that ends at level ``index`` of ``total``."""
        ...

    def __call__(self, step: Step) -> Tensor:
        """New latents `b f c h w` at the step's level."""
        ...


class InterFrame:
    """Blends each masked cell with the corresponding cells of the neighbouring frames.

    ``mask`` is `1 f 1 h w` on the latent grid, 1 = edit; the field comes from the tapped block's features in the
    conditional branch, in the same forward. Cells outside the mask keep every bit. ``space`` decides what is blended:

    - ``latent``: the latents after the step (or before it, with the noise already predicted: ``when=before_step``);
    - ``x0``: the predicted clean latents; the noise part stays;
    - ``noise``: the predicted noise, with which the step is then taken;
    - ``features``: the tapped block's output, within the forward.

    A latent is ``sqrt(a) x0 + sqrt(1-a) eps``. Where the frames' eps are independent, blending shrinks the noise by
    ``sqrt(sum w^2)`` (0.61 for 1/4, 1/2, 1/4), and the network sees less noise than its timestep states. With
    ``restore_variance`` the noise part of ``space=latent`` keeps its size: ``sqrt(1-a) (r_f - 1) blend(eps)`` is added,
    ``r_f`` being the rms of eps over that of its blend in the mask of frame f. The signal is not scaled.

    A clip longer than the network's frames is read window by window: two frames are matched in the first window that
    predicts the later one.

    ``field`` is the last step's, on the features' grid; None before the first.
    """

    def __init__(self, mask: Tensor, options: CorrectionOptions = CorrectionOptions()) -> None:
        if mask.dim() != 5 or mask.shape[0] != 1 or mask.shape[2] != 1:
            raise ValueError(f"mask has shape {tuple(mask.shape)}: correct one clip at a time, `1 f 1 h w`")
        self.mask = mask[0, :, 0]
        self.options = options
        self.field: Field | None = None
        self._matched = 0  # the last frame whose previous neighbour is in the field
        self._empty = not bool(mask.any())

    def tap(self, index: int, total: int) -> Tap | None:
        if not self._active(index, total):
            return None
        if self.options.space == "features":
            return Tap(self.options.block, rewrite=self._rewrite)
        return Tap(self.options.block, read=self._read)

    def __call__(self, step: Step) -> Tensor:
        level, space = step.level, self.options.space
        if space == "features" or not self._active(level.index, level.total):
            return step.latents
        if self.field is None:
            raise ValueError(f"step to level {level.index} has no features: the denoiser must answer the tap")
        mask = self.mask.to(step.latents)
        field = upsample(self.field, *step.latents.shape[-2:])
        mix = partial(blend, mask=mask, field=field, weights=self.options.weights)
        # A DDIM step is linear in latent, x0 and eps: the blend is added as a difference times its coefficient, so that
        # what earlier corrections did to the latents stays.
        ratio = (level.alpha_to / level.alpha_from).sqrt()
        if space == "x0":
            clean = to_clean(step.noisy, step.noise, level.alpha_from)
            return step.latents + level.alpha_to.sqrt() * (mix(clean) - clean)
        if space == "noise":
            slope = (1 - level.alpha_to).sqrt() - ratio * (1 - level.alpha_from).sqrt()
            return step.latents + slope * (mix(step.noise) - step.noise)
        before = self.options.when == "before_step"
        blended = mix(step.noisy if before else step.latents)
        if self.options.restore_variance:
            lost = self._lost(step.noise, mix(step.noise), mask)
            blended = blended + (1 - (level.alpha_from if before else level.alpha_to)).sqrt() * lost
        return step.latents + ratio * (blended - step.noisy) if before else blended

    def _active(self, index: int, total: int) -> bool:
        return not self._empty and index + 1 in part_of(self.options.steps, total)

    def _read(self, features: Tensor, window: Window) -> Field:
        """Match the frames of a window by their features `1 n d h' w'`; enter the pairs that no earlier window had.

        Returns the window's own field. The clip's first frame, which every window sees, is no neighbour of the others.
        """
        if features.shape[0] != 1:
            raise ValueError(f"features hold {features.shape[0]} clips: correct one clip at a time")
        grid, anchors = features.shape[-2:], window.context // 2
        first = window.frames[anchors]
        mask = self.mask[first : window.stop].to(features.device)
        found = correspond(features[0, anchors:], coarsen(mask, *grid) if self.options.candidates == "masked" else None)
        if self.options.agreement is not None:
            found = agreeing(found, round(self.options.agreement * min(grid)))
        if self.field is None or not window.start:
            whole = torch.full((2, len(self.mask), *grid), -1, device=features.device)
            self.field, self._matched = Field(*whole), 0
        known = self._matched - first  # the last frame that has its previous neighbour
        self.field.previous[self._matched + 1 : window.stop] = found.previous[known + 1 :]
        self.field.following[self._matched : window.stop] = found.following[known:]
        self._matched = window.stop - 1
        return found

    def _rewrite(self, conditional: Tensor, block_output: Tensor, window: Window) -> Tensor:
        """Blend the block's own output, each guidance branch with the conditional branch's field."""
        field, anchors = self._read(conditional, window), window.context // 2
        mask = self.mask[window.frames[anchors] : window.stop].to(block_output)
        blended = blend(block_output[:, anchors:], coarsen(mask, *block_output.shape[-2:]), field, self.options.weights)
        return torch.cat([block_output[:, :anchors], blended], dim=1)

    @staticmethod
    def _lost(noise: Tensor, mixed: Tensor, mask: Tensor) -> Tensor:
        """``(r_f - 1) blend(eps)`` inside the mask, zero outside; `b f c h w`."""
        inside = mask[:, None]
        power = [(inside * part.square()).sum(dim=(2, 3, 4), keepdim=True) for part in (noise, mixed)]
        ratio = (power[0] / power[1].where(power[1] > 0, 1.0)).sqrt()
        return torch.where((inside > 0) & (power[1] > 0), (ratio - 1) * mixed, 0.0)


class Background:
    """Outside the mask, the source: ``z = M z + (1-M) z_inv`` at the post-step level.

    After the last step that is the clean ``z_0``. ``mask`` is `b f 1 h w` in [0, 1], 1 = edit; where it is exactly 0 or
    1 the result has every bit of its origin.
    """

    def __init__(self, mask: Tensor, trajectory: Trajectory) -> None:
        self.mask, self.trajectory = mask, trajectory

    def tap(self, index: int, total: int) -> Tap | None:
        return None

    def __call__(self, step: Step) -> Tensor:
        levels = len(self.trajectory.latents)
        if levels != step.level.total + 1:
            raise ValueError(
                f"trajectory has {levels - 1} steps, the sampling {step.level.total}: give both one schedule"
            )
        inverted = self.trajectory.level(step.level.index).to(step.latents)
        return torch.lerp(inverted, step.latents, self.mask.to(step.latents).expand_as(step.latents))


def tap_of(corrections: Sequence[Correction], index: int, total: int) -> Tap | None:
    """The one tap that the corrections request in this step; ValueError where they request more than one."""
    taps = [tap for correction in corrections if (tap := correction.tap(index, total)) is not None]
    if len(taps) > 1:
        raise ValueError(f"{len(taps)} corrections tap the network in one step: give at most one that does")
    return taps[0] if taps else None
