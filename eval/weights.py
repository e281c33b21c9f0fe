"""Weights that are already on disk, found and verified. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SHA256 = re.compile(r"[0-9a-f]{64}")


class WeightsError(ValueError):
    """Weights that are missing or aren't what they should be; the message names them and the remedy."""


@dataclass(frozen=True)
class Weights:
    """A file and its SHA-256 in hexadecimal."""

    path: Path
    sha256: str


def verify(path: Path, expected: str | None = None) -> Weights:
    """Hash the file at ``path`` and compare: with ``expected`` (the hash or its beginning), else with its name.

    The hub's cache keeps a large file under its own SHA-256, to which the name in the snapshot points.

    Raises:
        WeightsError: the file is missing or has another hash.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights; put the file there, nothing is downloaded")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known = expected.lower() if expected else None
    if known is None and SHA256.fullmatch(path.resolve().name):
        known = path.resolve().name
    if known is not None and not found.startswith(known):
        raise WeightsError(f"{path}: its SHA-256 is {found}, not {known}: the file is damaged or another one, fetch it again")
    return Weights(path, found)


def cached(repository: str, names: Sequence[str], cache: Path | None = None) -> Path | None:
    """The first of ``names`` that the hub's local cache holds of ``repository``; None if it holds none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in names:
        try:
            found = try_to_load_from_cache(repository, name, cache_dir=cache)
        except HFValidationError as error:
            raise WeightsError(f"{repository!r} is no name of the hub: give OWNER/NAME, or a folder that is here") from error
        if isinstance(found, str):
            return Path(found)
    return None


def model_folder(name: str, key: str, files: Sequence[str], cache: Path | None = None) -> tuple[Path, Weights]:
    """Folder and verified weights of ``name``: a folder on disk, or a hub name whose snapshot the local cache holds.

    Args:
        name: folder or OWNER/NAME.
        key: the option that gave it, for the message.
        files: names of the weights, the best first.
        cache: the hub's cache; its usual place by default.

    Raises:
        WeightsError: neither is there.
    """
    if Path(name).is_dir():
        here = [Path(name) / file for file in files if (Path(name) / file).is_file()]
        if not here:
            raise WeightsError(f"{key}={name}: the folder has none of {', '.join(files)}; give a folder that holds a model")
        return Path(name), verify(here[0])
    found = cached(name, files, cache) if name.count("/") == 1 else None
    if found is None:
        raise WeightsError(
            f"{key}={name}: neither a folder nor in the hub's local cache; put the weights there, nothing is downloaded"
        )
    return found.parent, verify(found)


@contextmanager
def offline() -> Iterator[None]:
    """The hub's client asks nobody inside the block: a tokenizer that isn't here fails and isn't fetched."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
