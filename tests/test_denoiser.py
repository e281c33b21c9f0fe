from __future__ import annotations

from typing import cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from tave.backbone import Backbone
from tave.conditions import Condition, stack
from tave.denoiser import Denoiser, DenoiserError, NoisePredictor, Tap
from tave.inflate import inflate
from tave.schedule import to_noise

FRAMES, T = 3, 500


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))


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


def test_one_frame_equals_the_stock_unet(tiny: Backbone, plain: Denoiser, condition: Condition, latents: Tensor):
    v = stock(tiny.unet, latents[:, 0], condition.text, condition.image[:, 0])
    theirs = to_noise(v, latents[:, 0], plain.alphas_cumprod[T], "v_prediction")
    assert torch.equal(plain(latents[:, :1], T, condition).noise[:, 0], theirs)


def test_guidance_equals_the_pipelines_formula(tiny: Backbone, plain: Denoiser, condition: Condition, latents: Tensor):
    v = stock(tiny.unet, latents[:, 0], condition.text, condition.image[:, 0])
    null = stock(tiny.unet, latents[:, 0], condition.null_text, torch.zeros_like(condition.image[:, 0]))
    theirs = to_noise(null + 7.5 * (v - null), latents[:, 0], plain.alphas_cumprod[T], "v_prediction")
    assert torch.allclose(plain(latents[:, :1], T, condition, 7.5).noise[:, 0], theirs, atol=1e-5)


def test_each_frame_gets_its_own_picture(tiny: Backbone, plain: Denoiser, condition: Condition, latents: Tensor):
    pictures = torch.cat([condition.image * k for k in range(FRAMES)], dim=1)
    output = plain.output(latents, torch.tensor([T]), Condition(condition.text, pictures, condition.null_text))
    for i in range(FRAMES):
        assert torch.allclose(output[:, i], stock(tiny.unet, latents[:, i], condition.text, pictures[:, i]), atol=1e-5)


def test_branches_do_not_mix(clip: Denoiser, condition: Condition, latents: Tensor):
    both = stack(condition, Condition(condition.null_text, condition.image + 1, condition.null_text))
    noise = clip(torch.cat([latents, latents.flip(1)]), T, both, 3.0).noise
    assert torch.allclose(noise[:1], clip(latents, T, condition, 3.0).noise, atol=1e-4)
    other = Condition(both.text[1:], both.image[1:], both.null_text[1:])
    assert torch.allclose(noise[1:], clip(latents.flip(1), T, other, 3.0).noise, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_condition_serves_all_branches(clip: Denoiser, condition: Condition, latents: Tensor, scale: float):
    noise = clip(latents.repeat(2, 1, 1, 1, 1), T, condition, scale).noise
    assert torch.allclose(noise, clip(latents, T, condition, scale).noise.expand_as(noise), atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_tap_reads_the_conditional_branch(clip: Denoiser, condition: Condition, latents: Tensor, scale: float):
    features = clip(latents, T, condition, scale, Tap(-2)).features
    assert features is not None and features.shape == (1, FRAMES, 32, 8, 8)
    alone = clip(latents, T, condition, 1.0, Tap(-2)).features
    assert alone is not None and torch.allclose(features, alone, atol=1e-4)
    assert clip(latents, T, condition, scale).features is None


def test_reading_changes_nothing_and_leaves_nothing(clip: Denoiser, condition: Condition, latents: Tensor):
    tapped, untapped = clip(latents, T, condition, 3.0, Tap(1)), clip(latents, T, condition, 3.0)
    assert torch.equal(tapped.noise, untapped.noise)
    assert not any(block._forward_hooks for block in clip.unet.up_blocks)


def test_rewriting_goes_on_in_the_same_forward(clip: Denoiser, condition: Condition, latents: Tensor):
    calls = []

    def rewrite(conditional: Tensor, whole: Tensor) -> Tensor:
        calls.append((conditional, whole))
        return torch.zeros_like(whole)

    prediction = clip(latents, T, condition, 3.0, Tap(-1, rewrite))
    ((conditional, whole),) = calls
    assert whole.shape == (2, FRAMES, 16, 8, 8) and torch.equal(conditional, whole[1:])
    assert prediction.features is not None and torch.equal(prediction.features, conditional)  # as the block made them
    norm = cast(torch.nn.Module, clip.unet.conv_norm_out)
    silent = clip.unet.conv_out(torch.nn.functional.silu(norm(torch.zeros(FRAMES, 16, 8, 8))))
    noise = to_noise(silent[None], latents, clip.alphas_cumprod[T], "v_prediction")
    assert torch.allclose(prediction.noise, noise, atol=1e-5)
    same = clip(latents, T, condition, 3.0, Tap(-1, lambda conditional, whole: whole)).noise
    assert torch.equal(same, clip(latents, T, condition, 3.0).noise)


def test_a_failing_rewrite_leaves_no_hook(clip: Denoiser, condition: Condition, latents: Tensor):
    with pytest.raises(DenoiserError, match="keep the shape"):
        clip(latents, T, condition, 1.0, Tap(-1, lambda conditional, whole: whole[:, :1]))
    assert not any(block._forward_hooks for block in clip.unet.up_blocks)


def test_a_compiled_unet_still_answers_taps(tiny: Backbone, clip: Denoiser, condition: Condition, latents: Tensor):
    """Its graph wouldn't see the hook, so a tapped call goes around it."""
    compiled = Denoiser(torch.compile(clip.unet, backend="eager"), tiny.scheduler)  # type: ignore[arg-type]
    for block in (-1, -2):
        ours, theirs = (d(latents, T, condition, 1.0, Tap(block)).features for d in (compiled, clip))
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_alphas_are_exact_and_no_weights(tiny: Backbone, plain: Denoiser):
    assert plain.alphas_cumprod.dtype == torch.float64
    assert plain.state_dict().keys() == {f"unet.{name}" for name in tiny.unet.state_dict()}


def test_noise_has_the_latents_dtype(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, latents: Tensor):
    """A half-precision network under single-precision latents; a cast of the module leaves the alphas alone."""
    exact = Denoiser(tiny.unet, tiny.scheduler)(latents, T, condition).noise
    denoiser = Denoiser(unet, tiny.scheduler).to(torch.bfloat16)
    noise = denoiser(latents, T, condition).noise
    assert denoiser.alphas_cumprod.dtype == torch.float64 and noise.dtype == torch.float32
    assert 0 < float((noise - exact).norm() / exact.norm()) < 0.05


def test_a_denoiser_is_a_noise_predictor(clip: Denoiser, condition: Condition, latents: Tensor):
    predictor: NoisePredictor = clip
    assert predictor(latents, T, condition).noise.shape == latents.shape


def test_bad_input_is_named(tiny: Backbone, clip: Denoiser, condition: Condition, latents: Tensor):
    with pytest.raises(DenoiserError, match="b f c h w"):
        clip(latents[0], T, condition)
    with pytest.raises(DenoiserError, match="hold 2 frames but the UNet was inflated for 3: inflate it for 2"):
        clip(latents[:, :2], T, condition)
    with pytest.raises(DenoiserError, match="2 conditions for 1 latents"):
        clip(latents, T, stack(condition, condition))
    with pytest.raises(DenoiserError, match="2 pictures for 3 frames"):
        clip(latents, T, Condition(condition.text, condition.image.repeat(1, 2, 1), condition.null_text))
    with pytest.raises(DenoiserError, match=r"tap.block=3 is out of range: the UNet has 3 up blocks"):
        clip(latents, T, condition, 1.0, Tap(3))
    tiny.scheduler.register_to_config(prediction_type="sample")
    try:
        with pytest.raises(ValueError, match=r"scheduler\.prediction_type='sample'"):
            Denoiser(tiny.unet, tiny.scheduler)
    finally:
        tiny.scheduler.register_to_config(prediction_type="v_prediction")
