"""The edit mask: it finds where two conditions disagree, and nothing where they don't."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from tave.backbone import tiny_backbone
from tave.conditions import Condition
from tave.denoiser import Denoiser, Prediction, Tap
from tave.inversion import Trajectory
from tave.masking import (
    EditMask,
    MaskError,
    MaskOptions,
    binarise,
    dilate,
    find_mask,
    otsu,
    part_of,
    settle,
    smooth,
    weigh,
)
from tave.options import OptionError
from tave.schedule import Schedule

FRAMES, CHANNELS, SIDE, STEPS = 3, 4, 12, 4


def schedule(steps: int = STEPS) -> Schedule:
    return Schedule([-1, *range(100, 100 * steps + 1, 100)], torch.linspace(0.99, 0.05, steps + 1, dtype=torch.float64))


def trajectory(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> Trajectory:
    generator = torch.Generator().manual_seed(0)
    return Trajectory(torch.randn(steps + 1, 1, FRAMES, CHANNELS, SIDE, SIDE, generator=generator, dtype=dtype))


def condition(value: float, dtype: torch.dtype = torch.float32) -> Condition:
    text = torch.zeros(1, 2, 3, dtype=dtype)
    return Condition(text, torch.full((1, 1, 2), value, dtype=dtype), text)


def regions() -> Tensor:
    """`1 f 1 h w`: a square that moves by two cells a frame."""
    mask = torch.zeros(1, FRAMES, 1, SIDE, SIDE)
    for frame in range(FRAMES):
        mask[0, frame, 0, 4:8, 2 * frame : 2 * frame + 4] = 1
    return mask


class Disagreeing:
    """Noise that follows the latents, and the condition inside a region; its rows differ by rounding."""

    def __init__(self, region: Tensor, size: Callable[[int], float] = lambda t: 1.0) -> None:
        self.region, self.size, self.calls = region, size, 0

    def __call__(
        self,
        latents: Tensor,
        t: int,
        condition: Condition,
        guidance_scale: float = 1.0,
        tap: Tap | None = None,
    ) -> Prediction:
        self.calls += 1
        value = condition.image.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        rounding = 1e-7 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(t))
        return Prediction(0.1 * latents + 0.05 + self.size(t) * value * self.region + rounding.to(latents), None)


def found(options: MaskOptions, predictor: Disagreeing | None = None, target: float = 1.0, **more: Any) -> EditMask:
    predictor = predictor or Disagreeing(regions())
    return find_mask(predictor, schedule(), trajectory(), condition(0.0), condition(target), options, **more)


@pytest.mark.parametrize(
    "branches, weight, threshold, union",
    list(
        itertools.product(
            ("shared", "separate"),
            ("uniform", "per_step"),
            ("otsu", "fixed", "quantile"),
            ("none", "unconditional", "disputed"),
        )
    ),
)
def test_equal_conditions_give_an_empty_mask(branches: str, weight: str, threshold: str, union: str) -> None:
    options = MaskOptions(branches=branches, weight=weight, threshold=threshold, union=union)
    source = condition(0.5)
    mask = find_mask(Disagreeing(regions()), schedule(), trajectory(), source, source, options)
    assert not mask.soft.any() and not mask.binary.any() and not mask.mask.any() and not mask.per_step.any()


@pytest.mark.parametrize("branches", ["shared", "separate"])
@pytest.mark.parametrize("threshold", ["otsu", "fixed", "quantile"])
def test_the_region_of_disagreement_is_recovered_in_every_frame(branches: str, threshold: str) -> None:
    share = 1 - float(regions().mean())
    mask = found(MaskOptions(branches=branches, threshold=threshold, quantile=share, smooth=1, dilate=0))
    assert torch.equal(mask.binary, regions()) and torch.equal(mask.mask, mask.binary)
    assert mask.soft.shape == (1, FRAMES, 1, SIDE, SIDE) and mask.per_step.shape == (
        STEPS,
        FRAMES,
        SIDE,
        SIDE,
    )
    assert mask.soft.min() >= 0 and mask.soft.max() == 1


def test_dilation_comes_after_the_binary_mask() -> None:
    mask = found(MaskOptions(smooth=1, dilate=1))
    assert torch.equal(mask.binary, regions())
    assert torch.equal(mask.mask[0, :, 0], dilate(mask.binary[0, :, 0], 1)) and mask.mask.sum() > mask.binary.sum()


def test_shared_and_separate_branches_agree_at_the_first_step_and_part_later() -> None:
    shared, separate = (found(MaskOptions(branches=b, weight="uniform")).per_step for b in ("shared", "separate"))
    assert torch.equal(shared[0], separate[0])
    assert not torch.allclose(shared[1:], separate[1:])


def test_per_step_weight_lets_every_step_speak_as_loudly_and_silences_rounding() -> None:
    def loudness(t: int) -> float:
        return {400: 1e-6, 300: 10.0, 200: 1.0, 100: 0.1}[t]

    loud = found(MaskOptions(weight="per_step"), Disagreeing(regions(), loudness)).per_step.mean(dim=(1, 2, 3))
    torch.testing.assert_close(loud, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    plain = found(MaskOptions(weight="uniform"), Disagreeing(regions(), loudness)).per_step.mean(dim=(1, 2, 3))
    assert plain[0] == 0 and plain[1] > 9 * plain[2] > 80 * plain[3] > 0


def test_weigh_silences_by_the_size_of_the_noise() -> None:
    maps = [torch.full((1, 2, 2), value) for value in (0.9e-3, 1.1e-3)]
    assert weigh(maps, torch.ones(2), "per_step").mean(dim=(1, 2, 3)).tolist() == [0.0, 1.0]


def test_only_the_chosen_part_of_the_schedule_is_read() -> None:
    seen: list[tuple[int, int]] = []
    predictor = Disagreeing(regions())
    late = found(MaskOptions(steps=[0.5, 1.0]), predictor, on_step=lambda *at: seen.append(at))
    assert predictor.calls == 2 and late.per_step.shape[0] == 2 and seen == [(1, 2), (2, 2)]
    # the separate branches must walk from the noisy end, and needn't walk past what is read
    predictor = Disagreeing(regions())
    early = found(MaskOptions(steps=[0.25, 0.5], branches="separate", weight="uniform"), predictor)
    whole = found(MaskOptions(branches="separate", weight="uniform"))
    assert predictor.calls == 2
    assert torch.equal(early.per_step, whole.per_step[1:2])
    with pytest.raises(OptionError, match="widen"):
        found(MaskOptions(steps=[0.0, 0.01]))


def test_parts_that_partition_the_schedule_partition_its_steps() -> None:
    assert part_of([0, 1], 5) == [5, 4, 3, 2, 1]
    for total, cut in itertools.product((1, 4, 5, 25), (0.1, 0.3, 0.5, 0.7)):
        assert part_of([0, cut], total) + part_of([cut, 1], total) == part_of([0, 1], total)


class Partial(Disagreeing):
    """Source differs from null on ``old``, from target on ``region``."""

    def __init__(self, region: Tensor, old: Tensor) -> None:
        super().__init__(region)
        self.old = old

    def __call__(
        self,
        latents: Tensor,
        t: int,
        condition: Condition,
        guidance_scale: float = 1.0,
        tap: Tap | None = None,
    ) -> Prediction:
        known = (condition.image.abs().sum(dim=(1, 2)) > 0).to(latents).view(-1, 1, 1, 1, 1)
        return Prediction(super().__call__(latents, t, condition).noise + known * self.old, None)


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_union_with_null_covers_the_old_object_that_a_smaller_target_leaves_behind(branches: str) -> None:
    old = torch.zeros(1, FRAMES, 1, SIDE, SIDE)
    old[..., 2:10, 1:11] = 1
    small = regions() * old
    options = MaskOptions(union="unconditional", smooth=1, dilate=0, branches=branches)
    predictor = Partial(small, old)
    mask = find_mask(predictor, schedule(), trajectory(), condition(0.5), condition(1.5), options)
    assert torch.equal(mask.binary, torch.maximum(old, small)) and mask.evidence is not None
    assert predictor.calls == STEPS
    alone = MaskOptions(smooth=1, dilate=0, branches=branches)
    mask = find_mask(predictor, schedule(), trajectory(), condition(0.5), condition(1.5), alone)
    assert torch.equal(mask.binary, small) and mask.evidence is None


def test_disputed_evidence_leaves_out_the_scenery_that_both_branches_are_told_of() -> None:
    """The network tells trees from nothing as well as it tells the old object; but the target has the same trees."""
    old, trees = torch.zeros(1, FRAMES, 1, SIDE, SIDE), torch.zeros(1, FRAMES, 1, SIDE, SIDE)
    old[..., 6:10, 4:9], trees[..., 0:3, :] = 1, 1
    differ = torch.maximum(old * 0.2, regions() * old)  # the old object's rim hardly differs from the new one
    predictor = Partial(differ, torch.maximum(old, trees))
    unions = ("none", "unconditional", "disputed")
    options = [MaskOptions(union=union, smooth=1, dilate=0) for union in unions]
    masks = [find_mask(predictor, schedule(), trajectory(), condition(0.5), condition(1.5), each).binary for each in options]
    none, unconditional, disputed = masks
    assert (unconditional * trees).any() and not (disputed * trees).any()
    assert torch.equal(disputed, old) and not torch.equal(none, old)


def test_union_with_evidence_asks_it_once_a_step_at_the_source_latents() -> None:
    old = torch.zeros(1, FRAMES, 1, SIDE, SIDE)
    old[..., 1:4, 1:4] = 0.3
    asked: list[int] = []

    def evidence(latents: Tensor, t: int) -> Tensor:
        assert torch.equal(latents, trajectory().level(t // 100))
        asked.append(t)
        return old

    options = MaskOptions(union="cross_attention", smooth=1, dilate=0)
    mask = found(options, evidence=evidence)
    assert asked == [400, 300, 200, 100]
    assert torch.equal(mask.binary, torch.maximum((old > 0).float(), regions()))
    assert not found(options, target=0.0, evidence=evidence).mask.any()
    with pytest.raises(MaskError, match="evidence"):
        found(options)
    nothing = found(options, evidence=lambda latents, t: torch.zeros_like(old))
    assert torch.equal(nothing.binary, regions())


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_a_real_networks_rounding_is_no_edit(branches: str) -> None:
    backbone = tiny_backbone()
    denoiser, plan = (
        Denoiser(backbone.unet, backbone.scheduler),
        Schedule.from_scheduler(backbone.scheduler, STEPS),
    )
    config, generator = backbone.unet.config, torch.Generator().manual_seed(0)
    text = torch.randn(1, 4, config["cross_attention_dim"], generator=generator)
    image = torch.randn(1, 1, config["projection_class_embeddings_input_dim"], generator=generator)
    source = Condition(text, image, torch.zeros_like(text))
    other = Condition(text, -image, torch.zeros_like(text))
    options = MaskOptions(branches=branches, weight="uniform")
    assert not find_mask(denoiser, plan, trajectory(), source, source, options).soft.any()
    # one prompt with two references is an edit all the same
    assert find_mask(denoiser, plan, trajectory(), source, other, options).mask.any()


class Parametrised(nn.Module):
    """One denoiser, speaking v or epsilon: its clean estimate depends on latents and condition."""

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
    masks = []
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
        denoiser = Denoiser(cast(UNet2DConditionModel, Parametrised(scheduler)), scheduler)
        ends = condition(0.0, torch.float64), condition(1.0, torch.float64)
        plan = Schedule.from_scheduler(scheduler, STEPS)
        masks.append(find_mask(denoiser, plan, trajectory(dtype=torch.float64), *ends, MaskOptions(branches=branches)))
    torch.testing.assert_close(masks[0].per_step, masks[1].per_step, rtol=1e-9, atol=1e-9)
    assert torch.equal(masks[0].mask, masks[1].mask) and 0 < masks[0].mask.mean() < 1


def test_otsu_maximises_the_variance_between_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    low, high = (
        0.25 + 0.08 * torch.randn(900, generator=generator),
        0.7 + 0.05 * torch.randn(300, generator=generator),
    )
    values = torch.cat([low, high]).clamp(0, 1)

    def between(threshold: float) -> float:
        above = values > threshold
        share = above.double().mean()
        return float(share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2)

    best = max((edge / 256 for edge in range(40, 220)), key=between)
    assert abs(otsu(values) - best) <= 2 / 256


def test_otsu_splits_two_spikes_in_the_middle() -> None:
    assert abs(otsu(torch.tensor([0.1, 0.1, 0.1, 0.9])) - 0.5) < 0.01


def test_the_fixed_threshold_clamps_at_three_times_the_mean() -> None:
    disagreement = torch.ones(1, 10, 10)
    disagreement[0, 0, 0], disagreement[0, 0, 1] = 100.0, 4.0
    soft, binary = binarise(disagreement, MaskOptions(threshold="fixed", smooth=1))
    mean = float(disagreement.mean())
    assert soft[0, 0, 0] == 1 and abs(float(soft[0, 0, 1]) - 4 / (3 * mean)) < 1e-6
    assert binary.sum() == 2


def test_quantile_keeps_the_asked_share() -> None:
    options = MaskOptions(threshold="quantile", quantile=0.9, smooth=1)
    soft, binary = binarise(torch.arange(1.0, 101).view(1, 10, 10), options)
    assert binary.sum() == 10 and soft.max() == 1


def test_smoothing_in_space_stays_in_its_frame_and_keeps_constants() -> None:
    constant = torch.ones(3, 5, 5)
    torch.testing.assert_close(smooth(constant, 3, 3), constant)
    spike = torch.zeros(3, 5, 5)
    spike[1, 2, 2] = 9
    flat = smooth(spike, 3, 1)
    assert flat[1, 1:4, 1:4].eq(1).all() and not flat[0].any() and not flat[2].any()
    long = smooth(spike, 1, 3)
    assert long[:, 2, 2].tolist() == [4.5, 3.0, 4.5] and long.sum() == 12


@pytest.mark.parametrize(
    "wrong",
    [
        {"branches": "both"},
        {"weight": "step"},
        {"threshold": "mean"},
        {"union": "all"},
        {"smooth": 2},
        {"smooth_time": 0},
        {"steps": [0.5, 0.5]},
        {"steps": [0.0]},
        {"fixed": 2.0},
        {"dilate": -1},
    ],
)
def test_wrong_options_fail_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"mask.{next(iter(wrong))}"):
        MaskOptions(**wrong)


def test_a_batch_of_clips_is_refused() -> None:
    pair = Trajectory(trajectory().latents.expand(-1, 2, -1, -1, -1, -1))
    with pytest.raises(MaskError, match="one clip"):
        find_mask(Disagreeing(regions()), schedule(), pair, condition(0), condition(1))


def test_another_schedules_trajectory_is_refused() -> None:
    with pytest.raises(MaskError, match="5 steps, the schedule 4"):
        find_mask(Disagreeing(regions()), schedule(), trajectory(5), condition(0), condition(1))


def pictures(changed: Tensor, by: float) -> tuple[Tensor, Tensor]:
    """A source `f 3 H W` and an edit that differs by ``by`` of the range in one channel, where ``changed`` `f H W` is."""
    source = torch.zeros(FRAMES, 3, 4 * SIDE, 4 * SIDE)
    edited = source.clone()
    edited[:, 1] += 2 * by * changed
    return edited, source


def in_pixels(cells: Tensor) -> Tensor:
    return cells[0, :, 0].repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_settling_gives_back_what_sampling_did_not_change() -> None:
    painted = regions()
    generous = dilate(painted[0, :, 0], 2)[None, :, None]
    left = settle(generous, *pictures(in_pixels(painted), 0.2), least=0.1)
    core = -dilate(-painted[0, :, 0], 1)[None, :, None]  # corners of a square have few neighbours
    assert torch.all(left <= painted) and torch.all(left >= core) and left.sum() > core.sum()


def test_settling_never_leaves_the_mask_and_ignores_small_changes() -> None:
    everywhere = torch.ones(FRAMES, 4 * SIDE, 4 * SIDE)
    assert torch.equal(settle(regions(), *pictures(everywhere, 0.2), least=0.1), regions())
    assert not settle(regions(), *pictures(everywhere, 0.09), least=0.1).any()
    assert torch.equal(settle(regions(), *pictures(everywhere, 0.0), least=0.0), regions())


def test_a_lone_changed_cell_is_noise() -> None:
    lone = torch.zeros(1, FRAMES, 1, SIDE, SIDE)
    lone[0, :, 0, 5, 5] = 1
    assert not settle(torch.ones_like(lone), *pictures(in_pixels(lone), 0.5), least=0.1).any()
