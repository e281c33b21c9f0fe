"""``memory=auto``: what is done for a run to fit its device, by counted sums, without changing its result."""

from __future__ import annotations

import logging
import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tave.config import MemoryOptions

if TYPE_CHECKING:
    import torch

    from tave.backbone import Backbone
    from tave.counting import Shapes

log = logging.getLogger(__name__)

GIB = 2**30
LIBRARIES = 1.5 * GIB  # upper bound of what is not counted: context, workspaces, fragmentation
# What a tuning of the full-size UNets stores for the backward pass, per latent cell and frame in float32 (counted,
# docs/memory.md: 14.7 to 15.7 GiB for 8 x 64 x 64 cells), doubled for the other sums. Smaller networks store less.
PER_CELL = 2**20
# Added one after another. None changes the precision; the last two change the order of sums (docs/memory.md).
STEPS = (
    {"gradient_checkpointing": True},
    {"offload": True},
    {"chunk": 1},
    {"branches": "alone"},
)


def savings(memory: MemoryOptions, gpu: bool = True) -> list[MemoryOptions]:
    """``memory`` as it is, and with the first one, two, ... of :data:`STEPS` done too; a CPU offloads nothing."""
    found = [memory]
    for step in STEPS:
        if gpu or "offload" not in step:
            found.append(replace(found[-1], **step))
    return found


def fitted(
    memory: MemoryOptions, peak: Callable[[MemoryOptions], int], size: int, gpu: bool = True
) -> MemoryOptions | None:
    """The first of the :func:`savings` whose ``peak`` in bytes fits a device of ``size`` bytes; None if none does."""
    ways = savings(memory, gpu)
    first = bisect_left(ways, True, key=lambda way: peak(way) + LIBRARIES <= size)
    return ways[first] if first < len(ways) else None


def words(memory: MemoryOptions, plain: MemoryOptions = MemoryOptions()) -> str:
    """What ``memory`` sets, as overrides; "" where that is nothing."""
    names = [name for step in STEPS for name in step]
    return " ".join(
        f"memory.{name}={str(value).lower()}"
        for name in names
        if (value := getattr(memory, name)) != getattr(plain, name)
    )


def fit(
    memory: MemoryOptions, precision: str, backbone: Backbone, frames: int, size: tuple[int, int], device: torch.device
) -> tuple[MemoryOptions, str]:
    """``memory`` for windows of ``frames`` frames of ``size`` (height, width) on ``device``, and a line about it.

    Without ``memory.auto`` both are as given and "". Counting a full-size network takes seconds, and is done where a
    bound doesn't suffice.
    """
    if not memory.auto:
        return memory, ""
    room, name = available(device)
    parts = (backbone.unet, backbone.text_encoder, backbone.image_encoder, backbone.vae)
    weights = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    where = f"memory=auto: {room / GIB:.1f} GiB on {name}"
    if 2 * weights + PER_CELL * frames * math.prod(size) // 64 + LIBRARIES <= room:
        return memory, f"{where}, nothing has to be saved"
    from tave.counting import shapes_of

    shapes, side = shapes_of(backbone.unet), 64 * math.ceil(math.sqrt(math.prod(size)) / 64)
    gpu = device.type == "cuda"
    found = fitted(memory, lambda way: counted(shapes, way, precision, frames, side), room, gpu)
    if found is None:
        log.warning(
            "%s: %d frames of %dx%d don't fit: set window.frames=%d, smaller frames (video.width), or memory=16gb, "
            "12gb or 8gb, which compute in half precision",
            *(where, frames, size[1], size[0], max(frames // 2, 3)),
        )
        return savings(memory, gpu)[-1], ""
    return found, f"{where}, {words(found, memory) or 'nothing has to be saved'}"


def counted(shapes: Shapes, memory: MemoryOptions, precision: str, frames: int, side: int) -> int:
    """The highest sum of tuning, editing, encoding and decoding, in bytes."""
    from tave.counting import footprint

    return footprint(shapes, memory, precision, frames, side).peak


def available(device: torch.device) -> tuple[int, str]:
    """Bytes that are free on a GPU, or that the computer has for this process, and the device's name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    page, room = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    try:  # Linux: what others don't use. The weights are loaded already.
        free = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        held = int(Path("/proc/self/statm").read_text().split()[1])
        room = min(room, int(free[1]) * 1024 // page + held) if free else room
    except OSError:
        pass
    return room * page, "this computer"
