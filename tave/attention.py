"""The two layers that a clip adds to an image network: ST-Attn and T-Attn (docs/method.md, section 2).

Frames come folded into the batch, branch by branch: `(b f) n d` with `n` latent cells.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tave.config import KV_FRAMES, choice


class SparseCausalAttention:
    """ST-Attn, as a processor of `attn1`: the cells of frame i attend to the cells of a few other frames.

    frames: frames of one branch; kv_frames: which of them give keys and values. Frame 0 is its own predecessor.
    The cost is linear in the number of frames. For a still clip the output equals plain self-attention.
    """

    def __init__(self, frames: int, kv_frames: str = "first_previous") -> None:
        choice("kv_frames", kv_frames, KV_FRAMES)
        self.frames, self.kv_frames = frames, kv_frames

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """`(b f) n d` -> `(b f) n d`. The other arguments belong to the processor interface and are unused in
        `attn1`.
        """
        to_q, to_k, to_v, to_out, dropout = projections(attn)
        # projected once, gathered after: no frame is projected twice
        key, value = self.gather(to_k(hidden_states)), self.gather(to_v(hidden_states))
        return dropout(to_out(attend(to_q(hidden_states), key, value, attn.heads, attn.scale, attn.upcast_attention)))

    def gather(self, states: Tensor) -> Tensor:
        """`(b f) n d` -> `(b f) k*n d`, the cells of the k frames that each frame attends to."""
        clip = states.unflatten(0, (-1, self.frames))  # b f n d
        seen = {
            "first": clip[:, :1].expand_as(clip),
            "previous": torch.cat([clip[:, :1], clip[:, :-1]], dim=1),
            "current": clip,
        }
        return torch.cat([seen[name] for name in self.kv_frames.split("_")], dim=2).flatten(0, 1)


class TemporalAttention(nn.Module):
    """T-Attn: each cell attends over the frames, `(b f) n d` -> the same, with a residual.

    It is initialised from the block's own self-attention and norm, except for the output projection: its weight and
    bias are zero, so that at step 0 the block's output is unchanged.
    """

    def __init__(self, block: BasicTransformerBlock, frames: int) -> None:
        super().__init__()
        attn, spatial = block.attn1, projections(block.attn1)[:3]
        like = {"device": spatial[0].weight.device, "dtype": spatial[0].weight.dtype}
        width, inner = attn.query_dim, attn.inner_dim
        self.frames, self.heads, self.scale, self.upcast = frames, attn.heads, attn.scale, attn.upcast_attention
        self.norm = nn.LayerNorm(width, eps=1e-5, **like)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False, **like) for _ in range(3))
        self.to_out = nn.Linear(inner, width, **like)
        with torch.no_grad():
            for own, copied in zip((self.to_q, self.to_k, self.to_v), spatial, strict=True):
                own.weight.copy_(copied.weight)
            if isinstance(block.norm1, nn.LayerNorm) and block.norm1.elementwise_affine:
                self.norm.load_state_dict(block.norm1.state_dict())
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b f) n d` -> `(b f) n d`."""
        b, n = hidden_states.shape[0] // self.frames, hidden_states.shape[1]
        normed = self.norm(hidden_states).unflatten(0, (b, self.frames)).transpose(1, 2).flatten(0, 1)  # (b n) f d
        out = attend(self.to_q(normed), self.to_k(normed), self.to_v(normed), self.heads, self.scale, self.upcast)
        out = self.to_out(out).unflatten(0, (b, n)).transpose(1, 2).flatten(0, 1)  # (b f) n d
        return hidden_states + out


def projections(attn: Attention) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear, nn.Module]:
    """The Q, K, V and output projections of a block's attention, and its dropout."""
    to_out, dropout = cast(nn.ModuleList, attn.to_out)
    return cast(tuple, (attn.to_q, attn.to_k, attn.to_v, to_out, dropout))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float, upcast: bool) -> Tensor:
    """Multi-head attention of `m n d` queries over `m k d` keys and values -> `m n d` in the queries' dtype.

    upcast: work in float32 whatever the surrounding precision (SD 2.1's logits overflow half precision).
    """
    dtype = query.dtype
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # m heads . d/heads
    if upcast and dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(query.device.type, enabled=False):
            out = scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale)
    else:
        out = scaled_dot_product_attention(query, key, value, scale=scale)
    return out.transpose(1, 2).flatten(2).to(dtype)
