"""Weights on this disk, found and verified. Nothing is ever downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tave.files import file_digest

from .records import WeightsError


@dataclass(frozen=True)
class Weights:
    """A file and its SHA-256 in hexadecimal."""

    path: Path
    sha256: str


def verify(path: Path, expected: str | None = None) -> Weights:
    """Hash ``path`` and compare with ``expected`` (a hash or its beginning), else with a hash in the file's name.

    The hub's cache keeps a large file under its own SHA-256, to which the name in the snapshot links.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights; put the file there, nothing is downloaded")
    found, named = file_digest(path), path.resolve().name
    known = expected.lower() if expected else named if re.fullmatch(r"[0-9a-f]{64}", named) else None
    if known is not None and not found.startswith(known):
        raise WeightsError(f"{path}: its SHA-256 is {found}, not {known}: damaged or another file, fetch it again")
    return Weights(path, found)


def cached(repository: str, names: Sequence[str], cache: Path | None = None) -> Path | None:
    """The first of ``names`` that the hub's local cache holds of ``repository``."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in names:
        try:
            found = try_to_load_from_cache(repository, name, cache_dir=cache)
        except HFValidationError as error:
            raise WeightsError(f"{repository!r} is no name of the hub: give OWNER/NAME, or a folder") from error
        if isinstance(found, str):
            return Path(found)
    return None


def model_folder(name: str, key: str, files: Sequence[str], cache: Path | None = None) -> tuple[Path, Weights]:
    """Folder and verified weights of ``name``: a folder, or OWNER/NAME whose snapshot the hub's local cache holds.

    ``key``: the option that ``name`` is the value of; ``files``: names of the weights, the preferred first.
    """
    if Path(name).is_dir():
        local = [Path(name) / file for file in files if (Path(name) / file).is_file()]
        if not local:
            raise WeightsError(f"{key}={name}: the folder has none of {', '.join(files)}; give the folder of a model")
        return Path(name), verify(local[0])
    found = cached(name, files, cache) if name.count("/") == 1 else None
    if found is None:
        raise WeightsError(f"{key}={name}: neither a folder nor in the hub's local cache, and nothing is downloaded")
    return found.parent, verify(found)


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's client offline inside the block: a missing tokenizer fails instead of being fetched."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
