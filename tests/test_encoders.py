"""Latents and conditions, against the library's autoencoder and StableUnCLIP pipeline."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from fakes import draw
from PIL import Image
from torch import Tensor

from tave.backbone import Backbone
from tave.config import ConditionOptions, MemoryOptions, OptionError
from tave.encoders import Condition, EncoderError, Encoders, encode_text, image_embedding, noise_embedding, stack

FRAMES = torch.rand(5, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
EMBEDS, NOISE = draw(3, 24, dtype=torch.float32), draw(3, 24, seed=1, dtype=torch.float32)


@pytest.fixture
def picture() -> Tensor:
    """`1 3 40 48` in [-1, 1], in whole bytes as pictures are."""
    return torch.randint(256, (1, 3, 40, 48), generator=torch.Generator().manual_seed(2)).float() / 127.5 - 1


# ---- autoencoder -----------------------------------------------------------------------------------------------------


def test_latents_are_the_scaled_posterior_mean_whatever_the_chunk(tiny: Backbone):
    encoders = Encoders(tiny)
    latents = encoders.encode(FRAMES)
    assert latents.shape == (1, 5, 4, 8, 10) and latents.dtype == torch.float32 and not latents.requires_grad
    mean = tiny.vae.encode(FRAMES).latent_dist.mean  # type: ignore[union-attr]
    assert torch.allclose(latents[0], mean * tiny.vae.config["scaling_factor"], atol=1e-6)
    chunked = Encoders(tiny, memory=MemoryOptions(chunk=2))
    assert torch.allclose(chunked.encode(FRAMES), latents, atol=1e-5)
    assert torch.allclose(chunked.decode(latents), encoders.decode(latents), atol=1e-5)


def test_decoded_frames_stay_in_range(tiny: Backbone):
    encoders = Encoders(tiny)
    decoded = encoders.decode(100 * encoders.encode(FRAMES))
    assert decoded.shape == FRAMES.shape and decoded.dtype == torch.float32 and float(decoded.abs().max()) <= 1
    with pytest.raises(EncoderError, match="one clip"):
        encoders.decode(torch.zeros(2, 3, 4, 8, 8))


@pytest.mark.parametrize("shape", [(5, 3, 30, 40), (5, 1, 32, 32), (3, 32, 32), (0, 3, 32, 32)])
def test_frames_that_do_not_fit_are_refused(tiny: Backbone, shape: tuple[int, ...]):
    with pytest.raises(EncoderError, match="frames of"):
        Encoders(tiny).encode(torch.zeros(shape))


# ---- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 250, 999])
def test_noise_embedding_equals_the_pipeline(tiny: Backbone, pipeline: StableUnCLIPImg2ImgPipeline, level: int):
    theirs = pipeline.noise_image_embeddings(EMBEDS, level, NOISE)
    assert torch.allclose(noise_embedding(tiny, EMBEDS, level, NOISE), theirs, atol=1e-6)
    shared = noise_embedding(tiny, EMBEDS[:1].expand(3, -1), level, NOISE[:1])
    assert torch.equal(shared, shared[:1].expand(3, -1))  # one draw serves all pictures


def test_level_zero_still_adds_noise(tiny: Backbone):
    assert tiny.noising is not None
    moved = (noise_embedding(tiny, EMBEDS, 0, NOISE)[:, :24] - EMBEDS) / tiny.noising.std
    assert 0.004 < float(moved.norm() / NOISE.norm()) < 0.009


def test_image_and_text_equal_the_pipelines(tiny: Backbone, pipeline: StableUnCLIPImg2ImgPipeline, picture: Tensor):
    pixels = ((picture[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    inputs = tiny.feature_extractor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    assert torch.allclose(image_embedding(tiny, picture), tiny.image_encoder(inputs).image_embeds, atol=1e-5)
    theirs, null = pipeline.encode_prompt(["a red car"], "cpu", 1, True)
    assert null is not None and theirs is not None
    assert torch.allclose(encode_text(tiny, ["a red car", ""]), torch.cat([theirs, null]), atol=1e-6)


def test_equal_inputs_give_equal_bits_and_another_seed_other_noise(tiny: Backbone, picture: Tensor):
    one, again, other = (Encoders(tiny, seed=seed).condition("a car", [picture]) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parts, again.parts, strict=True))
    assert torch.equal(one.text, other.text) and not torch.equal(one.image, other.image)


def test_pictures_are_averaged_as_embeddings_frame_by_frame(tiny: Backbone, picture: Tensor):
    encoders, other = Encoders(tiny), torch.cat([picture.flip(-1) / 2, picture.flip(-2)])

    def image(*pictures: Tensor) -> Tensor:
        return encoders.condition("a red car", pictures).image

    assert image(picture).shape == (1, 1, 48) and image(other).shape == image(picture, other).shape == (1, 2, 48)
    assert torch.allclose(image(picture, picture), image(picture), atol=1e-6)
    # the noise is the same for all, so it survives the mean
    assert torch.allclose(image(picture, other), (image(picture) + image(other)) / 2, atol=1e-5)
    assert torch.allclose(image(picture.expand(2, -1, -1, -1)), image(picture).expand(-1, 2, -1), atol=1e-5)


def test_without_a_picture_the_image_vector_is_the_unconditional_one(family: Backbone, family_condition: Condition):
    words = Encoders(family).condition("a white bus on the road")
    assert words.image.shape == family_condition.image.shape and not words.image.any()
    assert torch.equal(words.null.image, family_condition.null_image) and not family_condition.null_image.any()
    assert torch.equal(family_condition.null.text, family_condition.null_text)


def test_the_negative_prompt_is_what_guidance_steers_away_from(tiny: Backbone):
    with_one = Encoders(tiny, ConditionOptions(negative_prompt="a bus")).condition("a car")
    assert torch.equal(with_one.null_text, encode_text(tiny, ["a car", "a bus"])[1:])


def test_stack_repeats_a_single_picture(condition: Condition):
    many = Condition(condition.text, condition.image.repeat(1, 4, 1) + 1, condition.null_text)
    both = stack(condition, many)
    assert both.image.shape == (2, 4, 48) and both.text.shape[0] == both.null_text.shape[0] == 2
    assert torch.equal(both.image[0], condition.image[0].expand(4, -1)) and torch.equal(both.image[1], many.image[0])
    with pytest.raises(EncoderError, match=r"\[3, 4\] pictures"):
        stack(many, Condition(condition.text, condition.image.repeat(1, 3, 1), condition.null_text))


def test_a_truncated_prompt_is_reported(tiny: Backbone, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        tokens = encode_text(tiny, ["jazzy quips vexed a bold wolf: " * 9])
    assert tokens.shape[1] == tiny.tokenizer.model_max_length and "shorten it" in caplog.text


def test_bad_input_is_named(tiny: Backbone, condition: Condition, picture: Tensor):
    with pytest.raises(EncoderError, match="n 3 H W"):
        image_embedding(tiny, picture[0])
    with pytest.raises(EncoderError, match="draw it as"):
        noise_embedding(tiny, EMBEDS, 0, NOISE[:2])
    with pytest.raises(OptionError, match=r"condition\.noise_level=1000"):
        noise_embedding(tiny, EMBEDS, 1000, NOISE)
    with pytest.raises(EncoderError, match="one per branch"):
        Condition(condition.text, condition.image.repeat(2, 1, 1), condition.null_text)
    with pytest.raises(EncoderError, match="null_text"):
        Condition(condition.text, condition.image, condition.null_text[:, :3])
