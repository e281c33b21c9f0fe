"""Each correction does its one thing, where and when it was told to."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tave.correction import Background, CorrectionOptions, InterFrame, Step, tap_of
from tave.correspondence import blend, correspond
from tave.inversion import Trajectory
from tave.options import OptionError
from tave.schedule import ddim_step, to_clean

F, C, H, W = 4, 4, 8, 8
SWITCHES = [
    {"space": space, "when": when, "candidates": candidates, "restore_variance": restore, "agreement": agreement}
    for space, when, candidates, restore, agreement in itertools.product(
        ("latent", "x0", "features"), ("after_step", "before_step"), ("all", "masked"), (False, True), (None, 1)
    )
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(features: Tensor | None = None, level: int = 4, total: int = 10) -> Step:
    noisy, noise = draw(1, F, C, H, W), draw(1, F, C, H, W, seed=1)
    alphas = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.45, dtype=torch.float64)
    latents = ddim_step(noisy, noise, *alphas)
    features = draw(1, F, 6, H, W, seed=2) if features is None else features
    return Step(level, total, 500, noisy, noise, latents, features, *alphas)


def hole() -> Tensor:
    mask = torch.zeros(1, F, 1, H, W)
    mask[..., 2:6, 1:6] = 1
    return mask


def own() -> list[float]:
    return [0.0, 1.0, 0.0]


@pytest.mark.parametrize("switches", SWITCHES)
def test_own_weight_alone_changes_no_bit(switches: dict[str, Any]) -> None:
    before = step()
    correction = InterFrame(torch.ones(1, F, 1, H, W), CorrectionOptions(weights=own(), **switches))
    assert torch.equal(correction(before), before.latents)


@pytest.mark.parametrize("switches", SWITCHES)
def test_outside_the_mask_no_bit_changes_and_inside_something_does(switches: dict[str, Any]) -> None:
    before = step()
    after = InterFrame(hole(), CorrectionOptions(**switches))(before)
    outside = (hole() == 0).expand_as(after)
    assert torch.equal(after[outside], before.latents[outside])
    assert torch.equal(after, before.latents) == (switches["space"] == "features")  # those act within the forward


@pytest.mark.parametrize("switches", SWITCHES)
def test_an_empty_mask_asks_for_nothing(switches: dict[str, Any]) -> None:
    before = step()
    correction = InterFrame(torch.zeros(1, F, 1, H, W), CorrectionOptions(**switches))
    assert correction(before) is before.latents and correction.tap(4, 10) is None


def test_after_step_blends_what_came_out() -> None:
    before = step()
    assert before.features is not None
    field = correspond(before.features[0])
    expected = blend(before.latents, hole()[0, :, 0], field, (0.25, 0.5, 0.25))
    torch.testing.assert_close(InterFrame(hole())(before), expected)


def test_before_step_blends_what_went_in_then_steps_with_the_noise_already_predicted() -> None:
    before = step()
    assert before.features is not None
    mixed = blend(before.noisy, hole()[0, :, 0], correspond(before.features[0]), (0.25, 0.5, 0.25))
    expected = ddim_step(mixed, before.noise, before.alpha_from, before.alpha_to)
    torch.testing.assert_close(InterFrame(hole(), CorrectionOptions(when="before_step"))(before), expected)


def test_x0_blends_the_clean_estimate_and_keeps_the_noise() -> None:
    before = step()
    assert before.features is not None
    clean = to_clean(before.noisy, before.noise, before.alpha_from)
    mixed = blend(clean, hole()[0, :, 0], correspond(before.features[0]), (0.25, 0.5, 0.25))
    after = InterFrame(hole(), CorrectionOptions(space="x0"))(before)
    torch.testing.assert_close(to_clean(after, before.noise, before.alpha_to), mixed)


@pytest.mark.parametrize("when", ["after_step", "before_step"])
def test_what_earlier_corrections_did_stays(when: str) -> None:
    shifted = replace(step(), latents=step().latents + 7)
    for space in ("latent", "x0"):
        options = CorrectionOptions(space=space, when=when)
        torch.testing.assert_close(InterFrame(hole(), options)(shifted), InterFrame(hole(), options)(step()) + 7)


def test_coarse_features_are_brought_to_the_latent_grid() -> None:
    before = step(draw(1, F, 6, H // 2, W // 2, seed=5))
    for candidates in ("all", "masked"):
        after = InterFrame(hole(), CorrectionOptions(candidates=candidates))(before)
        assert after.shape == before.latents.shape and not torch.equal(after, before.latents)


def test_restored_noise_has_its_size_back_and_agreeing_frames_are_left_alone() -> None:
    ones = torch.ones(1, 8, 1, 32, 32)
    noise = draw(1, 8, C, 32, 32)
    alpha = torch.tensor(0.02, dtype=torch.float64)
    latents = (1 - alpha).sqrt() * noise  # all noise, no signal
    features = draw(1, 8, 6, 32, 32, seed=4)  # independent: so are the blended cells
    before = Step(4, 10, 500, latents, noise, latents, features, alpha, alpha)
    for when in ("after_step", "before_step"):
        shrunk = InterFrame(ones, CorrectionOptions(when=when))(before)
        whole = InterFrame(ones, CorrectionOptions(when=when, restore_variance=True))(before)
        assert shrunk[0, 1:-1].std() / latents.std() < 0.7  # sqrt(1/16 + 1/4 + 1/16) = 0.61
        torch.testing.assert_close(whole[0].std(dim=(1, 2, 3)), latents[0].std(dim=(1, 2, 3)), rtol=0.01, atol=0)
    still = noise[:, :1].expand(-1, 8, -1, -1, -1)
    before = replace(before, noisy=still, noise=still, latents=still, features=features[:, :1].expand(-1, 8, -1, -1, -1))
    torch.testing.assert_close(InterFrame(ones, CorrectionOptions(restore_variance=True))(before), still)


def test_features_are_rewritten_in_the_forward_with_the_conditional_branchs_field() -> None:
    correction = InterFrame(hole(), CorrectionOptions(space="features", block=-1))
    tap = correction.tap(4, 10)
    assert tap is not None and tap.block == -1 and tap.rewrite is not None
    both = draw(2, F, 6, H, W)
    rewritten = tap.rewrite(both[1:], both)
    expected = blend(both, hole()[0, :, 0], correspond(both[1]), (0.25, 0.5, 0.25))
    assert torch.equal(rewritten, expected)


def test_a_correction_acts_in_its_part_of_the_schedule_only() -> None:
    options = CorrectionOptions(steps=[0.0, 0.5])
    correction = InterFrame(hole(), options)
    active = [level for level in reversed(range(10)) if correction.tap(level, 10) is not None]
    assert active == [9, 8, 7, 6, 5]
    late, early = step(level=4), step(level=5)
    assert torch.equal(correction(late), late.latents) and not torch.equal(correction(early), early.latents)


def test_the_background_is_the_trajectory_at_the_same_level() -> None:
    trajectory = Trajectory(torch.arange(11.0).view(-1, 1, 1, 1, 1, 1).expand(-1, 1, F, C, H, W))
    before = step(level=4)
    after = Background(hole(), trajectory)(before)
    inside = (hole() > 0).expand_as(after)
    assert after[~inside].eq(4).all() and torch.equal(after[inside], before.latents[inside])


def test_the_background_refuses_another_schedules_trajectory() -> None:
    with pytest.raises(ValueError, match="one schedule"):
        Background(hole(), Trajectory(torch.zeros(6, 1, F, C, H, W)))(step(total=10))


def test_one_tap_a_step() -> None:
    taps = [InterFrame(hole()), InterFrame(hole())]
    with pytest.raises(ValueError, match="at most one"):
        tap_of(taps, 4, 10)
    assert tap_of([Background(hole(), Trajectory(torch.zeros(1)))], 4, 10) is None


def test_missing_features_and_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="answer the tap"):
        InterFrame(hole())(replace(step(), features=None))
    with pytest.raises(ValueError, match="one clip"):
        InterFrame(hole())(step(draw(2, F, 6, H, W)))
    with pytest.raises(ValueError, match="1 f 1 h w"):
        InterFrame(hole()[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": [0.5, 0.5]},
        {"weights": [0.5, 0.5, 0.5]},
        {"weights": [-0.5, 1.0, 0.5]},
        {"weights": [float("nan"), 0.5, 0.5]},
        {"space": "pixels"},
        {"when": "now"},
        {"candidates": "some"},
        {"agreement": -1},
        {"steps": [0.6, 0.4]},
    ],
)
def test_wrong_options_fail_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"correction.{next(iter(wrong))}"):
        CorrectionOptions(**wrong)
