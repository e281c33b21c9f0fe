"""The inflated network equals the image network at step 0, and exactly what was selected trains."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from fakes import draw
from torch import Tensor, nn

from tave.attention import KV_FRAMES
from tave.backbone import Backbone
from tave.config import OptionError
from tave.denoiser import Denoiser
from tave.encoders import Condition
from tave.inflate import (
    TRAINABLES,
    InflatedBlock,
    InflationError,
    TunedStateError,
    add_lora,
    frames_of,
    inflate,
    load_tuned,
    select_trainables,
    tuned_state,
)

FRAMES = 3
LATENTS = draw(1, FRAMES, 4, 8, 8, seed=3, dtype=torch.float32)


@torch.no_grad()
def noise(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, latents: Tensor = LATENTS) -> Tensor:
    return Denoiser(unet, tiny.scheduler)(latents, 500, condition).noise


def step(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, lr: float = 1e-3) -> None:
    """One step of Adam; gradients remain."""
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    unet.zero_grad()
    Denoiser(unet, tiny.scheduler).output(LATENTS, torch.tensor([400]), condition).square().mean().backward()
    torch.optim.Adam(trained, lr=lr).step()


@pytest.mark.parametrize("frames", [1, FRAMES])
@pytest.mark.parametrize("kv_frames", KV_FRAMES)
def test_one_frame_or_a_still_clip_gives_the_image_networks_output(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, kv_frames: str, frames: int
):
    still = LATENTS[:, :1].expand(-1, frames, -1, -1, -1)
    image = noise(tiny, tiny.unet, condition, still)
    assert float((noise(tiny, inflate(unet, frames, kv_frames), condition, still) - image).abs().max()) <= 1e-5


def test_later_frames_of_a_moving_clip_depend_on_earlier_ones(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
):
    image, clip = noise(tiny, tiny.unet, condition), noise(tiny, inflate(unet, FRAMES), condition)
    assert torch.allclose(clip[:, 0], image[:, 0], atol=1e-5) and not torch.allclose(clip[:, 1], image[:, 1], atol=1e-3)


def test_pretrained_names_survive_and_inflation_draws_no_random_numbers(tiny: Backbone, unet: UNet2DConditionModel):
    other, before = copy.deepcopy(unet), {name: value.clone() for name, value in unet.state_dict().items()}
    after = inflate(unet, FRAMES).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(".temporal." in name for name in after.keys() - before.keys())
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert frames_of(unet) == FRAMES and frames_of(tiny.unet) is None
    torch.rand(7)
    assert all(torch.equal(after[name], value) for name, value in inflate(other, FRAMES).state_dict().items())


def test_what_can_not_be_inflated_is_refused(unet: UNet2DConditionModel):
    inflate(unet, FRAMES)
    with pytest.raises(InflationError, match="inflated for 3 frames already"):
        inflate(unet, 5)
    with pytest.raises(InflationError, match="no transformer blocks"):
        inflate(nn.Linear(2, 2), 5)  # type: ignore[arg-type]


def test_gradient_reaches_a_zeroed_temporal_attention(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    """The output projection at step 0; Q, K, V and the norm behind it after one optimizer step."""
    select_trainables(inflate(unet, FRAMES), "patent")
    layers = [module.temporal for module in unet.modules() if isinstance(module, InflatedBlock)]
    step(tiny, unet, condition)
    for layer in layers:
        assert layer.to_out.weight.grad is not None and layer.to_out.weight.grad.any()
        assert layer.to_q.weight.grad is not None and not layer.to_q.weight.grad.any()
    step(tiny, unet, condition)
    for layer in layers:
        for part in (layer.to_q, layer.to_k, layer.to_v, layer.norm):
            assert part.weight.grad is not None and part.weight.grad.any()


@pytest.mark.parametrize(
    ("trainables", "wanted"),
    [
        ("patent", ("attn1.to_q.weight", "attn2.to_q.weight", "temporal")),
        ("temporal_only", ("temporal",)),
        ("all_attention", ("attn1", "attn2", "temporal")),
        ("lora", ("lora_down", "lora_up", "temporal")),
    ],
)
def test_exactly_the_named_parameters_train(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, trainables: str, wanted: tuple[str, ...]
):
    names = select_trainables(inflate(unet, FRAMES), trainables)
    inside = [name for name, _ in unet.named_parameters() if ".transformer_blocks." in name]
    assert names == [name for name in inside if any(part in name for part in wanted)]
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    step(tiny, unet, condition)
    step(tiny, unet, condition)  # in the first step, what lies behind a zero has no gradient
    moved = {name for name, parameter in unet.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(names)


def test_none_freezes_all_and_an_unknown_name_is_refused(unet: UNet2DConditionModel):
    assert select_trainables(inflate(unet, FRAMES), "none") == []
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    state = tuned_state(unet)
    assert state and all(".temporal." in name for name in state)  # copies of what inflation added
    name = next(iter(state))
    state[name].add_(1)
    assert not torch.equal(dict(unet.named_parameters())[name], state[name])
    with pytest.raises(OptionError, match="trainables=patents"):
        select_trainables(unet, "patents")


def test_lora_is_zero_at_first_and_keeps_the_base(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    inflate(unet, FRAMES)
    before, answer = unet.state_dict(), noise(tiny, unet, condition)
    select_trainables(unet, "lora", lora_rank=2)
    after = unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    added = after.keys() - before.keys()
    blocks = sum(isinstance(module, InflatedBlock) for module in unet.modules())
    assert len(added) == blocks * 2 * 4 * 2 and all(2 in after[name].shape for name in added)
    assert torch.equal(noise(tiny, unet, condition), answer)
    with pytest.raises(InflationError, match="rank 2 already"):
        add_lora(unet, 4)


@pytest.mark.parametrize("trainables", [name for name in TRAINABLES if name != "none"])
def test_tuned_weights_are_restored(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, trainables: str):
    other, longer = (inflate(copy.deepcopy(unet), frames) for frames in (FRAMES, 2 * FRAMES))
    select_trainables(inflate(unet, FRAMES), trainables)
    step(tiny, unet, condition)
    state = tuned_state(unet)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert {name for name in state if "temporal" not in name} == {name for name in trained if "temporal" not in name}
    for fitting in (other, longer):
        load_tuned(fitting, state)
        theirs = fitting.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in unet.state_dict().items())
    # not bit for bit: kernels depend on the weights' alignment in memory
    assert torch.allclose(noise(tiny, unet, condition), noise(tiny, other, condition), atol=1e-4)


def test_tuned_weights_that_do_not_fit_are_refused_before_any_is_written(unet: UNet2DConditionModel):
    select_trainables(inflate(unet, FRAMES), "patent")
    state, before = tuned_state(unet), {name: value.clone() for name, value in unet.state_dict().items()}
    query, temporal = (next(name for name in state if part in name) for part in ("attn1.to_q", "temporal"))
    for spoilt, message in (
        ({n: v for n, v in state.items() if n != temporal}, rf"lack {temporal}: use the whole file"),
        ({n: v for n, v in state.items() if n != query}, rf"lack {query}"),  # a kind that only some blocks have
        (state | {"conv_in.weight": torch.zeros(1)}, "hold conv_in.weight, unknown here"),
        (state | {query: torch.zeros(2, 2)}, r"another size, .* \(2, 2\) not \(16, 16\)"),
    ):
        with pytest.raises(TunedStateError, match=message):
            load_tuned(unet, {name: value + 1 for name, value in spoilt.items()})
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
