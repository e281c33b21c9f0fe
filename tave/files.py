"""Files and folders: written whole or not at all, identified by their content, and the one reader of JSON."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from tave.interrupts import deferred


def _host() -> str:
    """A name for this host or container: containers may share its name, and see each other's processes as dead."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it leads nowhere
    return re.sub(r"\W", "", f"{socket.gethostname()[:32]}{space}") or "host"


PART = ".part-"  # a temporary: .part-HOST-PID-TOKEN-NUMBER
HOST = _host()  # tells who can see whether a process lives
TOKEN = secrets.token_hex(4)  # tells this process from an earlier one of the same number
LOCK = ".lock-"  # a file that a process holds locked while it claims another (tave/locks.py)
PATH_LENGTH = 3500  # bytes of a folder's path: Linux takes 4096, and what a run writes lies three folders deeper
STALE = 24 * 3600.0  # seconds after which another host's temporary counts as left behind
ATTEMPTS = 20  # at a folder that other processes make and remove at the same time
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)  # of a file system without locks
WRITING = ("FFmpegError", "SafetensorError")  # errors of libraries that write, which aren't imported for their names
REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "free some space and run the same command again",
    (errno.EROFS, errno.EACCES, errno.EPERM): "give a folder that you may write to, or change its rights",
    (errno.ENAMETOOLONG,): "give a shorter name or folder",
    (errno.ENOTDIR, errno.EEXIST): "a part of this path is a file: give another folder",
    (errno.ENOTEMPTY, errno.EISDIR): "a folder of this name is there: give another name",
    (errno.ENOENT,): "its folder is gone: run the same command again, or give another folder",
    (errno.ELOOP,): "it is a symbolic link: remove it",
    (errno.EMFILE, errno.ENFILE): "too many files are open: raise ulimit -n",
}
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EIO)  # of writing, whatever the file
DEEPEST = 100  # levels of JSON: what walks through it by recursion ends
_numbers = count(1)


class FileError(ValueError):
    """A file that can't be read or written; the message names it and the remedy."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).expanduser().open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def content_digest(path: str | Path, pattern: str = "[!.]*") -> str:
    """SHA-256 of a file, or of relative names and contents of the files in a folder that match ``pattern``."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return file_digest(path)
    sha = hashlib.sha256()
    for file in sorted(file for file in path.rglob(pattern) if file.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()} {file_digest(file)}\n".encode())
    return sha.hexdigest()


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder beside ``path``; it replaces ``path`` if the block succeeds
    and is removed if not.

    In a folder of its own, since libraries write temporaries beside what they write (safetensors). What is in place is
    on the disk, with the rights of a new file. Raises :class:`FileError` where the system refuses.
    """
    around = _beside(path)
    temporary = around / path.name
    with deferred(), writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_name(path)
        try:
            around.mkdir()
            yield temporary
            temporary.chmod(around.stat().st_mode & 0o666)  # safetensors makes files that nobody else may read
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            try:
                around.rmdir()
            except OSError:
                shutil.rmtree(around, ignore_errors=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder of the same name; it becomes ``path`` if the block succeeds and is removed if not.

    A ``path`` that is there is replaced if ``replace``: the old folder goes when the new one stands, and
    :func:`remove_leftovers` completes an exchange that was cut off. Raises :class:`FileError` where the system refuses,
    or if ``path`` is there and not to be replaced.
    """
    around = _beside(path)
    new, old = around / "new" / path.name, around / "old" / path.name
    with deferred(), writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_name(path)
        try:
            new.mkdir(parents=True)
            with _standing(new):  # else what is written later would make it again, without the files before
                yield new
            for each in (*new.rglob("*"), new):
                _sync(each)
            if replace and path.exists():
                old.parent.mkdir()
                path.rename(old)
            new.rename(path)
            _sync(path.parent)
        finally:
            _undo_or_complete(around)


@contextmanager
def _standing(folder: Path) -> Iterator[None]:
    """Raise FileNotFoundError after the block if ``folder`` was removed in it, even if there is one again."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    finally:
        os.close(handle)


def _check_name(path: Path) -> None:
    """Have the system refuse a name that is too long before the work is done."""
    with suppress(FileNotFoundError):
        path.lstat()


def check_place(path: Path) -> None:
    """Raise :class:`FileError` before the work for a file that can't be written later: its name, or a folder of it."""
    with writing(path):
        _check_name(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _undo_or_complete(around: Path) -> None:
    """Finish with the temporary folder of :func:`whole_folder`: what it was to replace is there afterwards, new or old.

    The old folder was moved away only when the new one was complete.
    """
    news, olds = ([each for half in _inside(around, name) for each in _inside(half)] for name in ("new", "old"))
    for old in olds:
        for kept in (*(new for new in news if new.name == old.name), old):
            with suppress(OSError):  # the first of them to succeed; the next one finds the place taken
                kept.rename(around.parent / old.name)
        if not (around.parent / old.name).exists():
            return
    shutil.rmtree(around, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporaries of processes that no longer live from ``folder``; an exchange of folders is completed.

    Those of another host go after a day. Claims that nobody holds go too. Symbolic links and what is named otherwise
    stay, for the folder may be another's.
    """
    with deferred():
        for left in _inside(folder, rf"{re.escape(LOCK)}[0-9a-f]{{16}}"):
            with suppress(OSError):
                if (handle := hold(left)) is not None:
                    left.unlink()
                    os.close(handle)
        for left in _inside(folder, rf"{re.escape(PART)}\w+-\d+-\w+-\d+"):
            host, number, token, _ = left.name.removeprefix(PART).split("-")
            with suppress(OSError):
                dead = not _lives(int(number), token) if host == HOST else time.time() - left.stat().st_mtime > STALE
                if dead and left.is_dir():
                    _undo_or_complete(left)
                elif dead:
                    left.unlink()


def _inside(folder: Path, pattern: str = ".*") -> list[Path]:
    """What ``folder`` holds under such names, symbolic links left out."""
    names = re.compile(pattern, re.DOTALL)
    return [path for path in folder.glob("*") if names.fullmatch(path.name) and not path.is_symlink()]


def _lives(number: int, token: str) -> bool:
    if number == os.getpid():
        return token == TOKEN
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beside(path: Path) -> Path:
    """A new temporary name in the folder of ``path``: of bounded length, naming host and process."""
    return path.with_name(f"{PART}{HOST}-{os.getpid()}-{TOKEN}-{next(_numbers)}")


def _sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system and of libraries that write into a :class:`FileError` for ``path``."""
    try:
        yield
    except Exception as error:
        if not _of_writing(error):
            raise
        raise FileError(refusal(error, path)) from error


def _of_writing(error: Exception) -> bool:
    """Whether an error comes from writing; torch's is a plain RuntimeError."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {*WRITING}) or "PytorchStreamWriter" in str(error)


def refusal(error: BaseException, path: Path | str = "a file", fault: str = "can't be written") -> str:
    """One line: the file, its ``fault``, the system's reason, the remedy. ``path``: where the error names no file."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number is None and "PytorchStreamWriter" in str(error):
        number = errno.ENOSPC  # it doesn't say why
    known = number in errno.errorcode  # FFmpeg has numbers of its own, and names what it called
    reason = os.strerror(number) if known else " ".join(str(error).split())  # type: ignore[arg-type]
    named = getattr(error, "filename", None)
    if named and known and PART not in str(named):
        path = os.fsdecode(named)
    remedy = next((text for numbers, text in REMEDIES.items() if number in numbers), "check the disk and its rights")
    return f"{path}: {fault} ({reason}): {remedy}"


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turn what the system refuses in and around the ``folder`` of a run, whoever asked it, into a :class:`FileError`.

    Loggers write too, and where the disk is full in mid-file the system names no file.
    """
    try:
        yield
    except OSError as error:
        inside = error.filename and Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())
        if error.errno not in REFUSED and not inside:
            raise
        raise FileError(refusal(error, folder, "can't be used")) from error


def check_writable(folder: Path) -> None:
    """Raise :class:`FileError` if nothing can be written into ``folder``, which may still be to be made."""
    with deferred(), writing(folder):
        if len(os.fsencode(folder.absolute())) > PATH_LENGTH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        for _ in range(ATTEMPTS - 1):
            with suppress(FileNotFoundError):  # another process made the folder for its own check, and removed it
                return _probe(folder)
        return _probe(folder)


def _probe(folder: Path) -> None:
    with made_folder(folder):
        probe = _beside(folder / "probe")
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)


def prepare(*folders: Path) -> None:
    """Before long work: :func:`check_writable`, and :func:`remove_leftovers`, for each of ``folders``."""
    for folder in folders:
        check_writable(folder)
        remove_leftovers(folder)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` and its parents for the block; those that are empty after it go again."""
    made: list[Path] = []
    try:
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                each.mkdir(exist_ok=True)
                made.append(each)
        yield
    finally:
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()


def hold(place: Path) -> int | None:
    """Lock the file ``place``, made if need be, until its handle is closed or this process ends.

    Returns the handle, or None if another process has it. A file system without locks refuses nobody. Raises OSError
    for a symbolic link, which may lead to another's file.
    """
    handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return handle
        os.close(handle)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    if os.fstat(handle).st_nlink == 0:  # its holder removed it between the two calls above: another one may be there
        os.close(handle)
        return None
    return handle


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path, remedy: str = "delete it and run again") -> dict[str, Any]:
    """Read the JSON object in ``path``; a :class:`FileError` names the file and ends with ``remedy``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        level, depth = [content], 0
        while level := [child for node in level for child in _children(node)]:
            if (depth := depth + 1) > DEEPEST:
                raise RecursionError
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} can't be read ({unreadable(error)}): {remedy}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} contains no JSON object: {remedy}")
    return content


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def unreadable(error: Exception) -> str:
    """Why a text file can't be read, from what the system or a parser raised."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    if "integer string conversion" in str(error):
        return "a number of thousands of digits"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, all or nothing. Raises ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(content, indent=2, default=str, allow_nan=False)
    with whole_file(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
