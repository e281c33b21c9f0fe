"""Scales of words and picture, and a picture that is confined to the mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from tave.backbone import Backbone, load_ip_adapter
from tave.conditions import Condition, stack
from tave.denoiser import Denoiser, Prediction, Tap
from tave.guidance import Confined, SeparateGuidance
from tave.inflate import inflate

FRAMES, T = 3, 500


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def clip(tiny: Backbone, unet: UNet2DConditionModel) -> Denoiser:
    return Denoiser(inflate(unet, FRAMES), tiny.scheduler)


@pytest.fixture
def other(condition: Condition) -> Tensor:
    """Another picture's vector."""
    return condition.image.flip(-1) + 0.5


def test_equal_scales_are_the_plain_guidance(clip: Denoiser, condition: Condition, latents: Tensor):
    for scale in (1.0, 3.0):
        plain = clip(latents, T, condition, scale).noise
        assert torch.allclose(SeparateGuidance(clip, scale)(latents, T, condition, scale).noise, plain, atol=1e-4)


def test_scales_of_zero_leave_out_what_they_are_of(clip: Denoiser, condition: Condition, latents: Tensor):
    null = clip(latents, T, condition.null).noise
    picture = clip(latents, T, replace(condition, text=condition.null_text)).noise
    both = clip(latents, T, condition).noise
    assert torch.allclose(SeparateGuidance(clip, 0.0)(latents, T, condition, 0.0).noise, null, atol=1e-4)
    assert torch.allclose(SeparateGuidance(clip, 1.0)(latents, T, condition, 0.0).noise, picture, atol=1e-4)
    assert not torch.allclose(picture, both, atol=1e-3) and not torch.allclose(picture, null, atol=1e-3)
    expected = null + 2.0 * (picture - null) + 5.0 * (both - picture)
    assert torch.allclose(SeparateGuidance(clip, 2.0)(latents, T, condition, 5.0).noise, expected, atol=1e-4)


def test_the_prediction_type_does_not_matter():
    """The weights sum to one, so noise may be combined where the pipeline combines the network's own output."""

    class Fake:
        def __call__(self, latents, t, condition, guidance_scale=1.0, tap=None):  # type: ignore[no-untyped-def]
            told = condition.text.sum((1, 2)) + 10 * condition.image.sum((1, 2))
            return Prediction(told[:, None, None, None, None] + latents)

    condition = Condition(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    latents = torch.full((1, 1, 1, 1, 1), 7.0)
    assert float(SeparateGuidance(Fake(), 2.0)(latents, T, condition, 3.0).noise) == 7 + 2 * 10 + 3 * 1


def everywhere(value: float) -> Tensor:
    return torch.full((1, FRAMES, 1, 8, 8), value)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_mask_of_ones_is_the_plain_target(clip: Denoiser, condition: Condition, other: Tensor, latents: Tensor, scale: float):
    plain = clip(latents, T, condition, scale).noise
    assert torch.allclose(Confined(clip, everywhere(1), other)(latents, T, condition, scale).noise, plain, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_mask_of_zeros_is_the_other_picture(
    clip: Denoiser, condition: Condition, other: Tensor, latents: Tensor, scale: float
):
    elsewhere = clip(latents, T, replace(condition, image=other), scale).noise
    assert torch.allclose(Confined(clip, everywhere(0), other)(latents, T, condition, scale).noise, elsewhere, atol=1e-4)
    assert not torch.allclose(elsewhere, clip(latents, T, condition, scale).noise, atol=1e-3)


def test_tokens_of_a_picture_are_confined_as_well(saved_ip_adapter: tuple[Path, Path], condition: Condition, latents: Tensor):
    """IP-Adapter's picture speaks in cross-attention, also after the last residual block."""
    backbone = load_ip_adapter(*saved_ip_adapter)
    denoiser = Denoiser(inflate(backbone.unet, FRAMES), backbone.scheduler)
    told, other = (torch.randn(1, 1, backbone.image_width, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    here = replace(condition, image=told)
    for mask, image in ((1.0, told), (0.0, other)):
        plain = denoiser(latents, T, replace(condition, image=image), 3.0).noise
        assert torch.allclose(Confined(denoiser, everywhere(mask), other)(latents, T, here, 3.0).noise, plain, atol=1e-4)
    assert not torch.allclose(
        denoiser(latents, T, replace(condition, image=other), 3.0).noise, denoiser(latents, T, here, 3.0).noise
    )


def test_equal_pictures_make_the_mask_meaningless(clip: Denoiser, condition: Condition, latents: Tensor):
    mask = (torch.arange(8) < 4).float().expand(1, FRAMES, 1, 8, 8)
    confined = Confined(clip, mask, condition.image)(latents, T, condition, 3.0).noise
    assert torch.allclose(confined, clip(latents, T, condition, 3.0).noise, atol=1e-4)


def test_the_target_is_told_more_of_inside_than_outside(clip: Denoiser, condition: Condition, other: Tensor, latents: Tensor):
    """Where the mask is, the answer is nearer to the target's than where it is not."""
    mask = (torch.arange(8) < 4).float().expand(1, FRAMES, 1, 8, 8)
    target, source = (clip(latents, T, replace(condition, image=image)).noise for image in (condition.image, other))
    mixed = Confined(clip, mask, other)(latents, T, condition).noise
    share = (mixed - source).abs() / ((mixed - source).abs() + (mixed - target).abs() + 1e-6)
    inside, outside = (float(share[mask.expand_as(share) == value].mean()) for value in (1, 0))
    assert inside > outside + 0.1


def test_a_branch_without_a_picture_has_none_outside_either(
    clip: Denoiser, condition: Condition, other: Tensor, latents: Tensor
):
    confined = Confined(clip, everywhere(0.5), other)
    assert torch.allclose(confined(latents, T, condition.null).noise, clip(latents, T, condition.null).noise, atol=1e-4)


def test_both_go_together_and_answer_taps(clip: Denoiser, condition: Condition, other: Tensor, latents: Tensor):
    ones = SeparateGuidance(Confined(clip, everywhere(1), other), 3.0)
    plain = clip(latents, T, condition, 3.0, Tap(-2))
    found = ones(latents, T, condition, 3.0, Tap(-2))
    assert torch.allclose(found.noise, plain.noise, atol=1e-4)
    assert found.features is not None and plain.features is not None
    assert torch.allclose(found.features, plain.features, atol=1e-4)
    seen: list[tuple[int, int]] = []

    def rewrite(conditional: Tensor, whole: Tensor) -> Tensor:
        assert plain.features is not None and torch.allclose(conditional, plain.features, atol=1e-4)
        seen.append((len(conditional), len(whole)))
        return whole

    ones(latents, T, condition, 3.0, Tap(-2, rewrite))
    assert seen == [(1, 6)]
    assert not any(module._forward_hooks for module in clip.unet.modules())


def test_two_clips_do_not_mix(clip: Denoiser, condition: Condition, other: Tensor, latents: Tensor):
    confined = SeparateGuidance(Confined(clip, everywhere(0.25), other), 2.0)
    both = stack(condition, Condition(condition.null_text, condition.image + 1, condition.null_text))
    noise = confined(torch.cat([latents, latents.flip(1)]), T, both, 3.0).noise
    assert torch.allclose(noise[:1], confined(latents, T, condition, 3.0).noise, atol=1e-4)
