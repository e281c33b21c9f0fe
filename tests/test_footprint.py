"""What is counted from shapes is what a run keeps."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tave.backbone import Backbone
from tave.conditions import Condition
from tave.denoiser import Denoiser
from tave.footprint import FootprintOptions, Ledger, footprint, held_bytes, saved_bytes, tuning_step
from tave.inflate import inflate, select_trainables
from tave.memory import MemoryOptions
from tave.options import OptionError

FRAMES = 3


def test_saved_bytes_are_those_of_the_formula():
    """y = relu(x W): x for W's gradient, the output for the relu's; W itself is a parameter and counts elsewhere."""
    layer = nn.Linear(64, 32, bias=False)
    with saved_bytes(layer) as saved:
        torch.relu(layer(torch.randn(10, 64)))
    assert saved == [4 * (10 * 64 + 10 * 32)]


def test_the_ledger_counts_what_lives_at_once():
    with Ledger() as ledger:
        kept = torch.zeros(100)
        for _ in range(3):
            torch.zeros(1000)
        view = kept[:50]
        assert (ledger.now, ledger.peak) == (400, 4400)
        del kept, view
    assert ledger.now == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_counting_without_storage_equals_a_real_run(tiny: Backbone, checkpointing: bool):
    """Bytes saved for the backward pass and the peak of a whole step, gradients included, to the byte."""
    config: dict[str, Any] = dict(tiny.unet.config)
    found = []
    for fake in (True, False):
        with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
            unet = UNet2DConditionModel.from_config(config)
            assert isinstance(unet, UNet2DConditionModel)
            unet.eval()
            select_trainables(inflate(unet, FRAMES), "patent")
            if checkpointing:
                unet.enable_gradient_checkpointing()
            text = torch.randn(1, 77, 32)
            denoiser = Denoiser(unet, tiny.scheduler)
            latents, condition = torch.randn(1, FRAMES, 4, 8, 8), Condition(text, torch.randn(1, 1, 48), text)
            with Ledger() as ledger:
                saved = tuning_step(denoiser, latents, condition, nullcontext())
            gradients = sum(p.grad.nbytes for p in unet.parameters() if p.grad is not None)
        assert gradients == held_bytes(unet, lambda p: p.requires_grad) > 0
        found.append((saved, ledger.peak))
    assert found[0] == found[1]
    assert 0 < found[0][0] < found[0][1]


def test_each_saving_saves_where_it_should():
    """The full-size model, at a size that is counted in seconds."""
    plain, spare = (
        footprint(memory, "bf16-mixed", 2, 128)
        for memory in (
            MemoryOptions(),
            MemoryOptions(weights="half", gradient_checkpointing=True, chunk=1, branches="alone", offload=True),
        )
    )
    assert plain.gradients == spare.gradients == 4 * 74_379_840  # T-Attn whole, Q of ST-Attn and C-Attn; float32
    assert plain.optimizer == 2 * plain.gradients
    assert spare.activations < plain.activations / 4
    assert spare.resident < plain.resident / 3
    for stage in ("tuning", "editing", "coding"):
        assert plain.resident < getattr(plain, stage)
        assert spare.resident < getattr(spare, stage) < getattr(plain, stage)


def test_measuring_needs_a_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="measure=true needs a CUDA device"):
        FootprintOptions(measure=True)
    with pytest.raises(OptionError, match="multiples of 64"):
        FootprintOptions(sizes=[500])
