"""tave-cache: what the cache holds, whether it is whole, and what may go; what is in use or asked for stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from runs import call

from tave import stored
from tave.cache import remember, write_tensors
from tave.checkpoints import PARTS, CheckpointFile
from tave.config import CacheOptions, OptionError
from tave.files import write_json
from tave.locks import claimed

DAY = 86400.0
KEYS = {name: f"{number:012x}" for number, name in enumerate(("used", "other", "clip", "stopped", "maps"), 0xAB)}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two tunings, a trajectory and maps of one of them, and a tuning that was stopped: 1 to 5 days old."""
    folder = tmp_path / "cache"
    made = {
        f"maps-{KEYS['maps']}.safetensors": {"scope": KEYS["clip"]},
        f"tuned-{KEYS['stopped']}": {},
        f"trajectory-{KEYS['clip']}.safetensors": {"scope": KEYS["clip"]},
        f"tuned-{KEYS['used']}.safetensors": {"key": KEYS["used"]},
        f"tuned-{KEYS['other']}.safetensors": {"key": KEYS["other"]},
    }
    for days, (name, about) in enumerate(made.items(), 1):
        path = folder / name
        if about:
            write_tensors(path, {"a": torch.zeros(250)}, about)
        else:
            path = path / "last.ckpt"
            CheckpointFile().save_checkpoint(dict.fromkeys(PARTS, 0), path)
        os.utime(path, (0, time.time() - days * DAY))
    remember(folder / "weights.json", {"unet": "aa"})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One finished run, which refers to a tuning and a trajectory, and one that was stopped after the tuning."""
    folder = tmp_path / "outputs"
    for name, scope in (("whole", KEYS["clip"]), ("stopped", None)):
        write_tensors(folder / "deep" / name / "tuned.safetensors", {"a": torch.zeros(1)}, {"key": KEYS["used"]})
        if scope is not None:
            write_tensors(folder / "deep" / name / "trajectory.safetensors", {"a": torch.zeros(1)}, {"scope": scope})
            write_json(folder / "deep" / name / "run.json", {"key": scope})
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pruned(cache: Path, runs: Path | None = None, **wanted: object) -> set[str]:
    """Names of what would go."""
    options = CacheOptions("prune", str(cache), str(runs), **wanted)  # type: ignore[arg-type]
    return set(stored.superfluous(stored.entries(cache), options, time.time()))


def test_entries_are_listed_with_size_use_and_runs(cache: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime for path in cache.rglob("*")}
    assert call(stored.main, f"cache={cache}", f"runs={runs}") == 0
    *lines, total = capsys.readouterr().out.splitlines()[1:]
    found = [line.split(maxsplit=7) for line in lines]
    order = ["other", "used", "clip", "stopped", "maps"]  # the least recently used first
    assert [words[1].rpartition("-")[2] for words in found] == [KEYS[name] for name in order]
    assert [words[0] for words in found] == ["tuned", "tuned", "trajectory", "tuning", "maps"]
    assert [words[4:7] for words in found] == [[str(days), "d", "ago"] for days in (5, 4, 3, 2, 1)]
    whole = runs / "deep" / "whole"
    referred = ["-", f"{runs / 'deep' / 'stopped'} and 1 more", str(whole), "-", str(whole)]
    assert [words[7] for words in found] == referred
    sizes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file() and path.name != "weights.json")
    assert total == f"5 entries, {stored.size(sizes)}"
    assert {path: path.stat().st_mtime for path in cache.rglob("*")} == before  # looking is no use


def test_pruning_goes_by_age_by_size_and_by_what_nothing_refers_to(cache: Path, runs: Path) -> None:
    def named(*keys: str) -> set[str]:
        return {entry.name for entry in stored.entries(cache) if entry.name.rpartition("-")[2] in map(KEYS.get, keys)}

    sizes = {entry.name: entry.size for entry in stored.entries(cache)}
    total, oldest = sum(sizes.values()), min(named("other"))
    assert pruned(cache, older="72.5h") == named("other", "used") and pruned(cache, older="6d") == set()
    assert pruned(cache, keep=f"{total}B") == set() and pruned(cache, keep="0B") == set(sizes)
    assert pruned(cache, keep=f"{total - 1}B") == named("other")
    assert pruned(cache, keep=f"{total - sizes[oldest] - 1}B") == named("other", "used")
    assert pruned(cache, runs, unused=True) == named("other", "stopped")
    assert pruned(cache, runs, unused=True, older="90h") == named("other", "stopped", "used")  # conditions add up
    with pytest.raises(OptionError, match="holds no run, so nothing is in use: give the folder of your runs"):
        pruned(cache, cache, unused=True)


def test_nothing_goes_unless_it_is_asked_for(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(cache)
    assert call(stored.main, "action=prune", f"cache={cache}", "keep=0B") == 0
    lines = capsys.readouterr().out.splitlines()
    assert names(cache) == before and len(lines) == 6 and lines[-1].endswith("add delete=true to remove them")
    assert call(stored.main, "action=prune", f"cache={cache}", "keep=0B", "delete=true") == 0
    lines = capsys.readouterr().out.splitlines()
    assert names(cache) == {"weights.json"} and all(line.startswith("removed: ") for line in lines)


def test_what_another_process_writes_stays(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"tuned-{KEYS['stopped']}"
    with claimed(cache / name):
        assert call(stored.main, "action=prune", f"cache={cache}", "keep=0B", "delete=true") == 0
        assert names(cache) - {"weights.json"} >= {name} and (cache / name / "last.ckpt").is_file()
    assert f"kept: {cache / name}" in capsys.readouterr().out
    assert names(cache) == {"weights.json", name}


def test_verifying_names_each_damaged_file(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stored.main, "action=verify", f"cache={cache}") == 0
    assert capsys.readouterr().out == "5 entries, 0 damaged\n"
    damaged = [cache / f"maps-{KEYS['maps']}.safetensors", cache / f"tuned-{KEYS['stopped']}" / "last.ckpt"]
    damaged.append(cache / "weights.json")
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    assert call(stored.main, "action=verify", f"cache={cache}") == 1
    *lines, total = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [str(path) for path in damaged]
    assert total == "5 entries, 3 damaged"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"action": "prune"}, "needs to know what: give older=30d, keep=10GB or unused=true"),
        ({"action": "prune", "delete": True}, "needs to know what"),
        ({"older": "30d"}, "older is for action=prune"),
        ({"action": "prune", "older": "30"}, "older=30 can't be read: give a number and one of min, h, d, w"),
        ({"action": "prune", "keep": "-1GB"}, "keep=-1GB can't be read: give a number and one of B, kB, MB, GB, TB"),
    ],
)
def test_an_unclear_wish_is_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CacheOptions(**wanted)  # type: ignore[arg-type]


def test_quantities_are_read_as_they_are_written() -> None:
    read = CacheOptions("prune", older="1.5 w", keep="2gb")
    assert read.seconds == 1.5 * 7 * DAY and read.bytes == 2e9
    assert [stored.size(count) for count in (0, 999, 1500, 2e9)] == ["0 B", "999 B", "1.5 kB", "2.0 GB"]
    assert [stored.ago(seconds) for seconds in (-5, 90, 2 * 3600, 3 * DAY)] == ["0 min", "2 min", "2 h", "3 d"]
