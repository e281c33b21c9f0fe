"""What a run may do to need less memory. Each trades time, or rounding, for room; ``memory=8gb`` and its like set them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tave.config import MemoryOptions, OptionError, choice, within

log = logging.getLogger(__name__)

HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # trainer.precision -> what autocast works in


def hold(network: nn.Module, dtype: torch.dtype) -> None:
    """Bring linear and convolution layers none of whose parameters train to ``dtype``, in place.

    Norms stay as they are: they are small, and autocast works in float32 there.
    """
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(parameter.requires_grad for parameter in own.values()):
            for name, parameter in own.items():
                module.register_parameter(name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


@contextmanager
def at_work(part: nn.Module, device: torch.device, offload: bool = False) -> Iterator[None]:
    """``part`` on ``device`` within the block, in its own precision whatever the surroundings' autocast.

    With ``offload`` it goes back to the CPU's memory afterwards.
    """
    part.to(device)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if offload:
            part.to("cpu")


def in_chunks(function: Callable[[Tensor], Tensor], pictures: Tensor, chunk: int) -> Tensor:
    """``function`` of `n ...`, ``chunk`` of them at a time, put together again along `n`."""
    return torch.cat([function(part) for part in pictures.split(chunk)])


def use_tiles(vae: AutoencoderKL, side: int | None) -> None:
    """Let the autoencoder work on frames larger than ``side`` pixels tile by tile, blended at their seams.

    The norms then see one tile instead of the frame, so the result differs a little. None: whole frames.
    """
    if side is None:
        vae.disable_tiling()
        return
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if side % factor:
        raise OptionError(f"memory.tile={side}: make it a multiple of {factor}, the pixels of a latent cell")
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor


def has_8bit() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def adamw(parameters: Iterable[nn.Parameter], kind: str, lr: float, weight_decay: float) -> Optimizer:
    """AdamW in one of its forms: ``adamw``, ``fused`` (no copies while it steps), or ``8bit`` (moments in bytes)."""
    choice("memory.optimizer", kind, ("adamw", "fused", "8bit"))
    if kind == "8bit":
        if has_8bit():
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

            return AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)
        log.warning("memory.optimizer=8bit needs bitsandbytes, which is not installed: the ordinary AdamW stands in for it")
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True if kind == "fused" else None)
