from __future__ import annotations

import logging

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from PIL import Image

from tave.backbone import Backbone
from tave.conditions import (
    Condition,
    ConditionError,
    draw_noise,
    encode_condition,
    encode_text,
    image_embedding,
    joint_embedding,
    noise_embedding,
    stack,
)
from tave.options import OptionError


@pytest.fixture
def picture() -> torch.Tensor:
    """`1 3 40 48` in [-1, 1], in whole bytes as pictures come."""
    pixels = torch.randint(256, (1, 3, 40, 48), generator=torch.Generator().manual_seed(2))
    return pixels.float() / 127.5 - 1


@pytest.mark.parametrize("level", [0, 250, 999])
def test_noise_embedding_equals_the_pipeline(tiny: Backbone, pipeline: StableUnCLIPImg2ImgPipeline, level: int):
    embeds, noise = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    theirs = pipeline.noise_image_embeddings(embeds, level, noise)
    assert torch.allclose(noise_embedding(tiny, embeds, level, noise), theirs, atol=1e-6)


def test_one_draw_serves_all_pictures(tiny: Backbone):
    embeds = torch.randn(1, 24).expand(3, -1)
    vectors = noise_embedding(tiny, embeds, 500, draw_noise(tiny, torch.Generator().manual_seed(0)))
    assert torch.equal(vectors, vectors[:1].expand(3, -1))


def test_level_zero_still_adds_noise(tiny: Backbone):
    assert tiny.noising is not None
    embeds, noise = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    moved = (noise_embedding(tiny, embeds, 0, noise)[:, :24] - embeds) / tiny.noising.std
    assert 0.004 < float(moved.norm() / noise.norm()) < 0.009


def test_image_embedding_equals_the_pipeline(tiny: Backbone, picture: torch.Tensor):
    pixels = ((picture[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    inputs = tiny.feature_extractor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    theirs = tiny.image_encoder(inputs).image_embeds
    assert torch.allclose(image_embedding(tiny, picture), theirs, atol=1e-5)


def test_text_equals_the_pipeline(tiny: Backbone, pipeline: StableUnCLIPImg2ImgPipeline):
    theirs, null = pipeline.encode_prompt(["a red car"], "cpu", 1, True)
    assert null is not None and theirs is not None
    assert torch.allclose(encode_text(tiny, ["a red car", ""]), torch.cat([theirs, null]), atol=1e-6)


def test_condition_of_one_and_of_many_pictures(tiny: Backbone, picture: torch.Tensor):
    noise = draw_noise(tiny, torch.Generator().manual_seed(0))
    one = encode_condition(tiny, "a red car", picture, noise=noise)
    many = encode_condition(tiny, "a red car", picture.expand(3, -1, -1, -1), noise=noise, negative_prompt="a bus")
    assert one.image.shape == (1, 1, 48) and many.image.shape == (1, 3, 48)
    assert torch.allclose(one.image.expand(-1, 3, -1), many.image, atol=1e-5)
    assert torch.allclose(one.text, many.text, atol=1e-6) and not torch.allclose(one.null_text, many.null_text)


def test_several_pictures_are_averaged_or_take_turns():
    a, b = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    frames = torch.randn(5, 24)
    assert torch.equal(joint_embedding([a, a], "average", 5), a)
    assert torch.allclose(joint_embedding([a, b], "average", 5), (a + b) / 2)
    assert torch.allclose(joint_embedding([a, frames], "average", 5), (a + frames) / 2)
    turns = joint_embedding([a, frames], "alternate", 5)
    assert torch.equal(turns[::2], a.expand(3, -1)) and torch.equal(turns[1::2], frames[1::2])
    for several in ("average", "alternate"):
        assert joint_embedding([a], several, 5) is a


def test_views_of_one_picture_are_averaged_before_pictures_take_turns(tiny: Backbone, picture: torch.Tensor):
    noise, other = draw_noise(tiny, torch.Generator().manual_seed(0)), picture.flip(-1) / 2
    mean = encode_condition(tiny, "a red car", [picture, other], noise=noise)
    views = encode_condition(tiny, "a red car", [[picture, other]], noise=noise)
    turns = encode_condition(tiny, "a red car", [[picture, other], picture], noise=noise, several="alternate", frames=2)
    alone = encode_condition(tiny, "a red car", picture, noise=noise)
    assert torch.equal(mean.image, views.image)
    assert torch.allclose(turns.image[:, :1], mean.image, atol=1e-6)
    assert torch.allclose(turns.image[:, 1:], alone.image, atol=1e-6)
    assert not torch.allclose(mean.image, alone.image, atol=1e-4)


def test_the_same_picture_twice_is_that_picture(tiny: Backbone, picture: torch.Tensor):
    noise = draw_noise(tiny, torch.Generator().manual_seed(0))
    one = encode_condition(tiny, "a red car", picture, noise=noise)
    twice = encode_condition(tiny, "a red car", [picture, picture], noise=noise)
    turns = encode_condition(tiny, "a red car", [picture, picture], noise=noise, several="alternate", frames=3)
    assert torch.equal(one.image, twice.image)
    assert turns.image.shape == (1, 3, 48) and torch.allclose(turns.image, one.image.expand(-1, 3, -1), atol=1e-6)


def test_unconditional_vector_is_all_zeros(condition: Condition):
    assert condition.null_image.shape == condition.image.shape and not condition.null_image.any()
    assert torch.equal(condition.null.text, condition.null_text) and not condition.null.image.any()


def test_stack_repeats_a_single_picture(condition: Condition):
    many = Condition(condition.text, condition.image.repeat(1, 4, 1) + 1, condition.null_text)
    both = stack(condition, many)
    assert both.image.shape == (2, 4, 48) and both.text.shape[0] == both.null_text.shape[0] == 2
    assert torch.equal(both.image[0], condition.image[0].expand(4, -1)) and torch.equal(both.image[1], many.image[0])
    with pytest.raises(ConditionError, match=r"\[3, 4\] pictures"):
        stack(many, Condition(condition.text, condition.image.repeat(1, 3, 1), condition.null_text))


def test_a_cut_prompt_is_told_of(tiny: Backbone, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        tokens = encode_text(tiny, ["jazzy quips vexed a bold wolf: " * 9])
    assert tokens.shape[1] == tiny.tokenizer.model_max_length and "shorten it" in caplog.text


def test_bad_input_is_named(tiny: Backbone, condition: Condition, picture: torch.Tensor):
    with pytest.raises(ConditionError, match="needs its noise"):
        encode_condition(tiny, "a car", picture)
    with pytest.raises(ConditionError, match="n 3 H W"):
        image_embedding(tiny, picture[0])
    with pytest.raises(ConditionError, match="draw it as"):
        noise_embedding(tiny, torch.zeros(3, 24), 0, torch.zeros(2, 24))
    with pytest.raises(OptionError, match="level=1000"):
        noise_embedding(tiny, torch.zeros(1, 24), 1000, torch.zeros(1, 24))
    with pytest.raises(ConditionError, match="one per branch"):
        Condition(condition.text, condition.image.repeat(2, 1, 1), condition.null_text)
    with pytest.raises(ConditionError, match="null_text"):
        Condition(condition.text, condition.image, condition.null_text[:, :3])
