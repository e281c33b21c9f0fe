"""What all tests share: no network, and one tiny backbone."""

from __future__ import annotations

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import nn

from tave.backbone import Backbone, tiny_backbone
from tave.conditions import Condition, encode_condition


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """Shared by the whole session, so left as it is: who inflates or tunes takes ``unet``."""
    return tiny_backbone()


@pytest.fixture
def unet(tiny: Backbone) -> UNet2DConditionModel:
    """A copy of the tiny image UNet, to do with as one likes."""
    return copy.deepcopy(tiny.unet)


@pytest.fixture(scope="session")
def condition(tiny: Backbone) -> Condition:
    """One prompt with one picture, b = 1."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    return encode_condition(tiny, "a white bus on the road", picture, generator=generator)


@pytest.fixture(scope="session")
def pipeline(tiny: Backbone) -> StableUnCLIPImg2ImgPipeline:
    """The library's own way from picture and prompt to condition, over the same parts."""
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=len(tiny.normalizer_mean))
    normalizer.mean = nn.Parameter(tiny.normalizer_mean[None])
    normalizer.std = nn.Parameter(tiny.normalizer_std[None])
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=tiny.feature_extractor,
        image_encoder=tiny.image_encoder,
        image_normalizer=normalizer,
        image_noising_scheduler=tiny.image_noising_scheduler,  # type: ignore[arg-type]
        tokenizer=tiny.tokenizer,
        text_encoder=tiny.text_encoder,
        unet=tiny.unet,
        scheduler=tiny.scheduler,  # type: ignore[arg-type]
        vae=tiny.vae,
    )
