"""The edit mask: where two conditions disagree, nothing where they agree, and what is worth a warning."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from fakes import draw, made_condition, made_schedule
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from tave import masking
from tave.backbone import tiny_backbone
from tave.config import MaskOptions, OptionError
from tave.denoiser import Denoiser, Prediction
from tave.encoders import Condition
from tave.inversion import Trajectory
from tave.masking import Disagreement, EditMask, MaskError, compare, drop_unchanged, make_mask, part_of
from tave.schedule import Schedule

FRAMES, CHANNELS, SIDE, STEPS = 3, 4, 12, 4
EXACT = MaskOptions(steps=[0.0, 1.0], smooth=0.0, dilate=0.0, union="none")  # neither smoothed nor dilated


def trajectory(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> Trajectory:
    return Trajectory(draw(steps + 1, 1, FRAMES, CHANNELS, SIDE, SIDE, dtype=dtype))


def square(top: int, bottom: int, left: int, right: int) -> Tensor:
    """`1 f 1 h w`: the same cells in each frame."""
    mask = torch.zeros(1, FRAMES, 1, SIDE, SIDE)
    mask[..., top:bottom, left:right] = 1
    return mask


def moving() -> Tensor:
    """`1 f 1 h w`: a square that moves by two cells a frame."""
    return torch.cat([square(4, 8, 2 * i, 2 * i + 4)[:, :1] for i in range(FRAMES)], dim=1)


class Disagreeing:
    """Noise that depends on the latents, in ``region`` on the condition, and in ``old`` on there being a picture.

    Its branches differ by rounding, as a real network's do.
    """

    def __init__(self, region: Tensor, old: Tensor | float = 0.0, size: Callable[[int], float] = lambda t: 1.0) -> None:
        self.region, self.old, self.size, self.calls = region, old, size, 0

    def __call__(self, latents, t, condition, guidance_scale=1.0, tap=None) -> Prediction:
        self.calls += 1
        value = condition.image.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        rounding = 1e-7 * draw(*latents.shape, seed=t, dtype=latents.dtype)
        differing = self.size(t) * value * self.region + (value > 0) * self.old
        return Prediction(0.1 * latents + 0.05 + differing + rounding)


def find_mask(*compared: Any, options: MaskOptions = MaskOptions(), **more: Any) -> EditMask:
    return make_mask(compare(*compared, options=options, **more), options)


def found(
    options: MaskOptions, predictor: Disagreeing | None = None, source: float = 0.0, target: float = 1.0, **more: Any
) -> EditMask:
    predictor, ends = predictor or Disagreeing(moving()), (made_condition(source), made_condition(target))
    return find_mask(predictor, made_schedule(STEPS), trajectory(), *ends, options=options, **more)


# ---- comparing the branches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branches", ["shared", "separate"])
@pytest.mark.parametrize("weight", ["uniform", "per_step"])
@pytest.mark.parametrize("threshold", ["otsu", "fixed", "quantile"])
@pytest.mark.parametrize("union", ["none", "unconditional", "disputed"])
def test_equal_conditions_give_an_empty_mask(branches: str, weight: str, threshold: str, union: str) -> None:
    options = MaskOptions(branches=branches, weight=weight, threshold=threshold, union=union)
    mask = found(options, Disagreeing(moving(), old=square(0, 4, 0, 4)), 0.5, 0.5)
    assert not any(part.any() for part in (mask.soft, mask.binary, mask.mask, mask.source_object, mask.per_step))
    assert mask.notes == ()


@pytest.mark.parametrize("branches", ["shared", "separate"])
@pytest.mark.parametrize("threshold", ["otsu", "fixed", "quantile"])
def test_the_region_of_disagreement_is_recovered_in_every_frame(branches: str, threshold: str) -> None:
    share = 1 - float(moving().mean())
    mask = found(replace(EXACT, branches=branches, threshold=threshold, quantile=share))
    assert torch.equal(mask.binary, moving()) and torch.equal(mask.mask, mask.binary)
    assert mask.per_step.shape == (STEPS, FRAMES, SIDE, SIDE) and mask.soft.min() >= 0 and mask.soft.max() == 1


def test_shared_and_separate_branches_agree_at_the_first_step_alone() -> None:
    options = replace(EXACT, weight="uniform")
    shared, separate = (found(replace(options, branches=each)).per_step for each in ("shared", "separate"))
    assert torch.equal(shared[0], separate[0]) and not torch.allclose(shared[1:], separate[1:])


def test_per_step_weight_lets_all_steps_count_alike_except_rounding() -> None:
    sizes = {400: 1e-6, 300: 10.0, 200: 1.0, 100: 0.1}

    def means(weight: str) -> Tensor:
        predictor = Disagreeing(moving(), size=lambda t: sizes[t])
        return found(replace(EXACT, weight=weight), predictor).per_step.mean(dim=(1, 2, 3))

    torch.testing.assert_close(means("per_step"), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    uniform = means("uniform")
    assert uniform[0] == 0 and uniform[1] > 9 * uniform[2] > 80 * uniform[3] > 0
    maps = [torch.full((1, 2, 2), value) for value in (0.9e-3, 1.1e-3)]  # of a noise of mean size 1
    assert masking.weigh(maps, torch.ones(2), "per_step").mean(dim=(1, 2, 3)).tolist() == [0.0, 1.0]


def test_only_the_chosen_part_of_the_schedule_is_evaluated() -> None:
    seen: list[tuple[int, int]] = []
    predictor = Disagreeing(moving())
    late = found(replace(EXACT, steps=[0.5, 1.0]), predictor, on_step=lambda *at: seen.append(at))
    assert predictor.calls == 2 and late.per_step.shape[0] == 2 and seen == [(1, 2), (2, 2)]
    # separate branches start at the noisy end, and stop after the last step that is read
    predictor, options = Disagreeing(moving()), replace(EXACT, branches="separate", weight="uniform")
    early = found(replace(options, steps=[0.25, 0.5]), predictor)
    assert predictor.calls == 2 and torch.equal(early.per_step, found(options).per_step[1:2])
    with pytest.raises(OptionError, match="widen"):
        found(replace(EXACT, steps=[0.0, 0.01]))


def test_parts_that_partition_the_schedule_partition_its_steps() -> None:
    assert part_of([0, 1], 5) == [5, 4, 3, 2, 1]
    for total, cut in itertools.product((1, 4, 5, 25), (0.1, 0.3, 0.5, 0.7)):
        assert part_of([0, cut], total) + part_of([cut, 1], total) == part_of([0, 1], total)


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_union_covers_the_old_object_that_a_smaller_target_leaves(branches: str) -> None:
    old = square(2, 10, 1, 11)
    small = moving() * old
    predictor = Disagreeing(small, old)
    mask = found(replace(EXACT, union="unconditional", branches=branches), predictor, 0.5, 1.5)
    assert predictor.calls == STEPS
    assert torch.equal(mask.binary, torch.maximum(old, small)) and torch.equal(mask.source_object, old)
    mask = found(replace(EXACT, branches=branches), predictor, 0.5, 1.5)
    assert torch.equal(mask.binary, small) and torch.equal(mask.source_object, small)


def test_disputed_union_leaves_out_scenery_that_both_branches_share() -> None:
    old, trees = square(6, 10, 4, 9), square(0, 3, 0, SIDE)
    differ = torch.maximum(old * 0.2, moving() * old)  # the old object's rim hardly differs from the new one
    predictor = Disagreeing(differ, torch.maximum(old, trees))
    none, unconditional, disputed = (
        found(replace(EXACT, union=union), predictor, 0.5, 1.5).binary
        for union in ("none", "unconditional", "disputed")
    )
    assert (unconditional * trees).any() and not (disputed * trees).any()
    assert torch.equal(disputed, old) and not torch.equal(none, old)


def test_disputed_union_takes_no_piece_of_which_the_map_has_no_part() -> None:
    """A corner of scenery with much evidence and some disagreement, less than makes the map's mask."""
    old, corner = square(6, 10, 4, 9), square(0, 3, 0, 3)
    predictor = Disagreeing(torch.maximum(old, 0.4 * corner), torch.maximum(old, corner))
    none, unconditional, disputed = (
        found(replace(EXACT, union=union), predictor, 0.5, 1.5).binary
        for union in ("none", "unconditional", "disputed")
    )
    assert not (none * corner).any() and (unconditional * corner).any()
    assert torch.equal(disputed, none)


def test_another_threshold_needs_no_evaluation_of_the_network() -> None:
    predictor = Disagreeing(moving(), square(2, 10, 1, 11))
    ends = made_condition(0.5), made_condition(1.5)
    maps = masking.compare(predictor, made_schedule(STEPS), trajectory(), *ends, MaskOptions())
    calls = predictor.calls
    choices = itertools.product(("otsu", "fixed", "quantile"), (0.0, 0.25), (0.0, 0.1), ("none", "disputed"))
    masks = [
        make_mask(maps, MaskOptions(threshold=kind, smooth=side, dilate=margin, union=union))
        for kind, side, margin, union in choices
    ]
    assert predictor.calls == calls == 2 and len({mask.mask.sum() for mask in masks}) > 3


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_a_real_networks_rounding_is_no_edit(branches: str) -> None:
    backbone = tiny_backbone()
    denoiser, plan = Denoiser(backbone.unet, backbone.scheduler), Schedule.from_scheduler(backbone.scheduler, STEPS)
    text, image = draw(1, 4, 32, dtype=torch.float32), draw(1, 1, 48, dtype=torch.float32)
    source, other = (Condition(text, vector, torch.zeros_like(text)) for vector in (image, -image))
    options = MaskOptions(branches=branches, weight="uniform")
    assert not find_mask(denoiser, plan, trajectory(), source, source, options=options).soft.any()
    # one prompt with two pictures is an edit all the same
    assert find_mask(denoiser, plan, trajectory(), source, other, options=options).mask.any()


class Parametrised(nn.Module):
    """One denoiser in the parametrisation of its scheduler; the clean estimate depends on latents and condition."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.kind, self.alphas = scheduler.config["prediction_type"], scheduler.alphas_cumprod.double()

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, **_: Any) -> tuple[Tensor]:
        alpha = self.alphas[timestep[0]]
        region = torch.linspace(-1, 1, SIDE, dtype=sample.dtype).square()
        clean = torch.tanh(sample.roll(1, -1)) + class_labels.mean(1).view(-1, 1, 1, 1) * region
        noise = (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return (noise if self.kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,)


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_v_and_epsilon_models_of_one_denoiser_give_one_mask(branches: str) -> None:
    masks, ends = [], (made_condition(0.0, torch.float64), made_condition(1.0, torch.float64))
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
        denoiser = Denoiser(cast(UNet2DConditionModel, Parametrised(scheduler)), scheduler)
        plan, options = Schedule.from_scheduler(scheduler, STEPS), MaskOptions(branches=branches)
        masks.append(find_mask(denoiser, plan, trajectory(dtype=torch.float64), *ends, options=options))
    torch.testing.assert_close(masks[0].per_step, masks[1].per_step, rtol=1e-9, atol=1e-9)
    assert torch.equal(masks[0].mask, masks[1].mask) and 0 < masks[0].mask.mean() < 1


def test_a_trajectory_of_several_clips_or_of_another_schedule_is_refused() -> None:
    pair = Trajectory(trajectory().latents.expand(-1, 2, -1, -1, -1, -1))
    for unfit, message in ((pair, "one clip"), (trajectory(5), "5 steps, the schedule 4")):
        with pytest.raises(MaskError, match=message):
            find_mask(Disagreeing(moving()), made_schedule(STEPS), unfit, made_condition(), made_condition(1.0))


# ---- from maps to a mask ---------------------------------------------------------------------------------------------


def mask_of(maps: Tensor, **options: Any) -> EditMask:
    """The mask of averaged maps `f h w`."""
    return make_mask(Disagreement(maps[None]), MaskOptions(**options))


def test_otsu_maximises_the_variance_between_classes() -> None:
    low, high = 0.25 + 0.08 * draw(900), 0.7 + 0.05 * draw(300, seed=1)
    values = torch.cat([low, high]).clamp(0, 1)

    def between(threshold: float) -> float:
        above = values > threshold
        share = above.double().mean()
        return float(share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2)

    best = max((edge / 256 for edge in range(40, 220)), key=between)
    assert abs(masking.otsu(values) - best) <= 2 / 256
    assert abs(masking.otsu(torch.tensor([0.1, 0.1, 0.1, 0.9])) - 0.5) < 0.01  # in the middle between two spikes


def test_fixed_and_quantile_thresholds() -> None:
    disagreement = torch.ones(1, 10, 10)
    disagreement[0, 0, 0], disagreement[0, 0, 1] = 100.0, 4.0
    soft, binary = masking.binarise(disagreement, MaskOptions(threshold="fixed", smooth=0.0))
    assert soft[0, 0, 0] == 1 and binary.sum() == 2  # clamped at three times the mean
    assert abs(float(soft[0, 0, 1]) - 4 / (3 * float(disagreement.mean()))) < 1e-6
    options = MaskOptions(threshold="quantile", quantile=0.9, smooth=0.0)
    assert masking.binarise(torch.arange(1.0, 101).view(1, 10, 10), options)[1].sum() == 10


def test_smoothing_stays_in_its_frame_and_keeps_constants() -> None:
    constant, spike = torch.ones(3, 5, 5), torch.zeros(3, 5, 5)
    torch.testing.assert_close(masking.smooth(constant, 3), constant)
    spike[1, 2, 2] = 9
    flat = masking.smooth(spike, 3)
    assert flat[1, 1:4, 1:4].eq(1).all() and not flat[0].any() and not flat[2].any()
    grown = masking.dilate((spike > 0).float(), 1)
    assert grown.sum() == 9 and grown[1, 1:4, 1:4].all()


def test_sizes_are_shares_of_the_grid() -> None:
    """One map on a grid of 24 and one of 96 cells a side gives the same mask, up to the rounding of its sides."""
    coarse = 0.1 * torch.rand(FRAMES, 24, 24, generator=torch.Generator().manual_seed(0))
    coarse[:, 6:17, 5:12] += 1
    coarse[:, 20, 20] += 1  # a speck
    fine = coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)
    small, large = mask_of(coarse), mask_of(fine)
    for name in ("binary", "mask"):
        part = getattr(small, name).repeat_interleave(4, -1).repeat_interleave(4, -2) > 0
        other = getattr(large, name) > 0
        assert (part & other).sum() / (part | other).sum() > 0.85, name
        assert not part[..., 76:, 76:].any() and not other[..., 76:, 76:].any()
    grown = [float((mask.mask.sum() / mask.binary.sum()).sqrt()) for mask in (small, large)]
    assert abs(grown[0] - grown[1]) < 0.05 and grown[0] > 1.1


def test_specks_go_and_a_pair_of_objects_stays() -> None:
    maps = torch.zeros(FRAMES, 24, 24)
    maps[:, 4:10, 2:8], maps[:, 5:10, 14:19] = 1, 1  # a pair of shoes
    pair = maps.clone()
    maps[:, 20, 20], maps[1, 1, 22] = 1, 1
    mask = mask_of(maps, smooth=0.0, dilate=0.0)
    assert torch.equal(mask.binary[0, :, 0], pair) and mask.notes == ()
    assert torch.equal(mask_of(maps, smooth=0.0, dilate=0.0, min_piece=0.0).binary[0, :, 0], maps)


@pytest.mark.parametrize("kind", ["normal", "exponential"])
@pytest.mark.parametrize("seed", range(3))
def test_an_unclear_map_is_noted(kind: str, seed: int) -> None:
    noise = draw(8, 24, 24, seed=seed, dtype=torch.float32)
    maps = noise.square().mul(0.5) if kind == "exponential" else 1 + 0.2 * noise
    assert any("uncertain" in note and "video.mask" in note for note in mask_of(maps).notes)


def test_a_clear_object_has_no_note_and_a_large_or_broken_mask_has_one() -> None:
    def noisy(maps: Tensor) -> tuple[str, ...]:
        return mask_of(maps + 0.1 * draw(*maps.shape, dtype=torch.float32).abs()).notes

    clear, large, pieces = torch.zeros(3, FRAMES, 24, 24)
    clear[:, 8:16, 6:14], large[:, 4:20, 2:20] = 1, 1
    for y, x in itertools.product((1, 9, 17), repeat=2):
        pieces[:, y : y + 4, x : x + 4] = 1
    assert noisy(clear) == ()
    assert len(noisy(large)) == 1 and "of the frame" in noisy(large)[0]
    assert len(noisy(pieces)) == 1 and "9 separate pieces" in noisy(pieces)[0]


# ---- what the edit left unchanged ------------------------------------------------------------------------------------

CELL = 8


def dropped(changed: Tensor, by: float = 0.2, least: float = 0.1) -> Tensor:
    """What remains of a full mask, `h w`, after an edit that changed pixels `H W` by the share ``by`` of the range."""
    source = torch.zeros(1, 3, *changed.shape)
    edited = source.clone()
    edited[:, 1] += 2 * by * changed
    cells = torch.ones(1, 1, 1, *(side // CELL for side in changed.shape))
    return drop_unchanged(cells, edited, source, least)[0, 0, 0]


def touched(changed: Tensor) -> Tensor:
    return (avg_pool2d(changed[None], CELL)[0] > 0).float()


@pytest.mark.parametrize("width", range(1, 11))
@pytest.mark.parametrize("upright", [True, False])
def test_thin_structures_remain(width: int, upright: bool) -> None:
    """Legs, poles, skis: bars at every offset to the cells, 16 px long and more."""
    for offset, length in itertools.product(range(8), (16, 23, 40)):
        changed = torch.zeros(96, 96)
        changed[17 : 17 + length, 32 + offset : 32 + offset + width] = 1
        changed = changed if upright else changed.T
        assert torch.equal(dropped(changed), touched(changed)), (offset, length)


@pytest.mark.parametrize("width, height", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_isolated_specks_are_dropped(width: int, height: int) -> None:
    for y, x in itertools.product(range(8), repeat=2):
        changed = torch.zeros(96, 96)
        changed[24 + y : 24 + y + height, 24 + x : 24 + x + width] = 1
        assert not dropped(changed).any()


def test_unchanged_regions_are_dropped_and_the_mask_never_grows() -> None:
    changed = torch.zeros(96, 96)
    changed[16:48, 24:64] = 1
    assert torch.equal(dropped(changed), touched(changed))
    assert not dropped(changed, by=0.09).any() and dropped(changed, by=0.0, least=0.0).all()
    mask = torch.zeros(1, 1, 1, 12, 12)
    mask[..., 3:5, 3:5] = 1
    frames = torch.zeros(1, 3, 96, 96)
    assert torch.equal(drop_unchanged(mask, frames + 1, frames, 0.1), mask)
