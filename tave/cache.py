"""The cache: keys, stored tensors, and the one place that decides what exists already.

A product's key is a digest of everything that it depends on. A product counts as made if it is stored with the same
key; every stage of a run, an edit, a benchmark or a sweep asks :func:`is_made` or :class:`Cache`, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tave.files import FileError, read_json, whole_file, write_json
from tave.finite import check_finite
from tave.locks import UPDATE, claimed
from tave.progress import Progress
from tave.scratch import Scratch

log = logging.getLogger(__name__)

FORMAT = 2  # part of every key: raise it when a product changes its meaning, and older ones are made again


Form = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> shape and type of each tensor."""


class StoredError(ValueError):
    """A stored product that can't be read; the message names the file and the remedy."""


class DamagedError(StoredError):
    """A stored product that is not what was written. ``fault`` names the file and the reason without a remedy."""

    def __init__(self, path: Path, reason: str) -> None:
        self.fault = f"{path} is damaged ({reason})"
        super().__init__(f"{self.fault}: delete it and run again")


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
            sha.update(part.reshape(-1).view(torch.uint8).numpy().data if part.dim() else str(part.item()).encode())
        else:
            plain = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
            sha.update(json.dumps(plain, sort_keys=True, default=_plain).encode())
    return sha.hexdigest()[:12]


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """:func:`key_of` names and tensors, whatever their order."""
    return key_of(*(part for each in sorted(tensors.items()) for part in each))


def _plain(value: Any) -> str:
    if hasattr(value, "shape"):
        raise TypeError("an array inside a part would be abbreviated: pass tensors as parts of their own")
    return str(value)


def is_made(product: Path, key: str, entry: str | None = None) -> bool:
    """Whether ``product`` is stored with ``key``: a safetensors file of :func:`write_tensors`, or a JSON file.

    A JSON file has its ``key`` at the top, or one for each ``entry`` under ``keys``. Damaged tensors, which a line
    names, are not made.
    """
    if product.suffix != ".json":
        return find_tensors(product, key) is not None
    about = read_json(product) if product.is_file() else {}
    keys: Any = {None: about.get("key")} if entry is None else about.get("keys")
    return isinstance(keys, dict) and keys.get(entry) == key


# ---- stored tensors --------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors, a JSON description and a digest of both into one safetensors file, atomically.

    Raises :class:`NonFiniteError` for NaN and infinity, and writes nothing.
    """
    check_finite(f"storing {path}", tensors)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(
        {**about, "sha256": _digest(held, about)}
    )  # in one entry: safetensors writes several in any order
    with whole_file(path) as waiting:
        save_file(held, waiting, {"about": text})


def read_about(path: Path) -> dict[str, Any]:
    """The description of a file of :func:`write_tensors`; raises like :func:`read_tensors`."""
    return read_tensors(path, mapped=True)[1]


def read_tensors(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of :func:`write_tensors`.

    ``mapped`` tensors stay in the file: copy what is computed with. Raises :class:`DamagedError` if they are not what
    was written, :class:`StoredError` if there is no such file.
    """
    with _stored(path) as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
        if not mapped:  # memory mapped at odd offsets uses other CPU kernels, and a seed would no longer fix the bits
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        about = _about(stored, path)
    digest = about.pop("sha256", None)
    if digest != _digest(tensors, about):
        raise DamagedError(path, "its content differs from its SHA-256" if digest else "its SHA-256 is missing")
    return tensors, about


def find_tensors(
    path: Path, key: str, form: Form | None = None, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """:func:`read_tensors` of what is stored with ``key`` and, where given, in ``form``; None if that isn't there.

    What is damaged, or of another form, is named in one line and not returned.
    """
    if not path.is_file():
        return None
    try:
        tensors, about = read_tensors(path, mapped)
        if about.get("key") != key:
            return None
        seconds = about.setdefault("seconds", {})
        if not isinstance(seconds, dict) or not all(map(_is_time, seconds.values())):
            raise DamagedError(path, "its seconds are no numbers")
        if form is not None and (strange := _differing(form_of(tensors), form)):
            raise DamagedError(path, strange)
    except StoredError as error:
        log.warning("%s: making it again", error.fault if isinstance(error, DamagedError) else error)
        return None
    return tensors, about


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def peek(path: Path) -> dict[str, Any]:
    """What a file of :func:`write_tensors` says of itself, without reading its tensors and unverified."""
    with _stored(path) as stored:
        return _about(stored, path)


def form_of(tensors: Mapping[str, Tensor]) -> Form:
    """Names, shapes and types."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _differing(found: Form, due: Form) -> str:
    """The first tensor that is missing, too much, or of another shape or type; "" if there is none."""
    for name in sorted({*found, *due}):
        if found.get(name) != due.get(name):
            had, needed = (form.get(name, "nothing") for form in (found, due))
            return f"it holds {had} as {name}, expected {needed}"
    return ""


def _about(stored: Any, path: Path) -> dict[str, Any]:
    try:
        about = json.loads((stored.metadata() or {}).get("about", "{}"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise DamagedError(path, "its description is no JSON object")
    return about


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of contiguous CPU tensors, and of their description."""
    sha = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"\n{json.dumps([name, str(tensor.dtype), list(tensor.shape)])}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextmanager
def _stored(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise StoredError(f"{path}: no such file: is this the folder of a finished run?")
    try:
        with safe_open(path, "pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise DamagedError(path, f"not a readable safetensors file: {error}") from error


# ---- remembered facts ------------------------------------------------------------------------------------------------


def recall(path: Path) -> dict[str, str]:
    """The facts in the JSON file ``path``. Raises :class:`FileError` or :class:`DamagedError` for a damaged one."""
    content = read_json(path) if path.is_file() else {"facts": {}, "digest": key_of({})}
    if not isinstance(content.get("facts"), dict) or content.get("digest") != key_of(content["facts"]):
        raise DamagedError(path, "its content differs from its digest")
    return content["facts"]


def remember(path: Path, facts: Mapping[str, str]) -> dict[str, str]:
    """Add ``facts`` to those in the JSON file ``path``; returns what it knew before.

    A damaged file is named in one line and made again.
    """
    with claimed(path, UPDATE):
        try:
            known = recall(path)
        except (FileError, DamagedError) as error:
            log.warning("%s: making it again", getattr(error, "fault", error))
            known = {}
        if known | dict(facts) != known:
            write_json(path, {"digest": key_of(known | dict(facts)), "facts": known | dict(facts)})
    return known


# ---- stages ----------------------------------------------------------------------------------------------------------


class Cache:
    """Results of stages, stored as ``folder/NAME-KEY.safetensors``.

    Args:
        folder: where they are stored; None: nothing is, and every stage is computed.
        scope: a key that all results depend on, for instance that of the inverted clip.
        progress: gets the seconds that a stored result took when it was computed.
        copies: stage name -> a second place for its result, with a run's other files. What is read there is not stored
            in ``folder``: a run folder may be a stranger's, and its files claim any key.

    ``taken``: digests of what was read in a run folder (:meth:`take`), on which every later result in ``folder``
    depends; ``scratch``: room on the disk of ``folder`` for what a stage makes.
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
        self.taken: list[str] = []
        self.scratch = Scratch(folder)

    def tensors(
        self, name: str, parts: Sequence[Any], make: Callable[[], Mapping[str, Tensor]], form: Form | None = None
    ) -> Mapping[str, Tensor]:
        """The tensors of stage ``name`` under a key of ``parts``: stored ones, mapped, else ``make()``, then stored.

        Stored ones that are damaged, or not in ``form``, are named in one line and made again. Numbers and lists of
        numbers are also written into the file's description, under their names. Raises :class:`NonFiniteError` for NaN
        and infinity.
        """
        if self.folder is None:
            return make()
        claim, (key, entry), copy = key_of(self.scope, *parts), self._entry(name, parts), self.copies.get(name)
        places = {entry: key} | ({copy: claim} if copy else {})
        found = {path: stored for path in places if (stored := find_tensors(path, places[path], form, True))}
        if found:
            path, (tensors, about) = next(iter(found.items()))
            self.progress.note(f"{name}: reused from {path.parent}")
            self.progress.remember(about["seconds"])
            mark_used(entry)
        else:
            before = self.progress.seconds
            tensors = {part: tensor.detach().cpu() for part, tensor in make().items()}
            spent = {stage: now - before.get(stage, 0.0) for stage, now in self.progress.seconds.items()}
            numbers = {part: tensor.tolist() for part, tensor in tensors.items() if tensor.dim() < 2}
            seconds = {stage: round(took, 3) for stage, took in spent.items() if took > 0}
            about = {"key": key, "scope": self.scope, "seconds": seconds, **numbers}
        for path in places:
            if path not in found and (path == copy or copy not in found):
                write_tensors(path, tensors, about | {"key": places[path]})
        if copy in found and entry not in found:
            self.take(tensors)
        return tensors

    def holds(self, name: str, parts: Sequence[Any]) -> bool:
        """Whether the result of stage ``name`` under a key of ``parts`` is stored, undamaged."""
        if self.folder is None:
            return False
        key, entry = self._entry(name, parts)
        return find_tensors(entry, key, None, True) is not None

    def _entry(self, name: str, parts: Sequence[Any]) -> tuple[str, Path]:
        """The key of a result of stage ``name``, and where it is stored."""
        assert self.folder is not None
        key = key_of(self.scope, *parts, *self.taken)
        return key, self.folder / f"{name}-{key}.safetensors"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Have every later result that is stored depend on ``tensors``, which were read in a run folder."""
        self.taken.append(digest_of(tensors))


def mark_used(entry: Path) -> None:
    """Note the time in an entry's file, for :mod:`tave.stored`; a cache that can only be read stays as it is."""
    with suppress(OSError):
        os.utime(entry)
