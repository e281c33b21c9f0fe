"""Compiled blocks answer, and learn, as the plain ones do."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from tave.backbone import Backbone
from tave.conditions import Condition
from tave.denoiser import Denoiser, Tap
from tave.evidence import attention_evidence
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


def pair(tiny: Backbone, unet: UNet2DConditionModel, backend: str) -> tuple[Denoiser, Denoiser]:
    """The same inflated UNet, plain and compiled."""
    select_trainables(inflate(unet, FRAMES), "patent")
    other = copy.deepcopy(unet)
    compile_blocks(other, backend)
    assert compiled_blocks(other) and not compiled_blocks(unet)
    assert tuned_state(other).keys() == tuned_state(unet).keys()
    return Denoiser(unet, tiny.scheduler), Denoiser(other, tiny.scheduler)


def gradient(denoiser: Denoiser, latents: Tensor, condition: Condition) -> Tensor:
    denoiser.zero_grad()
    denoiser.output(latents, torch.tensor([T]), condition).float().square().mean().backward()
    return torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


def test_blocks_are_captured_whole_and_taps_still_answer(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, latents: Tensor
):
    """Without a code generator: what is captured is run as it stands, so the bits are the same."""
    plain, compiled = pair(tiny, unet, "eager")
    with torch.no_grad():
        ours, theirs = (d(latents, T, condition, 3.0, Tap(-2)) for d in (compiled, plain))
    assert torch.equal(ours.noise, theirs.noise)
    assert ours.features is not None and theirs.features is not None and torch.equal(ours.features, theirs.features)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(3):  # its processors come and go: no graph may be made of them
        maps = [attention_evidence(d, condition, [2, 3])(latents, T) for d in (compiled, plain)]
        assert torch.equal(*maps)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # the code generator's own
@pytest.mark.filterwarnings("ignore:.*non-leaf Tensor.*")
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler found")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_generated_code_agrees(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, latents: Tensor, precision: str
):
    """Noise and gradients within 1e-4 of their size in float32, 2 % in bfloat16; with and without checkpointing."""
    plain, compiled = pair(tiny, unet, "inductor")
    half = precision == "bfloat16"
    tolerance = 2e-2 if half else 1e-4
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            with torch.no_grad():
                ours, theirs = (d(latents, T, condition, 3.0).noise for d in (compiled, plain))
            slopes = [gradient(d, latents, condition) for d in (compiled, plain)]
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
        assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < tolerance
        compiled.unet.enable_gradient_checkpointing()
