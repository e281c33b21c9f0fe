"""Stages remembered by content: a product is found again exactly when all that it depends on is the same.

A cache wraps a stage and returns what the stage returns. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tave.files import whole_file


def digest(*parts: Any) -> str:
    """Twelve hexadecimal characters that stand for ``parts``: plain values, dataclasses, mappings, lists of these; tensors."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous()
            sha.update(f"{tuple(part.shape)}{part.dtype}".encode())
            sha.update(part.view(torch.uint8).numpy().tobytes() if part.dim() else str(part.item()).encode())
        else:
            plain = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
            sha.update(json.dumps(plain, sort_keys=True, default=_plain).encode())
    return sha.hexdigest()[:12]


def _plain(value: Any) -> str:
    if hasattr(value, "shape"):
        raise TypeError("an array inside of a part would count by its abbreviated print: give a tensor, as a part of its own")
    return str(value)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as waiting:
        waiting.write_text(json.dumps(content, indent=2, sort_keys=False, default=str) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Tensors with a JSON description in the same safetensors file."""
    with whole_file(path) as waiting:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, waiting, {"about": json.dumps(about)})


class StoredError(ValueError):
    """A stored product that can't be read; the message names the file and the remedy."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises :class:`StoredError` if it holds none, and FileNotFoundError."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise StoredError(f"{path}: not readable as JSON ({error}); delete it and run again") from error
    if not isinstance(found, dict):
        raise StoredError(f"{path}: holds no JSON object; delete it and run again")
    return found


def read_about(path: Path) -> dict[str, Any]:
    """The description alone of a file that :func:`write_tensors` made; its tensors are not read."""
    with _stored(path) as stored:
        return json.loads((stored.metadata() or {}).get("about", "{}"))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file that :func:`write_tensors` made."""
    with _stored(path) as stored:
        # Copied: memory mapped at odd offsets takes other CPU kernels, and seeds would no longer fix the bits.
        tensors = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118 - not a mapping
    return tensors, read_about(path)


@contextmanager
def _stored(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise StoredError(f"{path}: no such file; is this the folder of a finished run?")
    try:
        with safe_open(path, "pt") as stored:
            yield stored
    except SafetensorError as error:
        raise StoredError(f"{path}: not a readable safetensors file ({error}); delete it and run again") from error
