"""ST-Attn and T-Attn against the library's plain attention."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from fakes import draw

import tave.attention
from tave.attention import SparseCausalAttention, TemporalAttention

FRAMES, CELLS, WIDTH = 3, 6, 16
CLIP = draw(FRAMES, CELLS, WIDTH, dtype=torch.float32)
BRANCHES = draw(2, FRAMES, CELLS, WIDTH, seed=1, dtype=torch.float32)


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
def test_frames_attend_to_the_named_frames(kv_frames: str, sources: list[list[int]]):
    """Against plain attention over concatenated frames, two branches folded as `(b f)`."""
    attn = block().attn1
    seen = [torch.cat([BRANCHES[:, j] for j in frames], dim=1) for frames in sources]
    expected = [attn(BRANCHES[:, i], encoder_hidden_states=cells) for i, cells in enumerate(seen)]
    attn.set_processor(SparseCausalAttention(FRAMES, kv_frames))  # type: ignore[arg-type]
    assert torch.allclose(attn(BRANCHES.flatten(0, 1)), torch.stack(expected, 1).flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("kv_frames", tave.attention.KV_FRAMES)
def test_a_still_clip_gets_plain_self_attention(kv_frames: str):
    attn, still = block().attn1, CLIP[:1].expand(FRAMES, -1, -1)
    assert isinstance(attn.processor, AttnProcessor2_0)
    plain = attn(still)
    attn.set_processor(SparseCausalAttention(FRAMES, kv_frames))  # type: ignore[arg-type]
    assert torch.allclose(attn(still), plain, atol=1e-5)


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
    clip = CLIP.to(attn.to_q.weight.dtype)  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert attn(clip).dtype == torch.bfloat16
        temporal(clip)
    assert set(seen) == {torch.float32 if upcast else torch.bfloat16} and len(seen) == 2


@torch.no_grad()
def test_temporal_attention_runs_over_the_frames_of_each_cell():
    """Against the library's attention, cell by cell, two branches folded as `(b f)`; zero at first."""
    temporal = TemporalAttention(block(), FRAMES)
    assert torch.equal(temporal(CLIP), CLIP)
    torch.nn.init.normal_(temporal.to_out.weight)
    torch.nn.init.normal_(temporal.to_out.bias)
    attn = Attention(WIDTH, heads=2, dim_head=8)
    names = {name.replace("to_out.", "to_out.0."): value for name, value in temporal.state_dict().items()}
    attn.load_state_dict({name: value for name, value in names.items() if "norm" not in name})
    cells = [BRANCHES[:, :, n] + attn(temporal.norm(BRANCHES[:, :, n])) for n in range(CELLS)]
    assert torch.allclose(temporal(BRANCHES.flatten(0, 1)), torch.stack(cells, dim=2).flatten(0, 1), atol=1e-5)
