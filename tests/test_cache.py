"""What counts as made: keys, stored tensors, and the cache of stages."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tave.cache import (
    Cache,
    DamagedError,
    StoredError,
    find_tensors,
    form_of,
    is_made,
    key_of,
    read_about,
    read_tensors,
    recall,
    remember,
    write_tensors,
)
from tave.config import MaskOptions
from tave.files import write_json
from tave.finite import NonFiniteError
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
    assert key_of(torch.zeros(1, 1, 3).permute(2, 0, 1)) == key_of(torch.zeros(3, 1, 1))  # a picture of one pixel
    with pytest.raises(TypeError, match="parts of their own"):
        key_of([torch.zeros(2)])


def test_a_product_is_made_if_it_is_stored_with_its_key(tmp_path: Path) -> None:
    tensors, figures = tmp_path / "maps.safetensors", tmp_path / "metrics.json"
    assert not is_made(tensors, "k")
    write_tensors(tensors, TENSORS, {"key": "k"})
    write_json(figures, {"key": "k", "keys": {"red": "r"}})
    for product in (tensors, figures):
        assert is_made(product, "k") and not is_made(product, "other")
    write_json(tmp_path / "odd.json", {"keys": [1]})
    assert not is_made(tmp_path / "odd.json", "k") and not is_made(tmp_path / "odd.json", "k", "red")
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


@pytest.mark.parametrize("seconds", [None, [1], {"masking": "x"}, {"masking": math.nan}, {"masking": [1]}])
def test_a_result_that_records_odd_seconds_ends_no_command(tmp_path: Path, seconds: Any) -> None:
    """As in the trajectory of a stranger's run."""
    cache = Cache(tmp_path, progress=Progress(show=False))
    key = key_of("", 1)
    about = {"key": key} | ({} if seconds is None else {"seconds": seconds})
    write_tensors(tmp_path / f"maps-{key}.safetensors", TENSORS, about)
    found = cache.tensors("maps", [1], lambda: TENSORS)
    assert all(torch.equal(found[part], TENSORS[part]) for part in TENSORS)


@pytest.mark.parametrize("lost", ["cache", "copy"])
def test_a_copy_is_written_beside_the_run_and_read_back(tmp_path: Path, lost: str) -> None:
    """What is read there is not stored in the cache, for whoever made the run wrote the key of its files."""
    progress, folder, copy = Progress(show=False), tmp_path / "cache", tmp_path / "run" / "maps.safetensors"
    made, copies = Made(progress), {"maps": copy}
    Cache(folder, "clip", progress, copies).tensors("maps", [1], made)
    (stored,) = folder.iterdir()
    assert is_made(copy, key_of("clip", 1)) and copy.read_bytes() == stored.read_bytes()
    (stored if lost == "cache" else copy).unlink()
    cache = Cache(folder, "clip", progress, copies)
    cache.tensors("maps", [1], made)
    assert made.times == 1 and stored.exists() == (lost == "copy") and copy.exists()
    cache.tensors("more", [], made)  # keyed by the content of a copy that it may come from
    assert made.times == 2 and (folder / f"more-{key_of('clip')}.safetensors").exists() == (lost == "copy")
    Cache(folder, "clip", progress, copies).tensors("more", [], made)
    assert made.times == (2 if lost == "copy" else 3)
    Cache(folder, "clip", progress, copies).tensors("maps", [2], made)  # another key: computed, the copy replaced
    assert is_made(copy, key_of("clip", 2))


# ---- what is damaged, or is not what was expected --------------------------------------------------------------------

FORM = form_of(TENSORS)


def flipped(path: Path, place: int, mask: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


def test_no_flipped_byte_of_any_part_of_a_file_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "maps.safetensors"
    write_tensors(whole, TENSORS, {"key": "k", "psnr": 31.5})
    refused = 0
    for place in range(whole.stat().st_size):
        shutil.copy(whole, path)
        flipped(path, place)
        caplog.clear()
        found = find_tensors(path, "k", FORM)
        if found is None:
            refused += 1
            assert "maps.safetensors" in caplog.text and "making it again" in caplog.text
        else:  # white space between the parts of the header
            assert all(torch.equal(found[0][name], TENSORS[name]) for name in TENSORS)
            assert found[1] == {"key": "k", "psnr": 31.5}
    assert refused > 0.95 * whole.stat().st_size


def test_no_part_of_a_file_is_used_for_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    write_tensors(path, TENSORS, {"key": "k"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert not is_made(path, "k")
        with pytest.raises(DamagedError, match=r"maps\.safetensors is damaged .*: delete it and run again"):
            read_about(path)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "no digest"])
def test_a_damaged_entry_is_named_and_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    progress, copy = Progress(show=False), tmp_path / "run" / "maps.safetensors"
    made, cache = Made(progress), Cache(tmp_path / "cache", "clip", progress, {"maps": copy})
    cache.tensors("maps", [1], made)
    (stored,) = (tmp_path / "cache").iterdir()
    whole = stored.read_bytes()
    for path in (stored, copy):
        if damage == "flipped":
            flipped(path, -3)
        elif damage == "no digest":
            save_file(TENSORS, path, {"about": json.dumps({"key": key_of("clip", 1), "seconds": {}})})
        else:
            path.write_bytes(whole[:-1] if damage == "cut" else b"")
    found = cache.tensors("maps", [1], made)
    assert made.times == 2 and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert [record.getMessage().partition(" is damaged")[0] for record in caplog.records] == [str(stored), str(copy)]
    cache.tensors("maps", [1], made)
    assert made.times == 2 and is_made(stored, key_of("clip", 1)) and is_made(copy, key_of("clip", 1))


@pytest.mark.parametrize(
    "strange",
    [
        {"maps": TENSORS["maps"].double()},
        {"maps": TENSORS["maps"].int()},
        {"maps": TENSORS["maps"][:, :1]},  # width 1 would broadcast
        {"maps": TENSORS["maps"][None]},
        {"more": torch.zeros(1)},
    ],
)
def test_tensors_of_another_form_are_made_again(
    tmp_path: Path, strange: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    made = Made(Progress(show=False))
    path, cache = tmp_path / f"maps-{key_of('', 1)}.safetensors", Cache(tmp_path)
    write_tensors(path, {**TENSORS, **strange}, {"key": key_of("", 1), "seconds": {}})
    found = cache.tensors("maps", [1], made, FORM)
    assert form_of(found) == FORM and made.times == 1 and "expected" in caplog.text
    assert cache.tensors("maps", [1], made, FORM).keys() == TENSORS.keys() and made.times == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_that_is_not_finite_is_stored(tmp_path: Path, value: float) -> None:
    with pytest.raises(NonFiniteError, match="the maps is not finite"):
        Cache(tmp_path).tensors("maps", [1], lambda: {"maps": torch.tensor([0, value])})
    assert not list(tmp_path.iterdir())


def test_reading_an_entry_makes_it_the_most_recently_used(tmp_path: Path) -> None:
    made, cache = Made(Progress(show=False)), Cache(tmp_path)
    cache.tensors("maps", [1], made)
    (stored,) = tmp_path.iterdir()
    os.utime(stored, (0, 0))
    cache.tensors("maps", [1], made)
    assert made.times == 1 and stored.stat().st_mtime > time.time() - 1000


def test_facts_are_remembered_and_a_damaged_record_of_them_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.json"
    assert remember(path, {"unet": "aa"}) == {} and remember(path, {"unet": "bb"}) == {"unet": "aa"}
    assert remember(path, {"vae": "cc"}) == {"unet": "bb"} and not caplog.records
    path.write_text(path.read_text().replace("bb", "ba"))
    with pytest.raises(DamagedError, match=r"weights\.json is damaged"):
        recall(path)
    assert remember(path, {"unet": "bb"}) == {} and "making it again" in caplog.text
    for text in ("", "[]", "{}", '{"facts": 3}'):
        path.write_text(text)
        assert remember(path, {"unet": "bb"}) == {} and recall(path) == {"unet": "bb"}
