from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

import tave.attention
from tave.attention import SparseCausalAttention, TemporalAttention, frame_positions
from tave.options import OptionError

FRAMES, CELLS, WIDTH = 3, 6, 16


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def block(**settings) -> BasicTransformerBlock:
    return BasicTransformerBlock(WIDTH, 2, 8, cross_attention_dim=12, **settings).eval()


@pytest.mark.parametrize(
    ("kv_frames", "sources"),
    [
        ("first_previous", [[0, 0], [0, 0], [0, 1]]),
        ("previous_current", [[0, 0], [0, 1], [1, 2]]),
        ("first_previous_current", [[0, 0, 0], [0, 0, 1], [0, 1, 2]]),
    ],
)
def test_frames_see_the_frames_they_should(kv_frames: str, sources: list[list[int]]):
    """Against plain attention over explicitly concatenated frames, two branches folded as `(b f)`."""
    attn, clip = block().attn1, torch.randn(2, FRAMES, CELLS, WIDTH)
    expected = torch.stack(
        [
            attn(clip[:, i], encoder_hidden_states=torch.cat([clip[:, j] for j in seen], dim=1))
            for i, seen in enumerate(sources)
        ],
        dim=1,
    )
    attn.set_processor(SparseCausalAttention(FRAMES, kv_frames))  # type: ignore[arg-type]
    assert torch.allclose(attn(clip.flatten(0, 1)), expected.flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("kv_frames", tave.attention.KV_FRAMES)
def test_a_still_clip_gets_plain_self_attention(kv_frames: str):
    attn, frame = block().attn1, torch.randn(1, CELLS, WIDTH)
    plain = attn(frame)
    assert isinstance(attn.processor, AttnProcessor2_0)
    attn.set_processor(SparseCausalAttention(FRAMES, kv_frames))  # type: ignore[arg-type]
    assert torch.allclose(attn(frame.expand(FRAMES, -1, -1)), plain.expand(FRAMES, -1, -1), atol=1e-5)


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_upcast_attention_is_honoured(monkeypatch: pytest.MonkeyPatch, upcast: bool, autocast: bool):
    seen, genuine = [], tave.attention.scaled_dot_product_attention

    def spy(query: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        out = genuine(query, *args, **kwargs)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(tave.attention, "scaled_dot_product_attention", spy)
    made = block(upcast_attention=upcast).to(torch.float32 if autocast else torch.bfloat16)
    temporal, attn = TemporalAttention(made, FRAMES), made.attn1
    attn.set_processor(SparseCausalAttention(FRAMES))  # type: ignore[arg-type]
    clip = torch.randn(FRAMES, CELLS, WIDTH).to(attn.to_q.weight.dtype)  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert attn(clip).dtype == torch.bfloat16
        temporal(clip)
    assert set(seen) == {torch.float32 if upcast else torch.bfloat16} and len(seen) == 2


def speaking(position: str = "none") -> TemporalAttention:
    """T-Attn whose output projection has learnt something."""
    temporal = TemporalAttention(block(), FRAMES, position)
    torch.nn.init.normal_(temporal.to_out.weight)
    torch.nn.init.normal_(temporal.to_out.bias)
    return temporal


@torch.no_grad()
def test_temporal_attention_runs_over_the_frames_of_each_cell():
    """Against the library's attention, cell by cell, two branches folded as `(b f)`."""
    temporal, clip = speaking(), torch.randn(2, FRAMES, CELLS, WIDTH)
    attn = Attention(WIDTH, heads=2, dim_head=8)
    attn.load_state_dict(
        {
            "to_q.weight": temporal.to_q.weight,
            "to_k.weight": temporal.to_k.weight,
            "to_v.weight": temporal.to_v.weight,
            "to_out.0.weight": temporal.to_out.weight,
            "to_out.0.bias": temporal.to_out.bias,
        }
    )
    cells = [clip[:, :, n] + attn(temporal.norm(clip[:, :, n])) for n in range(CELLS)]
    assert torch.allclose(temporal(clip.flatten(0, 1)), torch.stack(cells, dim=2).flatten(0, 1), atol=1e-5)


@torch.no_grad()
def test_only_a_position_tells_the_frames_apart():
    clip = torch.randn(FRAMES, CELLS, WIDTH)
    blind, seeing = speaking(), speaking("sinusoidal")
    assert torch.allclose(blind(clip.flip(0)), blind(clip).flip(0), atol=1e-5)
    assert not torch.allclose(seeing(clip.flip(0)), seeing(clip).flip(0), atol=1e-2)


def test_temporal_attention_starts_silent():
    clip = torch.randn(FRAMES, CELLS, WIDTH)
    assert torch.equal(TemporalAttention(block(), FRAMES, "sinusoidal")(clip), clip)


def test_positions_are_no_weights():
    assert set(speaking("sinusoidal").state_dict()) == set(speaking().state_dict())
    table = frame_positions(4, 5)
    assert table.shape == (4, 5) and torch.equal(table[0], torch.tensor([0.0, 1, 0, 1, 0]))


def test_unknown_switches_are_named():
    with pytest.raises(OptionError, match="kv_frames='all'"):
        SparseCausalAttention(FRAMES, "all")
    with pytest.raises(OptionError, match="position='learnt'"):
        TemporalAttention(block(), FRAMES, "learnt")
