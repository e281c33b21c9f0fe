"""Start, loop and composite: sampling retraces the trajectory, levels match, pixels outside are the source's."""

from __future__ import annotations

import pytest
import torch
from fakes import Fixed, Following, draw, made_condition, made_schedule
from torch import Tensor

from tave.backbone import tiny_backbone
from tave.config import CorrectionOptions
from tave.correction import Background, Correction, InterFrame, Step
from tave.denoiser import Denoiser, Tap
from tave.encoders import Condition
from tave.inversion import Trajectory, invert
from tave.sampling import composite, composite_alpha, object_path, resize_mask, sample, start_latents
from tave.schedule import Schedule
from tave.seeds import generator_for

F, C, H, W, STEPS = 4, 4, 8, 8, 6
SPACES = ["latent", "x0", "noise", "features"]
HOLE = torch.zeros(1, F, 1, H, W)
HOLE[..., 2:6, 1:6] = 1
START = draw(1, F, C, H, W)


class Watch:
    """A correction that changes nothing and keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def tap(self, index: int, total: int) -> Tap | None:
        return None

    def __call__(self, step: Step) -> Tensor:
        self.steps.append(step)
        return step.latents


def counting() -> Trajectory:
    """Level k is filled with the constant k."""
    levels = torch.arange(STEPS + 1, dtype=torch.float64)
    return Trajectory(levels.view(-1, 1, 1, 1, 1, 1).expand(-1, 1, F, C, H, W))


def sampled(*corrections: Correction, start: Tensor = START, scale: float = 3.0) -> Tensor:
    schedule, condition = made_schedule(STEPS), made_condition()
    return sample(Following(), schedule, start, condition, guidance_scale=scale, corrections=corrections)


# ---- start -----------------------------------------------------------------------------------------------------------


def moving(frames: int) -> Tensor:
    """`1 f 1 h w`: a block that moves by one row and two columns a frame."""
    mask = torch.zeros(1, frames, 1, 32, 32)
    for i in range(frames):
        mask[0, i, 0, 3 + i : 9 + i, 2 + 2 * i : 10 + 2 * i] = 1
    return mask


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_start_is_the_inversion_outside_the_mask_and_keeps_unit_variance_inside(share: float) -> None:
    mask, noisiest = moving(6), draw(1, 6, 16, 32, 32)
    start = start_latents(noisiest, mask, mask, share, generator_for(0, "start noise"))
    outside = (mask == 0).expand_as(start)
    assert torch.equal(start[outside], noisiest[outside])
    assert torch.equal(start, noisiest) == (share == 0)
    assert abs(float(start[~outside].std()) - 1) < 0.05
    pair = torch.stack([start[~outside], noisiest[~outside]])
    assert abs(float(torch.corrcoef(pair)[0, 1]) - (1 - share) ** 0.5) < 0.05


def test_fresh_noise_moves_with_the_object() -> None:
    mask = moving(6)
    assert object_path(mask[0, :, 0]) == [(i, 2 * i) for i in range(6)]
    noise = start_latents(torch.zeros(1, 6, C, 32, 32), mask, mask, 1.0, generator_for(0, "start noise"))
    for i in range(6):
        assert torch.equal(noise[0, i, :, 3 + i : 9 + i, 2 + 2 * i : 10 + 2 * i], noise[0, 0, :, 3:9, 2:10])


def test_a_frame_without_the_object_keeps_the_last_position() -> None:
    mask = moving(4)
    mask[0, 2] = 0
    assert object_path(mask[0, :, 0]) == [(0, 0), (1, 2), (1, 2), (3, 6)]
    mask[0, 0] = 0
    assert object_path(mask[0, :, 0])[:2] == [(0, 0), (0, 0)]


# ---- loop ------------------------------------------------------------------------------------------------------------


def test_without_corrections_an_exact_predictor_retraces_the_trajectory() -> None:
    schedule, condition, watch = made_schedule(STEPS), made_condition(), Watch()
    trajectory = invert(Fixed(), schedule, START, condition, refine=0)
    end = sample(Fixed(), schedule, trajectory.level(STEPS), condition, corrections=[watch])
    assert [step.level.index for step in watch.steps] == [5, 4, 3, 2, 1, 0]
    for step in watch.steps:
        torch.testing.assert_close(step.latents, trajectory.level(step.level.index), rtol=0, atol=1e-12)
    assert torch.equal(end, watch.steps[-1].latents)


def test_the_background_is_read_at_the_level_after_the_step() -> None:
    watch = Watch()
    end = sampled(Background(HOLE, counting()), watch)
    outside = (HOLE == 0).expand_as(end)
    for step in watch.steps:
        assert step.latents[outside].eq(step.level.index).all()
        assert not step.latents[~outside].eq(step.level.index).any()
    assert end[outside].eq(0).all()


@pytest.mark.parametrize("space", SPACES)
def test_an_empty_mask_ends_at_the_clean_source(space: str) -> None:
    trajectory = invert(Fixed(), made_schedule(STEPS), draw(1, F, C, H, W, seed=99), made_condition(), refine=0)
    nothing = torch.zeros(1, F, 1, H, W)
    inter_frame = InterFrame(nothing, CorrectionOptions(space=space))
    end = sampled(inter_frame, Background(nothing, trajectory), start=trajectory.level(STEPS))
    assert torch.equal(end, trajectory.level(0))


@pytest.mark.parametrize("when", ["after_step", "before_step"])
@pytest.mark.parametrize("space", SPACES)
def test_a_full_mask_with_own_weight_alone_is_plain_sampling(space: str, when: str) -> None:
    full, plain = torch.ones(1, F, 1, H, W), sampled()
    options = CorrectionOptions(weights=[0.0, 1.0, 0.0], space=space, when=when, restore_variance=True)
    assert torch.equal(sampled(InterFrame(full, options), Background(full, counting())), plain)
    assert not torch.equal(sampled(scale=1.0), plain) and not torch.equal(sampled(InterFrame(full)), plain)


def test_corrections_are_applied_in_order() -> None:
    class Scale(Watch):
        def __call__(self, step: Step) -> Tensor:
            return (step.latents + len(self.steps)) * 2

    plan, condition, first, second = made_schedule(1), made_condition(), Scale(), Scale()
    second.steps = [None]  # type: ignore[list-item]
    plain = sample(Fixed(), plan, START, condition)
    assert torch.equal(sample(Fixed(), plan, START, condition, corrections=[first, second]), (plain * 2 + 1) * 2)


@pytest.mark.parametrize("space", ["latent", "features"])
@torch.no_grad()
def test_the_real_network_is_corrected_in_the_same_forward(space: str) -> None:
    backbone = tiny_backbone()
    denoiser, plan = Denoiser(backbone.unet, backbone.scheduler), Schedule.from_scheduler(backbone.scheduler, 2)
    text, image = draw(1, 4, 32, seed=1, dtype=torch.float32), draw(1, 1, 48, seed=2, dtype=torch.float32)
    target = Condition(text, image, torch.zeros_like(text))

    def edit(**options: object) -> Tensor:
        chosen = CorrectionOptions(space=space, steps=[0.0, 1.0], **options)  # type: ignore[arg-type]
        return sample(denoiser, plan, START.float(), target, guidance_scale=2.0, corrections=[InterFrame(HOLE, chosen)])

    plain = sample(denoiser, plan, START.float(), target, guidance_scale=2.0)
    assert torch.equal(edit(weights=[0.0, 1.0, 0.0]), plain)
    for block in (-1, -3):
        assert not torch.allclose(edit(block=block), plain)


# ---- composite -------------------------------------------------------------------------------------------------------


def test_masks_reach_the_pixels_by_the_nearest_cell() -> None:
    assert torch.equal(resize_mask(HOLE, 32, 32), HOLE[0].repeat_interleave(4, -1).repeat_interleave(4, -2))
    with pytest.raises(ValueError, match="one clip"):
        resize_mask(HOLE[0], 32, 32)


@pytest.mark.parametrize("scale", [1, 4])
def test_alpha_is_one_on_the_mask_and_falls_over_a_share_of_the_frame(scale: int) -> None:
    mask = torch.zeros(2, 1, 16 * scale, 20 * scale)
    mask[0, 0, 5 * scale : 9 * scale, 6 * scale : 10 * scale] = 1
    alpha, reach = composite_alpha(mask, 3 / 16), 3 * scale
    assert alpha[mask > 0].eq(1).all() and not alpha[1].any()
    edge = alpha[0, 0, 6 * scale, 10 * scale :][: reach + 1]
    torch.testing.assert_close(edge, torch.arange(reach, -1, -1) / (reach + 1))
    assert not alpha[0, 0, : 2 * scale].any() and not alpha[0, 0, :, 13 * scale :].any()
    assert torch.equal(composite_alpha(mask, 0.0), mask)


def test_the_composite_has_every_bit_of_either_side() -> None:
    edited, source = draw(2, 3, 16, 16).float(), draw(2, 3, 16, 16, seed=1).float()
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 5:9, 6:10] = 1
    alpha = composite_alpha(mask, 0.125).expand_as(source)
    result = composite(edited, source, alpha[:, :1])
    assert torch.equal(result[alpha == 1], edited[alpha == 1]) and torch.equal(result[alpha == 0], source[alpha == 0])
    with pytest.raises(ValueError, match="one size"):
        composite(edited, source[:1], alpha[:, :1])
