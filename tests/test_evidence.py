"""Cross-attention as evidence: probabilities are read, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tave.backbone import Backbone, tiny_backbone
from tave.conditions import Condition
from tave.denoiser import Denoiser
from tave.evidence import attention_evidence, missing_tokens, recorded, words_of

FRAMES, SIDE, WORDS = 2, 12, 16


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def denoiser(backbone: Backbone) -> Denoiser:
    return Denoiser(backbone.unet, backbone.scheduler)


def scene(denoiser: Denoiser) -> tuple[Tensor, Condition]:
    generator = torch.Generator().manual_seed(0)
    config = denoiser.unet.config
    text = torch.randn(1, WORDS, config["cross_attention_dim"], generator=generator)
    image = torch.randn(1, 1, config["projection_class_embeddings_input_dim"], generator=generator)
    latents = torch.randn(1, FRAMES, config["in_channels"], SIDE, SIDE, generator=generator)
    return latents, Condition(text, image, torch.zeros_like(text))


def test_the_probabilities_of_all_tokens_sum_to_one_and_parts_add_up(denoiser: Denoiser) -> None:
    latents, condition = scene(denoiser)
    whole = attention_evidence(denoiser, condition, range(WORDS))(latents, 500)
    assert whole.shape == (1, FRAMES, 1, SIDE, SIDE)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    parts = [attention_evidence(denoiser, condition, part)(latents, 500) for part in ([3], [5, 6], [3, 5, 6])]
    torch.testing.assert_close(parts[0] + parts[1], parts[2])
    assert parts[0].min() >= 0 and parts[0].std() > 0


def test_the_networks_answer_and_its_processors_stay(denoiser: Denoiser) -> None:
    latents, condition = scene(denoiser)
    before, processors = denoiser(latents, 500, condition).noise, dict(denoiser.unet.attn_processors)
    with torch.no_grad(), recorded(denoiser.unet, [1]) as maps:
        assert torch.equal(denoiser(latents, 500, condition).noise, before)
        assert len(maps) == sum("attn2" in name for name in processors) > 0
    assert denoiser.unet.attn_processors == processors
    with pytest.raises(RuntimeError, match="stop"), recorded(denoiser.unet, [1]):
        raise RuntimeError("stop")
    assert denoiser.unet.attn_processors == processors


def test_odd_grids_are_read_at_every_level(denoiser: Denoiser) -> None:
    latents, condition = scene(denoiser)
    evidence = attention_evidence(denoiser, condition, range(WORDS))(latents[..., :9, :11], 500)
    torch.testing.assert_close(evidence, torch.ones(1, FRAMES, 1, 9, 11))


def test_no_token_no_evidence(denoiser: Denoiser) -> None:
    latents, condition = scene(denoiser)
    assert not attention_evidence(denoiser, condition, [])(latents, 500).any()


def test_words_are_a_set_whatever_their_case_and_order() -> None:
    assert words_of("A red-hot car, on a road") == words_of("on a Road a car red hot") != words_of("a red car on a road")


def test_words_that_the_target_lacks_are_found_at_their_tokens(backbone: Backbone) -> None:
    lost = missing_tokens(backbone.tokenizer, "a Dog on a cat", "a cat on the CAR")
    ids = backbone.tokenizer("a Dog on a cat")["input_ids"]
    assert str(backbone.tokenizer.decode([ids[position] for position in lost])).strip() == "dog"
    assert missing_tokens(backbone.tokenizer, "a dog, on a cat", "A cat on a dog.") == []
