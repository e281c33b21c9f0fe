"""2D UNet -> clip-aware UNet, in place and without a fork, and which of its parameters train (docs/method.md, sections
2 and 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import linear

from tave.attention import SparseCausalAttention, TemporalAttention, projections
from tave.config import choice, within

# what trains, as patterns of a parameter's name within its transformer block; the T-Attn's norm is part of T-Attn
TRAINABLES = {
    "patent": r"attn[12]\.to_q\.weight|temporal\..*",
    "temporal_only": r"temporal\..*",
    "all_attention": r"attn[12]\.(?!.*\.lora_).*|temporal\..*",
    "none": r"(?!)",
    "lora": r"attn[12]\..*\.lora_(down|up)|temporal\..*",
}
TUNABLE = re.compile(r"(attn[12]|temporal)\..*")
ADDED = re.compile(r"temporal\..*|attn[12]\..*\.lora_(down|up)")  # what the image network doesn't have


class InflationError(ValueError):
    """A UNet that can't be inflated, or not again."""


class TunedStateError(ValueError):
    """Tuned weights that don't belong to this UNet."""


class InflatedBlock(BasicTransformerBlock):
    """diffusers' block followed by T-Attn. Blocks are changed by assigning their class, so every pretrained key keeps
    its name.
    """

    temporal: TemporalAttention

    def forward(self, *args, **kwargs) -> Tensor:
        """`(b f) n d` -> `(b f) n d`; takes what the library's block takes."""
        return self.temporal(super().forward(*args, **kwargs))


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank addition. Layers are changed by assigning their class, so ``weight`` keeps its
    name.
    """

    lora_down: nn.Parameter  # r d_in
    lora_up: nn.Parameter  # d_out r, zero at first

    def forward(self, states: Tensor) -> Tensor:
        """`... d_in` -> `... d_out`."""
        return super().forward(states) + linear(linear(states, self.lora_down), self.lora_up)


def inflate(unet: UNet2DConditionModel, frames: int, kv_frames: str = "first_previous") -> UNet2DConditionModel:
    """Make ``unet`` aware of clips of ``frames`` frames, in place, and return it.

    At step 0 its output for a still clip, or one frame, is the image network's. New parameters are frozen like the
    rest: :func:`select_trainables` decides what trains. Raises :class:`InflationError` for a UNet that is inflated
    already.
    """
    within("frames", frames, 1, 100_000)
    blocks = _blocks(unet)
    if not blocks:
        raise InflationError("the UNet has no transformer blocks to inflate: use the UNet of an SD-unCLIP backbone")
    if (inflated := frames_of(unet)) is not None:
        raise InflationError(
            f"the UNet is inflated for {inflated} frames already: load it again to inflate it for {frames}"
        )
    if any(block.only_cross_attention for block in blocks):
        raise InflationError("the UNet has blocks without self-attention: use the UNet of an SD-unCLIP backbone")
    for block in blocks:
        block.attn1.set_processor(SparseCausalAttention(frames, kv_frames))  # type: ignore[arg-type]
        temporal = TemporalAttention(block, frames).train(block.training)
        block.add_module("temporal", temporal.requires_grad_(False))
        block.__class__ = InflatedBlock
    unet._repeated_blocks = [InflatedBlock.__name__]  # the library's compile_repeated_blocks goes by class name
    return unet


def compile_blocks(unet: UNet2DConditionModel, backend: str = "inductor") -> None:
    """``torch.compile`` each transformer block, in place; names, hooks on other parts and checkpointing stay as they
    are.

    The first step of each kind takes minutes to compile on a CPU, so it pays off for long tunings and large frames. The
    inductor backend needs a C++ compiler on the CPU, and Triton on a GPU.
    """
    # all blocks share one forward, and each width, number of branches and gradient mode is a graph of its own
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    unet.compile_repeated_blocks(backend=backend, fullgraph=True)


def compiled_blocks(unet: nn.Module) -> bool:
    """Whether :func:`compile_blocks` was applied."""
    return any(getattr(block, "_compiled_call_impl", None) is not None for block in _blocks(unet))


def frames_of(unet: nn.Module) -> int | None:
    """The number of frames that ``unet`` was inflated for, None for an image network."""
    return next((m.frames for m in unet.modules() if isinstance(m, TemporalAttention)), None)


def select_trainables(
    unet: UNet2DConditionModel, trainables: str, lora_rank: int = 4, generator: torch.Generator | None = None
) -> list[str]:
    """Let exactly the parameters named by ``trainables`` train, freeze all others, and return their names.

    patent: Q of ST-Attn and of C-Attn and all of T-Attn; temporal_only: T-Attn; all_attention: ST-Attn, C-Attn and
    T-Attn whole; none; lora: T-Attn, and low-rank additions of ``lora_rank`` to the Q, K, V and output projections of
    the others, one half drawn from ``generator`` (seed 0 by default) and the other zero.
    """
    choice("trainables", trainables, tuple(TRAINABLES))
    if trainables == "lora":
        add_lora(unet, lora_rank, generator)
    unet.requires_grad_(False)
    pattern, chosen = re.compile(TRAINABLES[trainables]), []
    for name, parameter in unet.named_parameters():
        if pattern.fullmatch(_role(name)):
            parameter.requires_grad_(True)
            chosen.append(name)
    return chosen


def add_lora(unet: UNet2DConditionModel, rank: int, generator: torch.Generator | None = None) -> None:
    """Give each projection of `attn1` and `attn2` a low-rank addition that is zero at first; what has one keeps it.

    Raises :class:`InflationError` if there is one of another rank.
    """
    within("lora_rank", rank, 1, 1024)
    generator = generator or torch.Generator().manual_seed(0)
    for attn in (attn for block in _blocks(unet) for attn in (block.attn1, block.attn2) if attn is not None):
        for layer in projections(attn)[:4]:
            if not isinstance(layer, LoraLinear):
                down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
                up = layer.weight.new_zeros(layer.out_features, rank)
                layer.register_parameter("lora_down", nn.Parameter(down.to(layer.weight), requires_grad=False))
                layer.register_parameter("lora_up", nn.Parameter(up, requires_grad=False))
                layer.__class__ = LoraLinear
            elif len(layer.lora_down) != rank:
                raise InflationError(
                    f"the UNet has a LoRA of rank {len(layer.lora_down)} already: set lora_rank to that"
                )


def tuned_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train and all that inflation and LoRA added."""
    return {
        name: parameter
        for name, parameter in unet.named_parameters()
        if parameter.requires_grad or ADDED.fullmatch(_role(name))
    }


def tuned_state(unet: nn.Module) -> dict[str, Tensor]:
    """Copies of the :func:`tuned_parameters`."""
    return {name: parameter.detach().clone().contiguous() for name, parameter in tuned_parameters(unet).items()}


def load_tuned(unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> None:
    """Put a :func:`tuned_state` into an inflated UNet, which gets LoRA layers if the state holds some.

    Raises :class:`TunedStateError`, before any weight is written, for a name that can't be tuned, a shape that doesn't
    fit, T-Attn (or LoRA) weights that are missing, a kind of weight that only some blocks have, another type than that
    of a weight that trains, or a value that is not finite.
    """
    ranks = {len(value) for name, value in state.items() if name.endswith("lora_down") and value.ndim == 2}
    if len(ranks) == 1 and not any(isinstance(module, LoraLinear) for module in unet.modules()):
        add_lora(unet, ranks.pop())
    own = {name: p for name, p in unet.named_parameters() if TUNABLE.fullmatch(_role(name))}
    roles = {_role(name) for name in state}
    due = {name for name in own if ADDED.fullmatch(_role(name)) or _role(name) in roles}
    if unexpected := sorted(set(state) - set(own)):
        raise TunedStateError(
            f"tuned weights hold {_list(unexpected)}, unknown here: inflate the UNet they were tuned on"
        )
    if missing := sorted(due - set(state)):
        raise TunedStateError(f"tuned weights lack {_list(missing)}: use the whole file that the tuning saved")
    wrong = [f"{n} {tuple(v.shape)} not {tuple(own[n].shape)}" for n, v in state.items() if v.shape != own[n].shape]
    if wrong:
        raise TunedStateError(f"tuned weights of another size, {_list(wrong)}: use the backbone they were tuned on")
    # what doesn't train may be held in half precision here (memory.weights)
    wrong = [
        f"{n} {v.dtype} not {own[n].dtype}"
        for n, v in state.items()
        if v.dtype != own[n].dtype and (own[n].requires_grad or not v.is_floating_point())
    ]
    if wrong:
        raise TunedStateError(f"tuned weights of another type, {_list(wrong)}: use the file that the tuning saved")
    if wrong := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise TunedStateError(f"tuned weights that are not finite, {_list(wrong)}: tune again with a lower tuning.lr")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def _blocks(unet: nn.Module) -> list[BasicTransformerBlock]:
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


def _role(name: str) -> str:
    """A parameter's name within its transformer block; '' outside of one."""
    return re.sub(r"^.*\.transformer_blocks\.\d+\.", "", name) if ".transformer_blocks." in name else ""


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
