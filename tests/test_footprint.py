"""The memory that is counted from shapes is the memory that the code uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tave.backbone import Backbone
from tave.config import CorrectionOptions, FootprintOptions, MaskOptions, MemoryOptions, OptionError
from tave.correction import InterFrame
from tave.counting import (
    SHAPES,
    Footprint,
    Ledger,
    add_ip_adapter,
    footprint,
    held_bytes,
    host,
    masking_step,
    sampling_step,
    saved_bytes,
    tuning_step,
)
from tave.denoiser import Denoiser
from tave.encoders import Condition
from tave.footprint import run, table
from tave.inflate import inflate, select_trainables
from tave.inversion import Trajectory
from tave.masking import compare, make_mask
from tave.sampling import sample
from tave.schedule import Schedule

FRAMES = 3


def test_saved_bytes_are_those_of_the_formula():
    """y = relu(x W): x for W's gradient, the output for the relu's; W itself is a parameter and counts elsewhere."""
    layer = nn.Linear(64, 32, bias=False)
    with saved_bytes(layer) as saved:
        torch.relu(layer(torch.randn(10, 64)))
    assert saved == [4 * (10 * 64 + 10 * 32)]


def test_the_ledger_counts_simultaneous_storage():
    with Ledger() as ledger:
        kept = torch.zeros(100)
        for _ in range(3):
            torch.zeros(1000)
        view = kept[:50]
        assert (ledger.now, ledger.peak) == (400, 4400)
        del kept, view
    assert ledger.now == 0


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


@pytest.mark.slow  # real runs of three sizes
@pytest.mark.parametrize("checkpointing", [False, True])
def test_counting_without_storage_equals_a_real_run(family: Backbone, checkpointing: bool):
    """Bytes saved for the backward pass and the peak of a whole step, gradients included, to the byte."""
    config: dict[str, Any] = dict(family.unet.config)
    adapter = family.noising is None
    image = family.image_width if adapter else 2 * family.image_width
    found = []
    for fake in (True, False):
        with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
            unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config)).eval()
            if adapter:
                add_ip_adapter(unet, image)
                assert shapes_of(unet) == shapes_of(family.unet)
            select_trainables(inflate(unet, FRAMES), "patent")
            if checkpointing:
                unet.enable_gradient_checkpointing()
            text = torch.randn(1, 77, 32)
            denoiser = Denoiser(unet, family.scheduler)
            latents, condition = torch.randn(1, FRAMES, 4, 8, 8), Condition(text, torch.randn(1, 1, image), text)
            with Ledger() as ledger:
                saved = tuning_step(denoiser, latents, condition, nullcontext())
            gradients = sum(p.grad.nbytes for p in unet.parameters() if p.grad is not None)
        assert gradients == held_bytes(unet, lambda p: p.requires_grad) > 0
        found.append((saved, ledger.peak))
    assert found[0] == found[1]
    assert 0 < found[0][0] < found[0][1]


def test_the_steps_of_an_edit_use_the_memory_that_is_counted(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
):
    """One step of mask and of sampling by the default options, with a mask of the whole frame: within 1 %."""
    denoiser, schedule = Denoiser(inflate(unet, FRAMES), tiny.scheduler), Schedule.from_scheduler(tiny.scheduler, 1)
    latents = torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    trajectory, other = Trajectory(torch.stack([latents, latents])), replace(condition, image=condition.image + 1)
    blend = InterFrame(torch.ones(1, FRAMES, 1, 8, 8), CorrectionOptions(steps=[0.0, 1.0]))

    def peak(work: Callable[[], object]) -> int:
        with Ledger() as ledger:
            work()
        return ledger.peak

    options = MaskOptions(steps=[0.0, 1.0])
    masking = peak(lambda: make_mask(compare(denoiser, schedule, trajectory, condition, other, options), options))
    sampling = peak(lambda: sample(denoiser, schedule, latents, condition, guidance_scale=7.5, corrections=[blend]))
    assert masking == pytest.approx(peak(lambda: masking_step(denoiser, latents, condition, nullcontext())), rel=0.01)
    assert sampling == pytest.approx(peak(lambda: sampling_step(denoiser, latents, condition, nullcontext())), rel=0.01)
    assert blend.field is not None and masking > 1.2 * sampling  # three branches, not two


@pytest.mark.slow  # full-size models
def test_each_saving_saves_where_it_should():
    plain, spare = (
        footprint(SHAPES["sd21_unclip"], memory, "bf16-mixed", 2, 128)
        for memory in (
            MemoryOptions(),
            MemoryOptions(weights="half", gradient_checkpointing=True, chunk=1, branches="alone", offload=True),
        )
    )
    assert plain.gradients == spare.gradients == 4 * 74_379_840  # T-Attn whole, Q of ST-Attn and C-Attn; float32
    assert plain.optimizer == 2 * plain.gradients
    assert plain.resident == sum(host(SHAPES["sd21_unclip"]))
    assert spare.activations < plain.activations / 4
    assert spare.resident < plain.resident / 3
    for stage in ("tuning", "editing", "coding"):
        assert plain.resident < getattr(plain, stage)
        assert spare.resident < getattr(spare, stage) < getattr(plain, stage)


def test_measuring_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="measure=true needs a CUDA device"):
        run(FootprintOptions(measure=True))


def test_the_table_has_a_line_for_each_size(monkeypatch: pytest.MonkeyPatch):
    found = Footprint(*[2**30] * 4, tuning=3 * 2**30, editing=2**30, coding=2**30)
    monkeypatch.setattr("tave.counting.footprint", lambda *_, **__: found)
    lines: list[str] = []
    table(FootprintOptions(backbones=["sd21_unclip"], presets=["8gb", "full"]), lines.append)
    assert len(lines) == 2 + 2 * 4
    assert lines[2].startswith("| sd21_unclip | 8gb | 8 | 512 | 1.00 |") and lines[2].endswith("| **3.0** |")
