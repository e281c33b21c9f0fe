"""Saving memory: half-precision weights, offloading, chunks, tiles, optimizers; presets are in ``conf/memory``."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tave.config import MemoryOptions, OptionError
from tave.scratch import Scratch

log = logging.getLogger(__name__)

HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # trainer.precision -> the type that autocast uses


def held(options: MemoryOptions, precision: str) -> torch.dtype:
    """The type of frozen weights under ``trainer.precision``."""
    options.check(precision)
    return torch.float32 if options.weights == "full" else HALVES[precision]


def rounding(options: MemoryOptions, precision: str) -> list[str]:
    """The settings that change results by more than the order of sums, for cache keys; empty for plain float32."""
    found = [f"precision={precision}"] if precision in HALVES else []
    found += ["weights=half"] if options.weights == "half" else []
    found += [f"tile={options.tile}"] if options.tile else []
    return found + (["optimizer=8bit"] if options.optimizer == "8bit" and has_8bit() else [])


def preset_note(options: MemoryOptions, precision: str, has_gpu: bool) -> str | None:
    """One line with the remedy if settings that are made for a GPU are used without one; None otherwise."""
    settings = {
        "trainer.precision": precision,
        "memory.weights": options.weights,
        "memory.optimizer": options.optimizer,
    }
    plain = ("32-true", "full", "adamw")
    slow = [f"{key}={value}" for key, value in settings.items() if value not in plain]
    if has_gpu or not slow:
        return None
    return f"{', '.join(slow)}: made for a GPU, can be very slow on this CPU; set memory=full"


def hold(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert linear and convolution layers none of whose parameters train to ``dtype``, in place.

    Norms keep their type: they are small, and autocast computes them in float32.
    """
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(parameter.requires_grad for parameter in own.values()):
            for name, parameter in own.items():
                module.register_parameter(name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


@contextmanager
def at_work(part: nn.Module, device: torch.device, offload: bool = False) -> Iterator[None]:
    """Keep ``part`` on ``device`` within the block, with autocast off; ``offload`` returns it to the CPU afterwards."""
    part.to(device)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if offload:
            part.to("cpu")


def in_chunks(
    function: Callable[[Tensor], Tensor], pictures: Tensor, chunk: int, scratch: Scratch = Scratch()
) -> Tensor:
    """Apply ``function`` to `n ...`, ``chunk`` of them at a time; the results `n ...`, on the CPU."""
    return scratch.of(lambda span: function(pictures[span]), len(pictures), chunk)


def use_tiles(vae: AutoencoderKL, side: int | None) -> None:
    """Let the autoencoder process frames larger than ``side`` pixels in blended tiles; None: whole frames.

    Norms then see one tile instead of the frame, so the result differs a little.
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
    """AdamW of a ``memory.optimizer``: adamw, fused (no copies while it steps) or 8bit (8-bit moments)."""
    if kind == "8bit":
        if has_8bit():
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

            return AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)
        log.warning("memory.optimizer=8bit needs bitsandbytes, which is not installed: using AdamW in float32")
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True if kind == "fused" else None)
