"""Compiled blocks predict and train like the plain ones."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from tave.backbone import Backbone
from tave.denoiser import Denoiser, Tap
from tave.encoders import Condition
from tave.inflate import compile_blocks, compiled_blocks, inflate, select_trainables, tuned_state

FRAMES, T = 3, 500
NOISE, SLOPE = {"v_prediction": 0.01, "epsilon": 0.05}, 0.03  # what bf16 may change, as in test_memory.py
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


def gradient(denoiser: Denoiser, latents: Tensor, condition: Condition) -> Tensor:
    denoiser.zero_grad()
    denoiser.output(latents, torch.tensor([T]), condition).float().square().mean().backward()
    return torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


def test_blocks_are_captured_whole_and_taps_still_work(family: Backbone, family_condition: Condition, latents: Tensor):
    """Without a code generator the captured graphs run as they are, so the bits are the same."""
    plain, compiled = pair(family, "eager")
    with torch.no_grad():
        ours, theirs = (d(latents, T, family_condition, 3.0, Tap(-2)) for d in (compiled, plain))
    assert torch.equal(ours.noise, theirs.noise)
    assert ours.features is not None and theirs.features is not None and torch.equal(ours.features, theirs.features)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # the code generator's own
@pytest.mark.filterwarnings("ignore:.*non-leaf Tensor.*")
@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler found"
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_generated_code_agrees(family: Backbone, family_condition: Condition, latents: Tensor, precision: str):
    """Noise and gradients within 1e-4 of their norm in float32, with and without checkpointing.

    Under bf16, generated code rounds in other places, so both models are compared with the float32 one: compiled is as
    near to it as autocast alone (test_memory.py).
    """
    plain, compiled = pair(family, "inductor")
    half = precision == "bfloat16"
    noise, slope = (NOISE[plain.prediction_type], SLOPE) if half else (1e-4, 1e-4)
    with torch.no_grad():
        exact = plain(latents, T, family_condition, 3.0).noise
    exact_slope = gradient(plain, latents, family_condition)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            with torch.no_grad():
                found = compiled(latents, T, family_condition, 3.0).noise
            found_slope = gradient(compiled, latents, family_condition)
        assert float((found - exact).norm() / exact.norm()) < noise
        assert float((found_slope - exact_slope).norm() / exact_slope.norm()) < slope
        compiled.unet.enable_gradient_checkpointing()
