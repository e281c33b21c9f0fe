"""Where the source prompt's own words look: cross-attention as evidence of the source object (METHOD 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tave.conditions import Condition, text_tokens
from tave.denoiser import Denoiser


def words_of(prompt: str) -> set[str]:
    """The words of a prompt; case is ignored."""
    return set(re.findall(r"\w+", prompt.lower()))


def missing_tokens(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> list[int]:
    """Positions `l`, in the encoded source prompt, of words that the target prompt lacks; case is ignored.

    Empty where the target prompt has them all. The tokenizer must know character offsets (a "fast" one).
    """
    kept = words_of(target)
    lost = [word.span() for word in re.finditer(r"\w+", source) if word.group().lower() not in kept]
    encoded = tokenizer(source, truncation=True, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]  # type: ignore[assignment]
    return [
        position
        for position, (start, stop) in enumerate(offsets)  # special tokens have no extent
        if any(start < end and begin < stop for begin, end in lost) and start < stop
    ]


def attention_evidence(denoiser: Denoiser, condition: Condition, tokens: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
    """A function (latents `b f c h w`, t) -> `b f 1 h w` in [0, 1]: how much each cell looks at ``tokens``.

    It runs the denoiser once under ``condition`` (guidance 1) and reads the probabilities of every
    cross-attention layer: summed over ``tokens``, averaged over heads, brought to the latent grid, averaged
    over layers. The network's answers and processors stay as they were. No tokens, no forward: zeros.
    """

    def evidence(latents: Tensor, t: int) -> Tensor:
        b, f, _, h, w = latents.shape
        if not tokens:
            return latents.new_zeros(b, f, 1, h, w)
        with torch.no_grad(), denoiser.hooked(within_blocks=True), recorded(denoiser.unet, tokens) as maps:
            denoiser(latents, t, condition)
        grids = [cells.unflatten(1, _grid(cells.shape[1], h, w))[:, None] for cells in maps]
        layers = [interpolate(grid, (h, w), mode="bilinear") for grid in grids]
        return torch.stack(layers).mean(0).unflatten(0, (b, f))

    return evidence


@contextmanager
def recorded(unet: UNet2DConditionModel, tokens: Sequence[int]) -> Iterator[list[Tensor]]:
    """Within the block each cross-attention layer appends its map `(b f) n`; after it all is as before."""
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2") and isinstance(m, Attention)]
    before = [layer.processor for layer in layers]
    maps: list[Tensor] = []
    try:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(_Recorder(processor, tokens, maps))  # type: ignore[arg-type]
        yield maps
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


class _Recorder:
    """Reads the probabilities beside the processor that computes the answer, which stays as it was."""

    def __init__(self, inner: Any, tokens: Sequence[int], maps: list[Tensor]) -> None:
        self.inner, self.tokens, self.maps = inner, list(tokens), maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        assert attn.to_k is not None  # cross-attention always has one
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(text_tokens(encoder_hidden_states)))
        probabilities = attn.get_attention_scores(query, key)[..., self.tokens].float()  # (b f heads) n l
        self.maps.append(probabilities.sum(-1).unflatten(0, (-1, attn.heads)).mean(1))
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)


def _grid(cells: int, h: int, w: int) -> tuple[int, int]:
    """The level of the network that has ``cells`` cells: each halves the grid above it, rounding up."""
    while h * w > cells:
        h, w = (h + 1) // 2, (w + 1) // 2
    return h, w
