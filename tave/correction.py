"""One small object per correction of the running latents; the sampling loop knows none of them (METHOD 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tave.correspondence import Field, agreeing, blend, coarsen, correspond, upsample
from tave.denoiser import Tap
from tave.inversion import Trajectory
from tave.masking import check_part, part_of
from tave.options import OptionError, choice, within
from tave.schedule import to_clean


@dataclass(frozen=True)
class Step:
    """One step of sampling, from level ``level + 1`` to ``level`` of ``total``; tensors `b f c h w`.

    ``noisy`` went in at timestep ``t``, ``noise`` was predicted, ``latents`` came out (with the corrections
    so far). ``features`` `b f d h' w'` are the tapped block's, if any. ``alpha_from`` and ``alpha_to`` are
    alphas_cumprod before and after, 0-dim float64.
    """

    level: int
    total: int
    t: int
    noisy: Tensor
    noise: Tensor
    latents: Tensor
    features: Tensor | None
    alpha_from: Tensor
    alpha_to: Tensor


class Correction(Protocol):
    """What the loop asks of a correction."""

    def tap(self, level: int, total: int) -> Tap | None:
        """What to read from (and rewrite in) the forward of the step that ends at ``level``."""
        ...

    def __call__(self, step: Step) -> Tensor:
        """New latents `b f c h w` at the step's level."""
        ...


@dataclass(frozen=True)
class CorrectionOptions:
    """Inter-frame. ``weights``: previous, own and following frame's; ``steps``: a part of the schedule.

    ``enabled``: None where sampling starts from inverted latents: a target that was put in its place rides steadier without.
    """

    enabled: bool | None = None
    weights: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.25])
    block: int = -2  # index into the UNet's up blocks
    steps: list[float] = field(default_factory=lambda: [0.0, 1.0])  # 0 noisy, 1 clean
    space: str = "latent"  # latent | x0 | features: what is blended
    when: str = "after_step"  # after_step | before_step; matters for space=latent alone
    candidates: str = "all"  # all | masked
    agreement: int | None = None  # cells by which a neighbour's own neighbour back may miss; None: it isn't asked
    restore_variance: bool = False  # matters for space=latent alone: the others average no noise

    def __post_init__(self) -> None:
        choice("correction.space", self.space, ("latent", "x0", "features"))
        choice("correction.when", self.when, ("after_step", "before_step"))
        choice("correction.candidates", self.candidates, ("all", "masked"))
        if self.agreement is not None:
            within("correction.agreement", self.agreement, 0, 1024)
        check_part("correction.steps", self.steps)
        weights = self.weights
        if len(weights) != 3 or not min(weights) >= 0 or not abs(sum(weights) - 1) < 1e-6:  # NaN fails too
            raise OptionError(f"correction.weights={list(weights)}: give three weights >= 0 that sum to 1")


class InterFrame:
    """Blends each masked cell with the cells of its neighbour frames that look like it (METHOD 6.2 and 6.4).

    ``mask`` is `1 f 1 h w` on the latent grid, 1 = edit; the field comes from the tapped block's features of
    the conditional branch, in the same forward. Cells outside the mask keep every bit.

    With ``restore_variance`` the noise part keeps its size. A latent is ``sqrt(a) x0 + sqrt(1-a) eps``, and
    blending it blends both parts; where the frames' eps differ the blend's is smaller, by ``sqrt(sum w^2)``
    if they are independent. So ``sqrt(1-a) (r_f - 1) blend(eps)`` is added, with ``r_f`` the rms of eps over
    that of its blend, in the mask of frame f: 1 where neighbours agree, ``1 / sqrt(sum w^2)`` where they are
    independent. The signal isn't scaled: rescaling the latent about its mean would raise the picture's
    contrast as well.

    ``field`` is that of the last step so far, on the features' grid, for whoever wants to look at it.
    """

    def __init__(self, mask: Tensor, options: CorrectionOptions = CorrectionOptions()) -> None:
        if mask.dim() != 5 or mask.shape[0] != 1 or mask.shape[2] != 1:
            raise ValueError(f"mask has shape {tuple(mask.shape)}: correct one clip at a time, `1 f 1 h w`")
        self.mask = mask[0, :, 0]
        self.options = options
        self.field: Field | None = None
        self._idle = not bool(mask.any())

    def tap(self, level: int, total: int) -> Tap | None:
        if not self._active(level, total):
            return None
        return Tap(self.options.block, self._rewrite if self.options.space == "features" else None)

    def __call__(self, step: Step) -> Tensor:
        if self.options.space == "features" or not self._active(step.level, step.total):
            return step.latents
        if step.features is None:
            raise ValueError(f"step to level {step.level} has no features: the denoiser must answer the tap")
        h, w = step.latents.shape[-2:]
        mask = self.mask.to(step.latents)
        field = upsample(self._field(step.features), h, w)
        mix = partial(blend, mask=mask, field=field, weights=self.options.weights)
        # Added as a difference, so that what earlier corrections did to the latents stays.
        if self.options.space == "x0":
            clean = to_clean(step.noisy, step.noise, step.alpha_from)
            return step.latents + step.alpha_to.sqrt() * (mix(clean) - clean)
        before = self.options.when == "before_step"
        blended = mix(step.noisy if before else step.latents)
        if self.options.restore_variance:
            lost = self._lost(step.noise, mix(step.noise), mask)
            blended = blended + (1 - (step.alpha_from if before else step.alpha_to)).sqrt() * lost
        if before:  # a DDIM step with given noise is linear in the latent, with this slope
            return step.latents + (step.alpha_to / step.alpha_from).sqrt() * (blended - step.noisy)
        return blended

    def _active(self, level: int, total: int) -> bool:
        return not self._idle and level + 1 in part_of(self.options.steps, total)

    def _field(self, features: Tensor) -> Field:
        """The field on the features' own grid, of features `1 f d h' w'`."""
        if features.shape[0] != 1:
            raise ValueError(f"features hold {features.shape[0]} clips: correct one clip at a time")
        masked = self.options.candidates == "masked"
        region = coarsen(self.mask.to(features.device), *features.shape[-2:]) if masked else None
        found = correspond(features[0], region)
        self.field = found if self.options.agreement is None else agreeing(found, self.options.agreement)
        return self.field

    def _rewrite(self, conditional: Tensor, block_output: Tensor) -> Tensor:
        """Blend the block's own output, each guidance branch with the conditional branch's field."""
        mask = coarsen(self.mask.to(block_output), *block_output.shape[-2:])
        return blend(block_output, mask, self._field(conditional), self.options.weights)

    @staticmethod
    def _lost(noise: Tensor, mixed: Tensor, mask: Tensor) -> Tensor:
        """``(r_f - 1) blend(eps)`` inside the mask, zero outside; `b f c h w`."""
        inside = mask[:, None]
        power = [(inside * part.square()).sum(dim=(2, 3, 4), keepdim=True) for part in (noise, mixed)]
        ratio = (power[0] / power[1].where(power[1] > 0, 1.0)).sqrt()
        return torch.where((inside > 0) & (power[1] > 0), (ratio - 1) * mixed, 0.0)


class Background:
    """Outside the mask, the source: ``z = M z + (1-M) z_inv`` at the post-step level (METHOD 6.5).

    After the last step that is the clean ``z_0``. ``mask`` is `b f 1 h w` in [0, 1], 1 = edit; where it is
    exactly 0 or 1 the result has every bit of its origin.
    """

    def __init__(self, mask: Tensor, trajectory: Trajectory) -> None:
        self.mask = mask
        self.trajectory = trajectory

    def tap(self, level: int, total: int) -> Tap | None:
        return None

    def __call__(self, step: Step) -> Tensor:
        levels = len(self.trajectory.latents)
        if levels != step.total + 1:
            raise ValueError(f"trajectory has {levels - 1} steps, the sampling {step.total}: give both one schedule")
        inverted = self.trajectory.level(step.level).to(step.latents)
        return torch.lerp(inverted, step.latents, self.mask.to(step.latents).expand_as(step.latents))


def tap_of(corrections: Sequence[Correction], level: int, total: int) -> Tap | None:
    """The one tap that the corrections ask for in this step; ValueError where they ask for more than one."""
    taps = [tap for correction in corrections if (tap := correction.tap(level, total)) is not None]
    if len(taps) > 1:
        raise ValueError(f"{len(taps)} corrections tap the network in one step: give at most one that does")
    return taps[0] if taps else None
