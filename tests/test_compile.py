"""Compiled blocks predict and train like the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tave.backbone import Backbone
from tave.denoiser import Denoiser, Tap
from tave.encoders import Condition
from tave.inflate import compile_blocks, compiled_blocks, inflate, select_trainables, tuned_state

FRAMES, T = 3, 500
pytestmark = pytest.mark.slow  # capturing takes minutes on a CPU, whatever the model's size


@pytest.fixture(autouse=True)
def _forget_graphs():
    yield
    torch._dynamo.reset()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def pair(family: Backbone, backend: str) -> tuple[Denoiser, Denoiser]:
    """The same inflated UNet, plain and compiled."""
    unet = inflate(copy.deepcopy(family.unet), FRAMES)
    select_trainables(unet, "patent")
    other = copy.deepcopy(unet)
    compile_blocks(other, backend)
    assert compiled_blocks(other) and not compiled_blocks(unet)
    assert tuned_state(other).keys() == tuned_state(unet).keys()
    return Denoiser(unet, family.scheduler), Denoiser(other, family.scheduler)


def test_blocks_are_captured_whole_and_taps_still_work(family: Backbone, family_condition: Condition, latents: Tensor):
    """Without a code generator the captured graphs run as they are, so the bits are the same."""
    plain, compiled = pair(family, "eager")
    with torch.no_grad():
        ours, theirs = (d(latents, T, family_condition, 3.0, Tap(-2)) for d in (compiled, plain))
    assert torch.equal(ours.noise, theirs.noise)
    assert ours.features is not None and theirs.features is not None and torch.equal(ours.features, theirs.features)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
