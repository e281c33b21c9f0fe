"""The one place that decides what is already made: keys, stored tensors, and the cache of stages.

A product's key is a digest of everything that it depends on. A product counts as made if it is stored with the same
key; every stage of a run, an edit, a benchmark or a sweep asks :func:`is_made` or :class:`Cache`, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tave.files import read_json, whole_file
from tave.progress import Progress

FORMAT = 2  # part of every key: raise it when a product changes its meaning, and older ones are made again


class StoredError(ValueError):
    """A stored product that can't be read; the message names the file and the remedy."""


# ---- keys ------------------------------------------------------------------------------------------------------------


def key_of(*parts: Any) -> str:
    """Twelve hexadecimal characters for ``parts``: plain values, dataclasses, mappings, lists of these; tensors or
    None.
    """
    sha = hashlib.sha256(f"format {FORMAT}".encode())
    for part in parts:
        sha.update(b"\n")  # else 1, 23 and 12, 3 would have one key
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
        raise TypeError("an array inside a part would be abbreviated: pass tensors as parts of their own")
    return str(value)


def is_made(product: Path, key: str, entry: str | None = None) -> bool:
    """Whether ``product`` is stored with ``key``: a safetensors file of :func:`write_tensors`, or a JSON file.

    A JSON file has its ``key`` at the top, or one for each ``entry`` under ``keys``.
    """
    if not product.is_file():
        return False
    about = read_json(product) if product.suffix == ".json" else read_about(product)
    return key == (about.get("key") if entry is None else about.get("keys", {}).get(entry))


# ---- stored tensors --------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description into one safetensors file, atomically."""
    with whole_file(path) as waiting:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, waiting, {"about": json.dumps(about)})


def read_about(path: Path) -> dict[str, Any]:
    """The description of a file of :func:`write_tensors`, without reading its tensors."""
    with _stored(path) as stored:
        return json.loads((stored.metadata() or {}).get("about", "{}"))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of :func:`write_tensors`."""
    with _stored(path) as stored:
        # Copied: memory mapped at odd offsets uses other CPU kernels, and a seed would no longer fix the bits.
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


# ---- stages ----------------------------------------------------------------------------------------------------------


class Cache:
    """Results of stages, stored as ``folder/NAME-KEY.safetensors``.

    Args:
        folder: where they are stored; None: nothing is, and every stage is computed.
        scope: a key that all results depend on, for instance that of the inverted clip.
        progress: gets the seconds that a stored result took when it was computed.
        copies: stage name -> a second place for its result, with a run's other files; read and written alike.
    """

    def __init__(
        self,
        folder: Path | None = None,
        scope: str = "",
        progress: Progress | None = None,
        copies: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder, self.scope, self.progress = folder, scope, progress or Progress(show=False)
        self.copies = dict(copies or {})

    def tensors(
        self, name: str, parts: Sequence[Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors of stage ``name`` under a key of ``parts``: stored ones, else ``make()``, which are then stored.

        0-dim tensors are also written into the file's description, under their names.
        """
        if self.folder is None:
            return make()
        key = key_of(self.scope, *parts)
        places = [self.folder / f"{name}-{key}.safetensors", *([self.copies[name]] if name in self.copies else [])]
        found = next((path for path in places if is_made(path, key)), None)
        if found is not None:
            tensors, about = read_tensors(found)
            self.progress.note(f"{name}: found in {found.parent}")
            self.progress.remember(about["seconds"])
        else:
            before = self.progress.seconds
            tensors = {part: tensor.detach().cpu().clone() for part, tensor in make().items()}
            spent = {stage: now - before.get(stage, 0.0) for stage, now in self.progress.seconds.items()}
            numbers = {part: float(tensor) for part, tensor in tensors.items() if tensor.dim() == 0}
            seconds = {stage: round(took, 3) for stage, took in spent.items() if took > 0}
            about = {"key": key, "seconds": seconds, **numbers}
        for path in places:
            if path != found and not is_made(path, key):
                write_tensors(path, tensors, about)
        return tensors
