from __future__ import annotations

import copy
import pickle

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from tave.attention import KV_FRAMES
from tave.backbone import Backbone
from tave.conditions import Condition
from tave.denoiser import Denoiser
from tave.inflate import (
    TRAINABLES,
    InflatedBlock,
    InflationError,
    InflationOptions,
    TunedStateError,
    add_lora,
    frames_of,
    inflate,
    load_tuned,
    select_trainables,
    tuned_state,
)
from tave.options import OptionError

FRAMES = 3


def latents(frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(1, frames, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def step(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, lr: float = 1e-3) -> None:
    """One step of Adam on whatever trains; gradients stay to be looked at."""
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    unet.zero_grad()
    Denoiser(unet, tiny.scheduler).output(latents(), torch.tensor([400]), condition).square().mean().backward()
    torch.optim.Adam(trained, lr=lr).step()


@pytest.mark.parametrize("kv_frames", KV_FRAMES)
@pytest.mark.parametrize("position", ["none", "sinusoidal"])
@torch.no_grad()
def test_a_still_clip_gives_the_image_networks_answer(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, kv_frames: str, position: str
):
    still = latents(1).expand(-1, FRAMES, -1, -1, -1)
    image = Denoiser(tiny.unet, tiny.scheduler)(still, 500, condition).noise
    clip = Denoiser(inflate(unet, FRAMES, InflationOptions(kv_frames, position)), tiny.scheduler)
    assert float((clip(still, 500, condition).noise - image).abs().max()) <= 1e-5


@torch.no_grad()
def test_one_frame_gives_the_image_networks_answer(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    image = Denoiser(tiny.unet, tiny.scheduler)(latents(1), 500, condition).noise
    clip = Denoiser(inflate(unet, 1), tiny.scheduler)(latents(1), 500, condition).noise
    assert float((clip - image).abs().max()) <= 1e-5


@torch.no_grad()
def test_a_moving_clip_is_seen_as_one(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    """Frame 0 sees itself alone, so it keeps its answer; later frames see frame 0, so theirs changes."""
    image = Denoiser(tiny.unet, tiny.scheduler)(latents(), 500, condition).noise
    clip = Denoiser(inflate(unet, FRAMES), tiny.scheduler)(latents(), 500, condition).noise
    assert torch.allclose(clip[:, 0], image[:, 0], atol=1e-5) and not torch.allclose(clip[:, 1], image[:, 1], atol=1e-3)


def test_pretrained_names_survive(tiny: Backbone, unet: UNet2DConditionModel):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    after = inflate(unet, FRAMES).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(".temporal." in name for name in after.keys() - before.keys())
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert frames_of(unet) == FRAMES and frames_of(tiny.unet) is None


def test_inflation_draws_nothing(unet: UNet2DConditionModel):
    other = copy.deepcopy(unet)
    first = inflate(unet, FRAMES).state_dict()
    torch.rand(7)
    assert all(torch.equal(first[name], value) for name, value in inflate(other, FRAMES).state_dict().items())


def test_inflated_unet_can_be_copied_and_pickled(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    inflate(unet, FRAMES)
    answer = Denoiser(unet, tiny.scheduler)(latents(), 500, condition).noise
    for other in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert torch.allclose(Denoiser(other, tiny.scheduler)(latents(), 500, condition).noise, answer, atol=1e-4)


def test_what_can_not_be_inflated_is_refused(unet: UNet2DConditionModel):
    inflate(unet, FRAMES)
    with pytest.raises(InflationError, match="inflated for 3 frames already"):
        inflate(unet, 5)
    with pytest.raises(InflationError, match="no transformer blocks"):
        inflate(nn.Linear(2, 2), 5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="frames=0"):
        inflate(unet, 0)
    with pytest.raises(OptionError, match=r"inflation\.kv_frames='next'"):
        InflationOptions(kv_frames="next")


def test_gradient_reaches_a_silent_temporal_attention(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    select_trainables(inflate(unet, FRAMES), "patent")
    layers = [module.temporal for module in unet.modules() if isinstance(module, InflatedBlock)]
    step(tiny, unet, condition)
    for layer in layers:
        assert layer.to_out.weight.grad is not None and layer.to_out.weight.grad.any()
        assert layer.to_q.weight.grad is not None and not layer.to_q.weight.grad.any()  # behind a zero
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
    expected = [n for n, _ in unet.named_parameters() if ".transformer_blocks." in n and any(w in n for w in wanted)]
    assert names == expected
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    step(tiny, unet, condition)
    step(tiny, unet, condition)  # in the first one, what lies behind a zero stands still
    moved = {name for name, parameter in unet.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(names)


def test_none_freezes_all_and_a_typo_is_named(unet: UNet2DConditionModel):
    assert select_trainables(inflate(unet, FRAMES), "none") == []
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    with pytest.raises(OptionError, match="trainables='patents'"):
        select_trainables(unet, "patents")


@torch.no_grad()
def test_lora_starts_silent_and_keeps_the_base(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    inflate(unet, FRAMES)
    before, answer = unet.state_dict(), Denoiser(unet, tiny.scheduler)(latents(), 500, condition).noise
    select_trainables(unet, "lora", lora_rank=2)
    after = unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    added = after.keys() - before.keys()
    blocks = sum(isinstance(module, InflatedBlock) for module in unet.modules())
    assert len(added) == blocks * 2 * 4 * 2 and all(2 in after[name].shape for name in added)
    assert torch.equal(Denoiser(unet, tiny.scheduler)(latents(), 500, condition).noise, answer)
    assert select_trainables(unet, "lora", lora_rank=2)  # the same ones again
    with pytest.raises(InflationError, match="rank 2 already"):
        add_lora(unet, 4)


@pytest.mark.parametrize("trainables", [name for name in TRAINABLES if name != "none"])
def test_tuned_weights_return(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, trainables: str):
    other = inflate(copy.deepcopy(unet), FRAMES)
    select_trainables(inflate(unet, FRAMES), trainables)
    step(tiny, unet, condition)
    state = tuned_state(unet)
    assert {name for name in state if "temporal" not in name} == {
        name for name, parameter in unet.named_parameters() if parameter.requires_grad and "temporal" not in name
    }
    load_tuned(other, state)
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in unet.state_dict().items())
    with torch.no_grad():
        answers = [Denoiser(u, tiny.scheduler)(latents(), 500, condition).noise for u in (unet, other)]
    assert torch.allclose(*answers, atol=1e-4)  # not bit for bit: kernels go by where the weights lie in memory


def test_tuned_weights_are_a_copy_with_all_that_was_added(unet: UNet2DConditionModel):
    select_trainables(inflate(unet, FRAMES), "none")
    state = tuned_state(unet)
    assert state and all(".temporal." in name for name in state)
    name = next(iter(state))
    state[name].add_(1)
    assert not torch.equal(dict(unet.named_parameters())[name], state[name])


def test_tuned_weights_fit_another_number_of_frames(unet: UNet2DConditionModel):
    longer = inflate(copy.deepcopy(unet), 2 * FRAMES, InflationOptions(position="sinusoidal"))
    load_tuned(longer, tuned_state(inflate(unet, FRAMES, InflationOptions(position="sinusoidal"))))


def test_tuned_weights_that_do_not_fit_are_refused(tiny: Backbone, unet: UNet2DConditionModel):
    plain = copy.deepcopy(unet)
    select_trainables(inflate(unet, FRAMES), "patent")
    state, before = tuned_state(unet), {name: value.clone() for name, value in unet.state_dict().items()}
    query = next(name for name in state if "attn1.to_q" in name)
    temporal = next(name for name in state if "temporal" in name)

    def refused(spoilt: dict[str, torch.Tensor], message: str) -> None:
        with pytest.raises(TunedStateError, match=message):
            load_tuned(unet, {name: value + 1 for name, value in spoilt.items()})

    refused({n: v for n, v in state.items() if n != temporal}, rf"lack {temporal}: use the whole file")
    refused({n: v for n, v in state.items() if n != query}, rf"lack {query}")  # a kind that only some blocks bring
    refused({n: v for n, v in state.items() if "temporal" not in n}, r"lack .* and \d+ more")
    refused(state | {"conv_in.weight": torch.zeros(1)}, "hold conv_in.weight, unknown here")
    refused(state | {query: torch.zeros(2, 2)}, r"another size, .* \(2, 2\) not \(16, 16\)")
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    with pytest.raises(TunedStateError, match="inflate the UNet"):
        load_tuned(plain, state)


def test_gradient_checkpointing_gives_the_same_gradients(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    select_trainables(inflate(unet, FRAMES), "patent")
    for module in unet.modules():
        if isinstance(module, InflatedBlock):
            nn.init.constant_(module.temporal.to_out.weight, 0.05)
    other = copy.deepcopy(unet)
    other.enable_gradient_checkpointing()
    step(tiny, unet, condition, lr=0)
    step(tiny, other, condition, lr=0)
    for (name, mine), theirs in zip(unet.named_parameters(), other.parameters(), strict=True):
        if mine.requires_grad:
            assert mine.grad is not None and theirs.grad is not None, name
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6), name


def test_an_inflated_block_compiles_into_one_graph(unet: UNet2DConditionModel, condition: Condition):
    inflate(unet, FRAMES)
    block = next(module for module in unet.modules() if isinstance(module, InflatedBlock))
    states = torch.randn(2 * FRAMES, 16, block.dim)
    text = condition.text.expand(2 * FRAMES, -1, -1)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.equal(compiled(states, encoder_hidden_states=text), block(states, encoder_hidden_states=text))
    assert unet._repeated_blocks == ["InflatedBlock"]
