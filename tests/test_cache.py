"""What counts as made: keys, stored tensors, and the cache of stages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tave.cache import Cache, StoredError, is_made, key_of, read_about, read_tensors, write_tensors
from tave.config import MaskOptions
from tave.files import write_json
from tave.progress import Progress

TENSORS = {"maps": torch.arange(6.0).view(2, 3), "psnr": torch.tensor(31.5)}


def test_keys_change_with_every_kind_of_part() -> None:
    parts: list[Any] = [
        *("a", "b", 1, 1.5, True, None, [1, 2], [2, 1], {"a": 1}, {"a": 2}, Path("a/b")),
        *(MaskOptions(), MaskOptions(dilate=0.1), MaskOptions(steps=[0.0, 1.0])),
        *(torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), -0.0)),
        *(torch.tensor(1.0), torch.tensor(2.0)),
    ]
    keys = [key_of(part) for part in parts] + [key_of(), key_of("a", "b"), key_of(1, 23), key_of(12, 3)]
    assert len(set(keys)) == len(keys) and all(len(key) == 12 for key in keys)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) and key_of(MaskOptions()) == key_of(MaskOptions())
    assert key_of(torch.zeros(3, 2).T) == key_of(torch.zeros(2, 3))  # by value, not by memory layout
    with pytest.raises(TypeError, match="parts of their own"):
        key_of([torch.zeros(2)])


def test_a_product_is_made_if_it_is_stored_with_its_key(tmp_path: Path) -> None:
    tensors, figures = tmp_path / "maps.safetensors", tmp_path / "metrics.json"
    assert not is_made(tensors, "k")
    write_tensors(tensors, TENSORS, {"key": "k"})
    write_json(figures, {"key": "k", "keys": {"red": "r"}})
    for product in (tensors, figures):
        assert is_made(product, "k") and not is_made(product, "other")
    assert is_made(figures, "r", "red") and not is_made(figures, "r", "blue") and not is_made(figures, "k", "red")


def test_tensors_and_description_return_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "maps.safetensors"
    write_tensors(path, {"turned": TENSORS["maps"].T}, {"key": "k", "seconds": {"masking": 1.5}})
    tensors, about = read_tensors(path)
    assert torch.equal(tensors["turned"], TENSORS["maps"].T) and about == read_about(path)
    assert about == {"key": "k", "seconds": {"masking": 1.5}} and [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(StoredError, match="no such file"):
        read_tensors(tmp_path / "absent.safetensors")
    path.write_bytes(b"spoilt")
    with pytest.raises(StoredError, match=r"maps\.safetensors.*delete it"):
        read_about(path)


class Made:
    """A stage that counts how often it runs."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.times = progress, 0

    def __call__(self) -> dict[str, Tensor]:
        self.times += 1
        with self.progress.stage("masking"):
            time.sleep(2e-3)
            return dict(TENSORS)


def test_a_stage_is_computed_once_for_each_key(tmp_path: Path) -> None:
    progress = Progress(show=False)
    made = Made(progress)
    for name, scope, parts, times in (
        ("maps", "clip", [1], 1),
        ("maps", "clip", [1], 1),
        ("maps", "clip", [2], 2),  # another part, scope or stage: computed
        ("maps", "other", [1], 3),
        ("trajectory", "clip", [1], 4),
        ("maps", "clip", [1], 4),
    ):
        found = Cache(tmp_path, scope, progress).tensors(name, parts, made)
        assert made.times == times and all(torch.equal(found[part], TENSORS[part]) for part in TENSORS)
    (stored,) = tmp_path.glob(f"maps-{key_of('clip', 1)}.safetensors")
    assert read_about(stored)["psnr"] == 31.5  # numbers can be read without the tensors
    for times in (5, 6):
        Cache(None).tensors("maps", [1], made)  # no folder: nothing is stored
        assert made.times == times


def test_seconds_of_a_stored_result_are_remembered(tmp_path: Path) -> None:
    first, later = Progress(show=False), Progress(show=False)
    for progress in (first, later):
        Cache(tmp_path, progress=progress).tensors("maps", [], Made(progress))
    assert first.record["masking"]["seconds"] > 0 and later.record["masking"]["seconds"] == 0
    assert later.record["masking"]["remembered"] == first.record["masking"]["seconds"]


@pytest.mark.parametrize("lost", ["cache", "copy"])
def test_a_copy_is_written_beside_the_run_and_read_back(tmp_path: Path, lost: str) -> None:
    progress, folder, copy = Progress(show=False), tmp_path / "cache", tmp_path / "run" / "maps.safetensors"
    made, copies = Made(progress), {"maps": copy}
    Cache(folder, "clip", progress, copies).tensors("maps", [1], made)
    (stored,) = folder.iterdir()
    assert is_made(copy, key_of("clip", 1)) and copy.read_bytes() == stored.read_bytes()
    (stored if lost == "cache" else copy).unlink()
    Cache(folder, "clip", progress, copies).tensors("maps", [1], made)
    assert made.times == 1 and stored.exists() and copy.exists()
    Cache(folder, "clip", progress, copies).tensors("maps", [2], made)  # another key: computed, the copy replaced
    assert made.times == 2 and is_made(copy, key_of("clip", 2))
