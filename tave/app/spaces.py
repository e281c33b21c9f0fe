"""The users' spaces: folders named by tokens that the server has signed, and the uploads in them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tave.app.check import Checker
from tave.config import LimitOptions, OptionError, slug
from tave.files import FileError, read_json, write_json

TOKEN = re.compile(r"[0-9a-f]{24}-[0-9a-f]{24}")
ID = re.compile(r"[0-9a-f]{16}")
FREE = 1_000_000_000  # bytes that the disk keeps
FULL = "the server's disk is nearly full: try again later"


class RefusedError(ValueError):
    """A request that is not taken now, whatever it holds: too much, or too many."""


@dataclass(frozen=True)
class Upload:
    """A file of a user, as :func:`tave.app.check.inspect` found it. ``name``: as it was given."""

    id: str
    name: str
    kind: str
    width: int
    height: int
    frames: int | None = None


class Spaces:
    """All users' folders below ``folder``. A token is the name of a space and the right to it."""

    def __init__(self, folder: Path, limits: LimitOptions, checker: Checker) -> None:
        self.folder, self.limits, self.checker = folder / "spaces", limits, checker
        self.folder.mkdir(parents=True, exist_ok=True)
        self._secret = _kept_secret(folder / "secret")

    def issue(self) -> str:
        """A new token. Its folder is made by its first upload or job."""
        head = secrets.token_hex(12)
        return f"{head}-{self._sign(head)}"

    def valid(self, token: str) -> bool:
        """Whether this server has issued ``token``."""
        if not TOKEN.fullmatch(token):
            return False
        head, _, tail = token.partition("-")
        return hmac.compare_digest(tail, self._sign(head))

    def _sign(self, head: str) -> str:
        return hmac.new(self._secret, head.encode(), hashlib.sha256).hexdigest()[:24]

    def of(self, token: str) -> Path:
        """The folder of a space."""
        return self.folder / token

    def all(self) -> Iterator[str]:
        """The tokens of all spaces that hold something."""
        yield from (path.name for path in self.folder.iterdir() if TOKEN.fullmatch(path.name))

    # ---- uploads -----------------------------------------------------------------------------------------------------

    def uploads(self, token: str) -> list[Upload]:
        """What was uploaded, the oldest first."""
        places = (self.of(token) / "uploads").glob("*/upload.json")
        found = [(path.stat().st_mtime, Upload(**read_json(path))) for path in places]
        return [upload for _, upload in sorted(found, key=lambda pair: pair[0])]

    def upload_path(self, token: str, key: str, which: str) -> tuple[Path, Upload]:
        """The file of an upload, and what it is; ``which``: the option that names it, for the message."""
        folder = self.of(token) / "uploads" / key
        if not ID.fullmatch(key) or not (folder / "upload.json").is_file():
            raise OptionError(f"{which}={key[:40]!r} is no upload of yours: upload the file first, and give its id")
        upload = Upload(**read_json(folder / "upload.json"))
        return folder / stored_name(upload.name), upload

    def full(self) -> bool:
        """Whether a disk that uploads go to, also by way of temporary files, has no room for more."""
        return any(shutil.disk_usage(place).free < FREE for place in (self.folder, tempfile.gettempdir()))

    def begin_upload(self, token: str) -> Path:
        """A new folder for an upload. Raises :class:`RefusedError` if there are too many."""
        if sum(1 for _ in (self.of(token) / "uploads").glob("*")) >= self.limits.uploads:
            raise RefusedError(f"you have {self.limits.uploads} uploads: remove some, or wait until old ones go")
        if self.full():
            raise RefusedError(FULL)
        folder = self.of(token) / "uploads" / secrets.token_hex(8)
        folder.mkdir(parents=True, mode=0o700)
        return folder

    async def receive(self, folder: Path, name: str, pieces: AsyncIterator[bytes]) -> Path:
        """Write an upload's pieces into its ``folder``. Raises :class:`RefusedError` beyond the limit."""
        path, most, size = folder / stored_name(name), self.limits.megabytes * 1_000_000, 0
        with path.open("wb") as made:
            async for piece in pieces:
                size += len(piece)
                if size > most:
                    raise RefusedError(f"{name}: larger than {self.limits.megabytes} MB; make it shorter or smaller")
                made.write(piece)
        return path

    def take(self, token: str, name: str, source: Path) -> Upload:
        """Upload a copy of the file ``source``."""
        folder = self.begin_upload(token)
        try:
            if source.stat().st_size > self.limits.megabytes * 1_000_000:
                raise RefusedError(f"{name}: larger than {self.limits.megabytes} MB; make it shorter or smaller")
            shutil.copyfile(source, folder / stored_name(name))
            return self.finish_upload(folder, name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def finish_upload(self, folder: Path, name: str) -> Upload:
        """Read what has arrived. Raises ValueError, in one line, for what is neither picture nor clip."""
        if not (folder / stored_name(name)).stat().st_size:
            raise OptionError(f"{name}: the file is empty (zero bytes); copy or export it again")
        found: dict[str, Any] = self.checker.inspect(folder / stored_name(name), name)
        upload = Upload(folder.name, name, **found)
        write_json(folder / "upload.json", asdict(upload))
        return upload

    def remove_upload(self, token: str, key: str) -> None:
        """Remove an upload; jobs that were given it keep it."""
        path, _ = self.upload_path(token, key, "upload")
        shutil.rmtree(path.parent)

    def sweep(self, token: str, now: float) -> None:
        """Remove uploads, and what the cache holds, that are older than the limit; an empty space goes too."""
        home = self.of(token)
        for folder in (home / "uploads").glob("*"):
            if now - folder.stat().st_mtime > self.limits.seconds:
                shutil.rmtree(folder, ignore_errors=True)
        sweep_cache(home / "cache", now - self.limits.seconds)
        for empty in (home / "uploads", home / "cache", home / "jobs", home):
            _quietly(_remove_empty, empty)


def sweep_cache(folder: Path, since: float) -> None:
    """Remove what a cache holds that was not used ``since`` then."""
    from tave.stored import entries, remove

    for entry in entries(folder) if folder.is_dir() else ():
        if entry.used < since:
            _quietly(remove, entry)


def _remove_empty(folder: Path) -> None:
    for left in folder.glob(".lock-*"):
        left.unlink()
    folder.rmdir()


def _quietly(work: Any, of: Any) -> None:
    with suppress(FileError, OSError):
        work(of)


def stored_name(name: str) -> str:
    """The name under which a file of a user is stored: letters, digits, '-' and '_', and its ending."""
    stem, dot, suffix = name.rpartition(".")
    return f"{slug(stem)}.{slug(suffix)[:8].lower()}" if dot and stem else slug(name)


def _kept_secret(path: Path) -> bytes:
    """The server's secret in ``path``, made at its first start."""
    if not path.is_file() or path.stat().st_size != 32:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as made:
            made.write(secrets.token_bytes(32))
    return path.read_bytes()


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
