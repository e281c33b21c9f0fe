"""The loop: it returns along the trajectory, blends levels that match, and pastes pixels exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tave.backbone import tiny_backbone
from tave.conditions import Condition
from tave.correction import Background, Correction, CorrectionOptions, InterFrame, Step
from tave.denoiser import Denoiser, Prediction, Tap
from tave.inversion import Trajectory, invert
from tave.options import OptionError
from tave.sampling import SamplingOptions, composite, composite_alpha, resize_mask, sample
from tave.schedule import Schedule

F, C, H, W, STEPS = 4, 4, 8, 8, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def schedule() -> Schedule:
    return Schedule([-1, *range(100, 601, 100)], torch.linspace(0.99, 0.05, STEPS + 1, dtype=torch.float64))


def condition() -> Condition:
    return Condition(torch.zeros(1, 2, 3), torch.zeros(1, 1, 2), torch.zeros(1, 2, 3))


class Fixed:
    """A noise of the timestep's own, whatever the latents: DDIM inversion of it is exact."""

    def __call__(
        self,
        latents: Tensor,
        t: int,
        condition: Condition,
        guidance_scale: float = 1.0,
        tap: Tap | None = None,
    ) -> Prediction:
        features = draw(1, F, 6, H // 2, W // 2, seed=t + 1)
        return Prediction(draw(*latents.shape, seed=t), None if tap is None else features)


class Following(Fixed):
    """A noise that depends on latents and guidance."""

    def __call__(
        self,
        latents: Tensor,
        t: int,
        condition: Condition,
        guidance_scale: float = 1.0,
        tap: Tap | None = None,
    ) -> Prediction:
        noise, features = super().__call__(latents, t, condition, guidance_scale, tap)
        return Prediction(torch.tanh(latents.roll(1, -1)) * guidance_scale + noise, features)


class Watch:
    """A correction that corrects nothing and remembers."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def tap(self, level: int, total: int) -> Tap | None:
        return None

    def __call__(self, step: Step) -> Tensor:
        self.steps.append(step)
        return step.latents


def counting() -> Trajectory:
    """Level k is filled with the constant k."""
    levels = torch.arange(STEPS + 1, dtype=torch.float64)
    return Trajectory(levels.view(-1, 1, 1, 1, 1, 1).expand(-1, 1, F, C, H, W))


def hole() -> Tensor:
    mask = torch.zeros(1, F, 1, H, W)
    mask[..., 2:6, 1:6] = 1
    return mask


def test_with_an_exact_predictor_sampling_walks_back_along_the_trajectory() -> None:
    trajectory = invert(Fixed(), schedule(), draw(1, F, C, H, W, seed=99), condition(), refine=0)
    watch = Watch()
    end = sample(Fixed(), schedule(), trajectory.level(STEPS), condition(), corrections=[watch])
    assert [step.level for step in watch.steps] == [5, 4, 3, 2, 1, 0]
    for step in watch.steps:
        torch.testing.assert_close(step.latents, trajectory.level(step.level), rtol=0, atol=1e-12)
    assert torch.equal(end, watch.steps[-1].latents)


@pytest.mark.parametrize("first", [1, 4, STEPS])
def test_begun_at_a_level_it_goes_on_as_the_whole_way_would(first: int) -> None:
    watch, told = Watch(), []
    whole = sample(Following(), schedule(), draw(1, F, C, H, W), condition(), guidance_scale=3, corrections=[watch])
    at = draw(1, F, C, H, W) if first == STEPS else watch.steps[STEPS - first - 1].latents
    late = Watch()
    rest = sample(
        Following(),
        schedule(),
        at,
        condition(),
        guidance_scale=3,
        corrections=[late],
        first=first,
        on_step=lambda *step: told.append(step),
    )
    assert torch.equal(rest, whole)
    assert told == [(done, first) for done in range(1, first + 1)]
    assert [(step.level, step.total) for step in late.steps] == [(level, STEPS) for level in reversed(range(first))]


def test_the_background_reads_the_level_that_the_step_went_to() -> None:
    watch = Watch()
    corrections: list[Correction] = [Background(hole(), counting()), watch]
    end = sample(Following(), schedule(), draw(1, F, C, H, W), condition(), corrections=corrections)
    outside = (hole() == 0).expand_as(end)
    for step in watch.steps:
        assert step.latents[outside].eq(step.level).all()
        assert not step.latents[~outside].eq(step.level).any()
    assert end[outside].eq(0).all()


@pytest.mark.parametrize("space", ["latent", "x0", "features"])
def test_an_empty_mask_ends_at_the_clean_source(space: str) -> None:
    trajectory = invert(Fixed(), schedule(), draw(1, F, C, H, W, seed=99), condition(), refine=0)
    nothing = torch.zeros(1, F, 1, H, W)
    corrections: list[Correction] = [
        InterFrame(nothing, CorrectionOptions(space=space)),
        Background(nothing, trajectory),
    ]
    end = sample(Following(), schedule(), trajectory.level(STEPS), condition(), corrections=corrections)
    assert torch.equal(end, trajectory.level(0))


@pytest.mark.parametrize("when", ["after_step", "before_step"])
@pytest.mark.parametrize("space", ["latent", "x0"])
def test_a_full_mask_with_own_weight_alone_is_plain_sampling(space: str, when: str) -> None:
    start, full = draw(1, F, C, H, W), torch.ones(1, F, 1, H, W)
    options = CorrectionOptions(weights=[0.0, 1.0, 0.0], space=space, when=when, restore_variance=True)
    corrections: list[Correction] = [InterFrame(full, options), Background(full, counting())]
    plain = sample(Following(), schedule(), start, condition(), guidance_scale=3)
    assert torch.equal(sample(Following(), schedule(), start, condition(), guidance_scale=3, corrections=corrections), plain)
    assert not torch.equal(sample(Following(), schedule(), start, condition()), plain)
    mixed = sample(Following(), schedule(), start, condition(), guidance_scale=3, corrections=[InterFrame(full)])
    assert not torch.equal(mixed, plain)


def test_corrections_compose_in_order_and_progress_is_told() -> None:
    class Add(Watch):
        def __call__(self, step: Step) -> Tensor:
            return step.latents + 1

    class Double(Watch):
        def __call__(self, step: Step) -> Tensor:
            return step.latents * 2

    told: list[tuple[int, int]] = []
    plan = Schedule([-1, 100], schedule().alphas[:2])
    start = draw(1, F, C, H, W)
    plain = sample(Fixed(), plan, start, condition())
    both = sample(Fixed(), plan, start, condition(), corrections=[Add(), Double()], on_step=lambda *at: told.append(at))
    assert torch.equal(both, (plain + 1) * 2) and told == [(1, 1)]


def test_masks_reach_the_pixels_by_the_nearest_cell() -> None:
    mask = hole()
    assert torch.equal(resize_mask(mask, 32, 32), mask[0].repeat_interleave(4, -1).repeat_interleave(4, -2))
    with pytest.raises(ValueError, match="one clip"):
        resize_mask(mask[0], 32, 32)


def test_alpha_is_one_on_the_mask_falls_outside_and_is_zero_beyond() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, 0, 5:9, 6:10] = 1
    alpha = composite_alpha(mask, 3)
    assert alpha[mask > 0].eq(1).all() and not alpha[1].any()
    torch.testing.assert_close(alpha[0, 0, 6, 9:15], torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0, 0.0]))
    assert not alpha[0, 0, :2].any() and not alpha[0, 0, :, 13:].any()
    assert torch.equal(composite_alpha(mask, 0), mask)


def test_the_composite_has_every_bit_of_either_side() -> None:
    edited, source = draw(2, 3, 16, 16).float(), draw(2, 3, 16, 16, seed=1).float()
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 5:9, 6:10] = 1
    alpha = composite_alpha(mask, 2).expand_as(source)
    result = composite(edited, source, alpha[:, :1])
    assert torch.equal(result[alpha == 1], edited[alpha == 1]) and torch.equal(result[alpha == 0], source[alpha == 0])
    assert torch.equal(composite(edited, source, torch.zeros(2, 1, 16, 16)), source)
    with pytest.raises(ValueError, match="one size"):
        composite(edited, source[:1], alpha[:, :1])


def test_wrong_options_fail_by_name() -> None:
    with pytest.raises(OptionError, match=r"sampler\.background"):
        SamplingOptions(background="pixels")
    with pytest.raises(OptionError, match=r"sampler\.feather"):
        SamplingOptions(feather=-1)


@pytest.mark.parametrize("space", ["latent", "features"])
def test_the_real_network_answers_the_tap_in_the_same_forward(space: str) -> None:
    backbone = tiny_backbone()
    denoiser, plan = (
        Denoiser(backbone.unet, backbone.scheduler),
        Schedule.from_scheduler(backbone.scheduler, 3),
    )
    config = backbone.unet.config
    start = draw(1, F, config["in_channels"], H, W).float()
    text = draw(1, 4, config["cross_attention_dim"], seed=1).float()
    image = draw(1, 1, config["projection_class_embeddings_input_dim"], seed=2).float()
    target = Condition(text, image, torch.zeros_like(text))

    def edit(*corrections: Correction) -> Tensor:
        return sample(denoiser, plan, start, target, guidance_scale=2.0, corrections=corrections)

    plain = edit()
    assert torch.equal(edit(InterFrame(hole(), CorrectionOptions(weights=[0.0, 1.0, 0.0], space=space))), plain)
    for block in (-1, -2, -3):
        assert not torch.allclose(edit(InterFrame(hole(), CorrectionOptions(block=block, space=space))), plain)
