"""What leaves the service: lines and files without the paths of its machine."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from tave.config import PACKAGE
from tave.record import SUMS

TEXTS = (".json", ".yaml", ".csv", ".txt", ".html", ".md")
CODED = re.compile(r"((?:;base64,|\bsha256-)[A-Za-z0-9+/=]+)")  # has slashes, and no path
PATH = re.compile(r"(?<![\w./~-])~?/(?:[^\s/:,;'\"()<>\[\]{}]+/)+(?=[^\s/])")


def public(text: str, names: Mapping[str, str] | None = None) -> str:
    """``text`` with every absolute path cut to its last name, those inside the package to their part below it.

    ``names``: a file's path in ``text`` -> the name that the user gave it. Base64 stays: clips of a report, hashes.
    """
    pieces = CODED.split(text)
    pieces[::2] = (_without_paths(piece, names or {}) for piece in pieces[::2])
    return "".join(pieces)


def _without_paths(text: str, names: Mapping[str, str]) -> str:
    for path, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(path, name)
    for folder in (Path.cwd(), Path.home()):  # also with blanks in them
        if folder != Path(folder.anchor) and not PACKAGE.is_relative_to(folder):
            text = text.replace(f"{folder}/", "")
    inside = f"{PACKAGE.parent}/"
    return PATH.sub(lambda at: at[0].removeprefix(inside) if at[0].startswith(inside + "tave/") else "", text)


def cut(line: str, length: int = 600) -> str:
    """``line`` in one line of bounded length."""
    plain = " ".join(line.split())
    return plain if len(plain) <= length else f"{plain[:length]} ..."


class _Chunks:
    """A file to write to whose content is taken out piece by piece."""

    def __init__(self) -> None:
        self.held, self.at = bytearray(), 0

    def write(self, data: bytes) -> int:
        self.held += data
        self.at += len(data)
        return len(data)

    def tell(self) -> int:
        return self.at

    def flush(self) -> None: ...

    def take(self) -> bytes:
        taken = bytes(self.held)
        self.held.clear()
        return taken


def zipped(folder: Path, top: str) -> Iterator[bytes]:
    """A run folder as a zip, in pieces: :func:`public` text files, and ``SHA256SUMS`` of what is in the zip."""
    chunks, digests = _Chunks(), dict[Path, str]()
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    paths = [path for path in paths if not path.name.startswith(".")]
    # a folder's record comes after its files, that of the run after those of its edits
    paths.sort(key=lambda path: (path.name == SUMS, -len(path.parts)))
    with zipfile.ZipFile(chunks, "w", zipfile.ZIP_STORED) as made:  # type: ignore[arg-type]
        for path in paths:
            sha = hashlib.sha256()
            with made.open(f"{top}/{path.relative_to(folder).as_posix()}", "w", force_zip64=True) as entry:
                for piece in _content(path, digests):
                    sha.update(piece)
                    entry.write(piece)
                    yield chunks.take()
            digests[path] = sha.hexdigest()
    yield chunks.take()


def _content(path: Path, digests: Mapping[Path, str]) -> Iterator[bytes]:
    if path.name == SUMS:
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        yield "".join(f"{digests.get(path.parent / name, sha)}  {name}\n" for sha, name in pairs).encode()
    elif path.suffix in TEXTS:
        yield public(path.read_text(encoding="utf-8", errors="replace")).encode()
    else:
        with path.open("rb") as source:
            yield from _pieces(source)


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(1 << 20):
        yield piece
