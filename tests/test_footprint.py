"""What is counted from shapes is what a run keeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tave.backbone import Backbone
from tave.conditions import Condition
from tave.correction import CorrectionOptions, InterFrame
from tave.denoiser import Denoiser
from tave.footprint import (
    SHAPES,
    FootprintOptions,
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
from tave.inflate import inflate, select_trainables
from tave.inversion import Trajectory
from tave.masking import MaskOptions, find_mask
from tave.memory import MemoryOptions
from tave.options import OptionError
from tave.sampling import sample
from tave.schedule import Schedule

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
def test_counting_without_storage_equals_a_real_run(family: Backbone, checkpointing: bool):
    """Bytes saved for the backward pass and the peak of a whole step, gradients included, to the byte."""
    config: dict[str, Any] = dict(family.unet.config)
    adapter = family.noising is None
    image = family.image_width if adapter else 2 * family.image_width
    found = []
    for fake in (True, False):
        with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
            unet = UNet2DConditionModel.from_config(config)
            assert isinstance(unet, UNet2DConditionModel)
            unet.eval()
            if adapter:
                add_ip_adapter(unet, image)
                assert {n: p.shape for n, p in unet.named_parameters()} == {
                    n: p.shape for n, p in family.unet.named_parameters()
                }
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


def test_the_steps_of_an_edit_need_what_is_counted(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    """The steps of mask and sampling by the default options, with a mask that covers everything: within 1 %."""
    denoiser, schedule = Denoiser(inflate(unet, FRAMES), tiny.scheduler), Schedule.from_scheduler(tiny.scheduler, 1)
    latents = torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    trajectory, other = Trajectory(torch.stack([latents, latents])), replace(condition, image=condition.image + 1)
    blend = InterFrame(torch.ones(1, FRAMES, 1, 8, 8), CorrectionOptions(candidates="masked", agreement=1))

    def peak(work: Callable[[], object]) -> int:
        with Ledger() as ledger:
            work()
        return ledger.peak

    masking = peak(lambda: find_mask(denoiser, schedule, trajectory, condition, other, MaskOptions(union="disputed")))
    sampling = peak(lambda: sample(denoiser, schedule, latents, condition, guidance_scale=7.5, corrections=[blend]))
    assert masking == pytest.approx(peak(lambda: masking_step(denoiser, latents, condition, nullcontext())), rel=0.01)
    assert sampling == pytest.approx(peak(lambda: sampling_step(denoiser, latents, condition, nullcontext())), rel=0.01)
    assert blend.field is not None and masking > 1.2 * sampling  # three branches, not two


@pytest.mark.slow  # full-size models, counted under each preset
@pytest.mark.parametrize("backbone", ["sd21_unclip", "sd15_ip_adapter"])
def test_each_saving_saves_where_it_should(backbone: str):
    """The full-size model, at a size that is counted in seconds."""
    plain, spare = (
        footprint(SHAPES[backbone], memory, "bf16-mixed", 2, 128)
        for memory in (
            MemoryOptions(),
            MemoryOptions(weights="half", gradient_checkpointing=True, chunk=1, branches="alone", offload=True),
        )
    )
    assert plain.gradients == spare.gradients == 4 * 74_379_840  # T-Attn whole, Q of ST-Attn and C-Attn; float32
    assert plain.optimizer == 2 * plain.gradients
    assert plain.resident == sum(host(SHAPES[backbone]))
    assert spare.activations < plain.activations / 4
    assert spare.resident < plain.resident / 3
    for stage in ("tuning", "editing", "coding"):
        assert plain.resident < getattr(plain, stage)
        assert spare.resident < getattr(spare, stage) < getattr(plain, stage)


def test_what_cannot_be_counted_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="measure=true needs a CUDA device"):
        FootprintOptions(measure=True)
    with pytest.raises(OptionError, match="multiples of 64"):
        FootprintOptions(sizes=[500])
    with pytest.raises(OptionError, match="backbones='roadside' is not known: choose one of sd21_unclip, "):
        FootprintOptions(backbones=["roadside"])
