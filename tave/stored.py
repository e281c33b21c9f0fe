"""Entry point: what the cache of stages holds, whether it is whole, and what of it may go.

python -m tave.stored
python -m tave.stored action=verify
python -m tave.stored action=prune older=30d keep=10GB unused=true delete=true
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tave.cli import Context, entry_point
from tave.config import SIZES, TIMES, CacheOptions, OptionError
from tave.files import FileError, read_json, remove_leftovers

CHECKPOINT = re.compile(r"[\w-]+\.ckpt(\.damaged)?\Z|\.(part|lock)-")  # and what is being written beside it
UNFINISHED = "tuning"  # the kind of a tuning that was stopped, or is running: a folder of checkpoints


@dataclass(frozen=True)
class Entry:
    """One result of a stage, or an unfinished tuning.

    ``kind``: tuned, trajectory, maps, place (of the object in the whole frame) or tuning; ``size``: bytes of all its
    files; ``used``: seconds since the epoch.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    size: int
    used: float

    @property
    def scope(self) -> str:
        """The key of the runs that use it, "" if unknown. Reading it takes torch, which a sweep by age does without."""
        kind, _, key = self.name.rpartition("-")
        files = (path for path in self.paths if path.suffix == ".safetensors")
        return key if kind == "tuned" else next((_key(path, "scope") for path in files), "")


def entries(folder: Path) -> list[Entry]:
    """What the cache in ``folder`` holds, the least recently used first."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if _stored(path):
            groups.setdefault(path.name.partition(".")[0], []).append(path)
    return sorted((_entry(name, paths) for name, paths in groups.items()), key=lambda entry: (entry.used, entry.name))


def _stored(path: Path) -> bool:
    """Whether the cache wrote ``path``: a product, or a folder of a tuning's checkpoints and nothing else."""
    if path.is_symlink():
        return False
    if path.is_file():
        return bool(re.fullmatch(r"(tuned|trajectory|maps|place)-[0-9a-f]{12}\.safetensors", path.name))
    inside = [CHECKPOINT.match(each.name) and not each.is_symlink() for each in path.glob("*")]
    return bool(re.fullmatch(r"tuned-[0-9a-f]{12}", path.name)) and all(inside)


def _entry(name: str, paths: list[Path]) -> Entry:
    kind = name.rpartition("-")[0] if any(path.suffix == ".safetensors" for path in paths) else UNFINISHED
    inside = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    facts = [file.stat() for file in inside] or [paths[0].stat()]
    used = max(fact.st_mtime for fact in facts)
    return Entry(kind, name, tuple(paths), sum(f.st_size for f in facts), used)


def _key(path: Path, part: str) -> str:
    """``key`` or ``scope`` of a stored product or a record; "" where it has none or can't be read."""
    from tave.cache import StoredError, peek

    try:
        about = read_json(path) if path.suffix == ".json" else peek(path)
    except (FileError, StoredError):
        return ""
    return str(about.get(part, ""))


def references(runs: Path) -> dict[str, list[Path]]:
    """The folders of runs below ``runs`` by the keys that they refer to: of their tuning, of their inverted clip."""
    found: dict[str, list[Path]] = {}
    for tuned in sorted(runs.rglob("tuned.safetensors")):
        home = tuned.parent
        keys = {_key(tuned, "key"), _key(home / "trajectory.safetensors", "scope"), _key(home / "run.json", "key")}
        for key in keys - {""}:
            found.setdefault(key, []).append(home)
    return found


def verify(folder: Path) -> Iterator[str]:
    """A line for each file of the cache in ``folder`` that is damaged."""
    from tave.cache import StoredError, read_tensors, recall

    for path in (path for entry in entries(folder) for path in entry.paths):
        try:
            if path.is_dir():
                for checkpoint in path.glob("*.ckpt"):
                    from tave.checkpoints import CheckpointFile

                    CheckpointFile().load_checkpoint(checkpoint)
            elif path.suffix == ".safetensors":
                read_tensors(path, mapped=True)
        except StoredError as error:
            yield str(error)
    try:
        recall(folder / "weights.json")
    except (FileError, StoredError) as error:
        yield str(error)


def superfluous(held: list[Entry], options: CacheOptions, now: float) -> dict[str, str]:
    """Names of the entries of ``held``, which begins with the least recently used, to prune, and why."""
    reasons: dict[str, str] = {}
    if options.unused:
        referred = references(Path(options.runs))
        if not referred:
            raise OptionError(f"runs={options.runs} holds no run, so nothing is in use: give the folder of your runs")
        reasons |= {entry.name: "no run refers to it" for entry in held if entry.scope not in referred}
    reasons |= {e.name: f"not used for {options.older}" for e in held if now - e.used > options.seconds}
    left = sum(entry.size for entry in held if entry.name not in reasons)
    for entry in held:
        if left > options.bytes and entry.name not in reasons:
            reasons[entry.name] = f"more than {options.keep}"
            left -= entry.size
    return reasons


def remove(entry: Entry) -> None:
    """Remove an entry. Raises :class:`FileError` while another process writes it."""
    from tave.locks import claimed

    with claimed(entry.paths[0].with_name(entry.name)):
        for path in entry.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _prune(held: list[Entry], options: CacheOptions, now: float) -> Iterator[str]:
    reasons, freed, word = superfluous(held, options, now), 0, "removed" if options.delete else "would go"
    for entry in (entry for entry in held if entry.name in reasons):
        try:
            if options.delete:
                remove(entry)
        except (FileError, OSError) as error:
            yield f"kept: {error}"
            continue
        freed += entry.size
        yield f"{word}: {entry.name} ({size(entry.size)}, used {ago(now - entry.used)} ago): {reasons[entry.name]}"
    yield f"{word}: {size(freed)} of {size(sum(entry.size for entry in held))}" + (
        "" if options.delete or not reasons else "; add delete=true to remove them"
    )


def _listed(held: list[Entry], referred: Mapping[str, list[Path]], now: float) -> Iterator[str]:
    yield f"{'kind':<10} {'entry':<24} {'size':>9} {'last used':>10}  runs"
    for entry in held:
        homes = [str(home) for home in referred.get(entry.scope, [])]
        runs = (homes[0] + (f" and {len(homes) - 1} more" if len(homes) > 1 else "")) if homes else "-"
        used = f"{ago(now - entry.used)} ago"
        yield f"{entry.kind:<10} {entry.name:<24} {size(entry.size):>9} {used:>10}  {runs}"
    yield f"{counted(len(held))}, {size(sum(entry.size for entry in held))}"


def counted(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    unit, factor = next((each for each in reversed(SIZES.items()) if count >= each[1]), ("B", 1.0))
    return f"{count / factor:.{1 if factor > 1 else 0}f} {unit}"


def ago(seconds: float) -> str:
    """A duration in the largest unit that fits, as ``older`` takes it."""
    unit, factor = next((each for each in reversed(TIMES.items()) if seconds >= each[1]), ("min", 60.0))
    return f"{max(0.0, seconds) / factor:.0f} {unit}"


def _work(options: CacheOptions, _: Context) -> None:
    folder = Path(options.cache)
    if not folder.is_dir():
        raise OptionError(f"cache={folder}: no such folder; give the one that your runs were given")
    remove_leftovers(folder)
    now, held = time.time(), entries(folder)
    if options.action == "list":
        print("\n".join(_listed(held, references(Path(options.runs)), now)))
    elif options.action == "prune":
        print("\n".join(_prune(held, options, now)))
    else:
        damaged = list(verify(folder))
        print("\n".join([*damaged, f"{counted(len(held))}, {len(damaged)} damaged"]))
        if damaged:
            raise SystemExit(1)


main = entry_point("what the cache holds", "cache", _work)

if __name__ == "__main__":
    main()
