"""Tensors in mapped files: like others, without anonymous memory, names or leftovers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from fakes import draw
from safetensors import safe_open

from tave.cache import Cache, read_tensors, write_tensors
from tave.files import FileError
from tave.scratch import Scratch, Spool, spans

MIB = 2**20


def anonymous() -> int:
    """The anonymous memory of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_spans_partition_the_frames() -> None:
    for count in (1, 15, 16, 17, 40):
        assert [i for span in spans(count) for i in range(count)[span]] == list(range(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
def test_a_mapped_tensor_is_a_tensor_and_leaves_no_file(tmp_path: Path, dtype: torch.dtype) -> None:
    values = (draw(21, 3, 4) * 50).to(dtype)
    tensor = Scratch(tmp_path).empty(21, 3, 4, dtype=dtype)
    tensor.copy_(values)
    assert torch.equal(tensor, values) and torch.equal(tensor.flip(0)[1:3], values.flip(0)[1:3])
    assert list(tmp_path.iterdir()) == []
    made = [scratch.of(lambda span: values[span] + 1, 21, 8) for scratch in (Scratch(tmp_path), Scratch())]
    assert torch.equal(*made) and made[0].dtype == dtype
    absent = Scratch(tmp_path / "not/yet/there").empty(2)
    assert absent.shape == (2,) and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured by Linux's own account")
def test_it_takes_no_anonymous_memory(tmp_path: Path) -> None:
    """Written, stored with its digest, read again, and a slice of it computed with: 96 MiB, a few of them anonymous."""
    before = anonymous()
    tensor = Scratch(tmp_path).empty(96, MIB // 4)
    for number, part in enumerate(tensor):
        part.fill_(number)
    write_tensors(tmp_path / "a.safetensors", {"levels": tensor}, {"key": "k"})
    stored, _ = read_tensors(tmp_path / "a.safetensors", mapped=True)
    assert float((stored["levels"][90] + 1).sum()) == 91 * MIB / 4
    assert anonymous() - before < 40 * MIB


def test_a_level_read_by_slice_is_that_of_the_whole(tmp_path: Path) -> None:
    levels, path = draw(5, 1, 7, 4, 3, 3, dtype=torch.float32), tmp_path / "trajectory.safetensors"
    write_tensors(path, {"latents": levels}, {"key": "k"})
    mapped, copied = (read_tensors(path, mapped=mapped)[0]["latents"] for mapped in (True, False))
    assert torch.equal(mapped, levels) and torch.equal(copied, levels)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_slice("latents")[3, :, 2:5], levels[3, :, 2:5])


def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(FileError, match=r"free some space"):
        Scratch(tmp_path).empty(10)


def test_a_spool_grows_and_notes_shapes(tmp_path: Path) -> None:
    for scratch in (Scratch(), Scratch(tmp_path)):
        spool, frames = Spool(scratch), draw(40, 3, 4, 4).to(torch.uint8)
        for frame in frames:
            spool.append(frame)
        assert len(spool) == 40 and torch.equal(spool.tensor(), frames) and spool.shapes == {(3, 4, 4)}
        spool.append(frames[0, :, :2])
        assert spool.shapes == {(3, 4, 4), (3, 2, 4)}


@pytest.mark.parametrize("count", [15, 16, 17, 32])
def test_another_shape_is_only_noted_wherever_it_comes(count: int) -> None:
    """16 and 32 frames are those at which the spool grows."""
    spool, frames = Spool(Scratch()), draw(count, 3, 4, 4).to(torch.uint8)
    for frame in (*frames, frames[0, :, :2], frames[0]):
        spool.append(frame)
    assert spool.shapes == {(3, 4, 4), (3, 2, 4)} and len(spool) == count + 2
    assert torch.equal(spool.tensor()[[*range(count), -1]], frames[[*range(count), 0]])


def test_a_cache_has_room_on_its_own_disk(tmp_path: Path) -> None:
    assert Cache().scratch == Scratch() and Cache(tmp_path).scratch == Scratch(tmp_path)


def test_a_folder_that_another_process_removes_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One above it has the same disk. Both are looked at before they are used, and gone by then."""
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    made = Scratch(tmp_path / "outputs" / "cache").empty(3)
    made[:] = 1
    assert made.sum() == 3 and not list(tmp_path.iterdir())
