"""Each form of the correction against its formula; masks, schedule, background and taps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import draw
from torch import Tensor

from tave.config import CorrectionOptions
from tave.correction import Background, InterFrame, Level, Step, tap_of
from tave.correspondence import Field, agreeing, blend, correspond, upsample
from tave.inversion import Trajectory
from tave.schedule import ddim_step
from tave.windows import Window

F, C, H, W = 4, 4, 8, 8
WEIGHTS = (0.25, 0.5, 0.25)
FORMS: list[dict[str, Any]] = [
    {"space": "latent", "restore_variance": False},
    {"space": "latent"},
    {"space": "latent", "when": "before_step", "restore_variance": False},
    {"space": "latent", "when": "before_step"},
    {"space": "x0"},
    {"space": "noise"},
    {"space": "features"},
]
SWITCHES = [
    form | {"candidates": candidates, "agreement": agreement}
    for form, candidates, agreement in itertools.product(FORMS, ("all", "masked"), (None, 0.1))
]
PLAIN: dict[str, Any] = {  # every cell is matched, and the blend alone acts
    "steps": [0.0, 1.0],
    "agreement": None,
    "candidates": "all",
    "restore_variance": False,
}
HOLE = torch.zeros(1, F, 1, H, W)
HOLE[..., 2:6, 1:6] = 1
FULL = torch.ones(1, F, 1, H, W)


def inter_frame(mask: Tensor, **options: Any) -> InterFrame:
    return InterFrame(mask, CorrectionOptions(**PLAIN | options))


def corrected(correction: InterFrame, step: Step, features: Tensor = draw(1, F, 6, H, W, seed=2)) -> Tensor:
    """The correction of a step whose features it read; independent ones match cells at random."""
    tap = correction.tap(step.level.index, step.level.total)
    if tap is not None and tap.read is not None:
        tap.read(features, Window(0, features.shape[1], torch.ones(features.shape[1])))
    return correction(step)


def make_step(index: int = 4, total: int = 10) -> Step:
    """A DDIM step."""
    level = Level(index, total, torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.45, dtype=torch.float64))
    noisy, noise = draw(1, F, C, H, W), draw(1, F, C, H, W, seed=1)
    return Step(level, noisy, noise, ddim_step(noisy, noise, level.alpha_from, level.alpha_to))


def mixed(values: Tensor) -> Tensor:
    """``values`` blended in the hole along the features' field."""
    return blend(values, HOLE[0, :, 0], correspond(draw(F, 6, H, W, seed=2)), WEIGHTS)


@pytest.mark.parametrize("switches", SWITCHES)
def test_own_weight_alone_outside_the_mask_and_an_empty_mask_change_no_bit(switches: dict[str, Any]) -> None:
    step, outside = make_step(), (HOLE == 0).expand(1, F, C, H, W)
    own = CorrectionOptions(weights=[0.0, 1.0, 0.0], **switches)
    assert torch.equal(corrected(InterFrame(FULL, own), step), step.latents)
    after = corrected(InterFrame(HOLE, CorrectionOptions(**switches)), step)
    assert torch.equal(after[outside], step.latents[outside])
    assert torch.equal(after, step.latents) == (switches["space"] == "features")  # those act within the forward
    empty = InterFrame(torch.zeros_like(FULL), CorrectionOptions(**switches))
    assert empty(step) is step.latents and empty.tap(4, 10) is None


@pytest.mark.parametrize("form", ["latent", "before_step", "x0", "noise"])
def test_forms_equal_a_ddim_step_and_keep_what_earlier_corrections_did(form: str) -> None:
    step = make_step()
    a, b = float(step.level.alpha_from), float(step.level.alpha_to)
    noisy = mixed(step.noisy) if form == "before_step" else step.noisy
    noise = mixed(step.noise) if form == "noise" else step.noise
    clean = (noisy - (1 - a) ** 0.5 * noise) / a**0.5
    clean = mixed(clean) if form == "x0" else clean
    expected = b**0.5 * clean + (1 - b) ** 0.5 * noise
    expected = mixed(step.latents) if form == "latent" else expected
    options = {"when": form} if form == "before_step" else {"space": form}
    correction = inter_frame(HOLE, **options)
    torch.testing.assert_close(corrected(correction, step), expected)
    torch.testing.assert_close(corrected(correction, replace(step, latents=step.latents + 7)), expected + 7)


def test_features_are_rewritten_in_the_forward_with_the_conditional_branchs_field() -> None:
    tap = inter_frame(HOLE, space="features", block=-1).tap(4, 10)
    assert tap is not None and tap.block == -1 and tap.rewrite is not None
    both = draw(2, F, 6, H, W)
    expected = blend(both, HOLE[0, :, 0], correspond(both[1]), WEIGHTS)
    assert torch.equal(tap.rewrite(both[1:], both, Window(0, F, torch.ones(F))), expected)


@pytest.mark.parametrize("when", ["after_step", "before_step"])
def test_blending_independent_noise_shrinks_it_unless_its_variance_is_restored(when: str) -> None:
    """sqrt(1/16 + 1/4 + 1/16) = 0.61. Where the frames agree nothing is lost, and nothing may be added."""
    shape, ones = (1, 8, C, 32, 32), torch.ones(1, 8, 1, 32, 32)
    alpha = torch.tensor(0.02, dtype=torch.float64)
    noise, features = draw(*shape), draw(1, 8, 6, 32, 32, seed=4)
    latents = (1 - alpha).sqrt() * noise  # no signal
    step = Step(Level(4, 10, alpha, alpha), latents, noise, latents)
    shrunk, restored = (inter_frame(ones, when=when, restore_variance=restore) for restore in (False, True))
    assert abs(float(corrected(shrunk, step, features)[0, 1:-1].std() / latents.std()) - 0.61) < 0.03
    deviations = corrected(restored, step, features)[0].std(dim=(1, 2, 3)) / latents[0].std(dim=(1, 2, 3))
    torch.testing.assert_close(deviations, torch.ones(8, dtype=torch.float64), rtol=0.01, atol=0)
    still, alike = (part[:, :1].expand(-1, 8, -1, -1, -1) for part in (noise, features))
    step = replace(step, noisy=still, noise=still, latents=still)
    torch.testing.assert_close(corrected(restored, step, alike), still)


@pytest.mark.parametrize("side", [8, 16])
def test_agreement_is_a_share_of_the_grid(side: int) -> None:
    features = draw(1, F, 6, side, side, seed=5)
    field = correspond(features[0])
    correction = inter_frame(torch.ones(1, F, 1, 16, 16), agreement=0.25)
    step = replace(make_step(), latents=draw(1, F, C, 16, 16))
    after, expected = corrected(correction, step, features), agreeing(field, side // 4)
    assert isinstance(correction.field, Field) and torch.equal(correction.field.following, expected.following)
    assert (expected.following != field.following).any() and (expected.following[:-1] >= 0).any()
    torch.testing.assert_close(after, blend(step.latents, torch.ones(F, 16, 16), upsample(expected, 16, 16), WEIGHTS))


def test_a_correction_acts_in_its_part_of_the_schedule() -> None:
    correction = InterFrame(HOLE, CorrectionOptions(steps=[0.0, 0.5]))
    assert [index for index in reversed(range(10)) if correction.tap(index, 10) is not None] == [9, 8, 7, 6, 5]
    late, early = make_step(index=4), make_step(index=5)
    assert torch.equal(corrected(correction, late), late.latents)
    assert not torch.equal(corrected(correction, early), early.latents)


def test_the_background_is_the_trajectory_at_the_steps_level() -> None:
    trajectory = Trajectory(torch.arange(11.0).view(-1, 1, 1, 1, 1, 1).expand(-1, 1, F, C, H, W))
    step, inside = make_step(index=4), (HOLE > 0).expand(1, F, C, H, W)
    after = Background(HOLE, trajectory)(step)
    assert after[~inside].eq(4).all() and torch.equal(after[inside], step.latents[inside])
    with pytest.raises(ValueError, match="one schedule"):
        Background(HOLE, Trajectory(trajectory.latents[:6]))(step)


def test_unfit_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at most one"):
        tap_of([InterFrame(HOLE), InterFrame(HOLE)], 4, 10)
    assert tap_of([Background(HOLE, Trajectory(torch.zeros(1)))], 4, 10) is None
    with pytest.raises(ValueError, match="answer the tap"):
        InterFrame(HOLE)(make_step())
    with pytest.raises(ValueError, match="one clip"):
        corrected(InterFrame(HOLE), make_step(), draw(2, F, 6, H, W))
    with pytest.raises(ValueError, match="1 f 1 h w"):
        InterFrame(HOLE[0])
