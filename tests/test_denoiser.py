"""Guidance, folding of frames and taps, against calls of the library's UNet."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from fakes import draw
from torch import Tensor

from tave.backbone import Backbone
from tave.denoiser import Denoiser, DenoiserError, Tap
from tave.encoders import Condition, stack
from tave.inflate import inflate
from tave.schedule import to_noise
from tave.windows import Window

FRAMES, T = 3, 500
LATENTS = draw(1, FRAMES, 4, 8, 8, seed=3, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def plain(tiny: Backbone) -> Denoiser:
    """The image network: each frame alone."""
    return Denoiser(tiny.unet, tiny.scheduler)


@pytest.fixture
def clip(tiny: Backbone, unet: UNet2DConditionModel) -> Denoiser:
    return Denoiser(inflate(unet, FRAMES), tiny.scheduler)


def stock(unet: UNet2DConditionModel, frame: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """The library's own call, one frame `1 c h w` at a time."""
    return unet(frame, T, encoder_hidden_states=text, class_labels=image).sample


def test_one_frame_and_guidance_equal_the_pipelines_formula(tiny: Backbone, plain: Denoiser, condition: Condition):
    v = stock(tiny.unet, LATENTS[:, 0], condition.text, condition.image[:, 0])
    null = stock(tiny.unet, LATENTS[:, 0], condition.null_text, torch.zeros_like(condition.image[:, 0]))
    for scale, output in ((1.0, v), (7.5, null + 7.5 * (v - null))):
        theirs = to_noise(output, LATENTS[:, 0], plain.alphas_cumprod[T], "v_prediction")
        assert torch.allclose(plain(LATENTS[:, :1], T, condition, scale).noise[:, 0], theirs, atol=1e-5)


def test_each_frame_gets_its_own_picture(tiny: Backbone, plain: Denoiser, condition: Condition):
    pictures = torch.cat([condition.image * k for k in range(FRAMES)], dim=1)
    output = plain.output(LATENTS, torch.tensor([T]), Condition(condition.text, pictures, condition.null_text))
    for i in range(FRAMES):
        assert torch.allclose(output[:, i], stock(tiny.unet, LATENTS[:, i], condition.text, pictures[:, i]), atol=1e-5)


def test_branches_do_not_mix_and_one_condition_serves_all(clip: Denoiser, condition: Condition):
    other = Condition(condition.null_text, condition.image + 1, condition.null_text)
    alone = clip(LATENTS, T, condition, 3.0).noise
    noise = clip(torch.cat([LATENTS, LATENTS.flip(1)]), T, stack(condition, other), 3.0).noise
    assert torch.allclose(noise[:1], alone, atol=1e-4)
    assert torch.allclose(noise[1:], clip(LATENTS.flip(1), T, other, 3.0).noise, atol=1e-4)
    shared = clip(LATENTS.repeat(2, 1, 1, 1, 1), T, condition, 3.0).noise
    assert torch.allclose(shared, alone.expand_as(shared), atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_tap_reads_the_conditional_branch_and_changes_nothing(clip: Denoiser, condition: Condition, scale: float):
    tapped, untapped = clip(LATENTS, T, condition, scale, Tap(-2)), clip(LATENTS, T, condition, scale)
    assert torch.equal(tapped.noise, untapped.noise) and untapped.features is None
    assert tapped.features is not None and tapped.features.shape == (1, FRAMES, 32, 8, 8)
    alone = clip(LATENTS, T, condition, 1.0, Tap(-2)).features
    assert alone is not None and torch.allclose(tapped.features, alone, atol=1e-4)
    assert not any(block._forward_hooks for block in clip.unet.up_blocks)


def test_a_rewrite_continues_in_the_same_forward(clip: Denoiser, condition: Condition):
    calls = []

    def rewrite(conditional: Tensor, whole: Tensor, window: Window) -> Tensor:
        calls.append((conditional, whole))
        return torch.zeros_like(whole)

    prediction = clip(LATENTS, T, condition, 3.0, Tap(-1, rewrite=rewrite))
    ((conditional, whole),) = calls
    assert whole.shape == (2, FRAMES, 16, 8, 8) and torch.equal(conditional, whole[1:])
    assert prediction.features is not None and torch.equal(prediction.features, conditional)  # before the rewrite
    norm = cast(torch.nn.Module, clip.unet.conv_norm_out)
    output = clip.unet.conv_out(torch.nn.functional.silu(norm(torch.zeros(FRAMES, 16, 8, 8))))
    expected = to_noise(output[None], LATENTS, clip.alphas_cumprod[T], "v_prediction")
    assert torch.allclose(prediction.noise, expected, atol=1e-5)
    with pytest.raises(DenoiserError, match="keep the shape"):
        clip(LATENTS, T, condition, 1.0, Tap(-1, rewrite=lambda conditional, whole, window: whole[:, :1]))
    assert not any(block._forward_hooks for block in clip.unet.up_blocks)


def test_a_compiled_unet_returns_the_tapped_features(tiny: Backbone, clip: Denoiser, condition: Condition):
    """Its graph does not see the hook, so a tapped call runs eagerly."""
    compiled = Denoiser(torch.compile(clip.unet, backend="eager"), tiny.scheduler)  # type: ignore[arg-type]
    ours, theirs = (d(LATENTS, T, condition, 1.0, Tap(-2)).features for d in (compiled, clip))
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_noise_has_the_latents_dtype_and_alphas_stay_exact(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
):
    """A half-precision network under single-precision latents; a cast of the module leaves the alphas alone."""
    exact = Denoiser(tiny.unet, tiny.scheduler)(LATENTS, T, condition).noise
    denoiser = Denoiser(unet, tiny.scheduler).to(torch.bfloat16)
    noise = denoiser(LATENTS, T, condition).noise
    assert denoiser.alphas_cumprod.dtype == torch.float64 and noise.dtype == torch.float32
    assert 0 < float((noise - exact).norm() / exact.norm()) < 0.05
    assert denoiser.state_dict().keys() == {f"unet.{name}" for name in unet.state_dict()}


def test_bad_input_is_named(clip: Denoiser, condition: Condition):
    with pytest.raises(DenoiserError, match="b f c h w"):
        clip(LATENTS[0], T, condition)
    with pytest.raises(DenoiserError, match="hold 2 frames but the UNet was inflated for 3: inflate it for 2"):
        clip(LATENTS[:, :2], T, condition)
    with pytest.raises(DenoiserError, match="2 conditions for 1 latents"):
        clip(LATENTS, T, stack(condition, condition))
    with pytest.raises(DenoiserError, match="2 pictures for 3 frames"):
        clip(LATENTS, T, Condition(condition.text, condition.image.repeat(1, 2, 1), condition.null_text))
    with pytest.raises(DenoiserError, match=r"tap.block=3 is out of range: the UNet has 3 up blocks"):
        clip(LATENTS, T, condition, 1.0, Tap(3))
