"""Claims: one process at a time, released when it dies, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import held_elsewhere

from tave.files import remove_leftovers
from tave.locks import ClaimedError, all_claimed, claimed


def test_the_second_process_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run" / "edit"
    with held_elsewhere(path) as other:
        with (
            pytest.raises(ClaimedError, match=rf"edit: process {other.pid} on .* is writing it") as caught,
            claimed(path),
        ):
            raise AssertionError
        assert "\n" not in str(caught.value)
        with claimed(path.with_name("another")):
            pass


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edit"
    with held_elsewhere(path) as other:
        other.kill()
        other.wait()
        with claimed(path):
            assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_what_a_dead_process_left_goes_and_what_is_held_stays(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "dead") as other:
        other.kill()
    with claimed(tmp_path / "mine"):
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        with pytest.raises(ClaimedError), claimed(tmp_path / "mine"):
            raise AssertionError


def test_the_second_process_waits_and_says_so(tmp_path: Path) -> None:
    path, said = tmp_path / "edit", []
    with held_elsewhere(path) as other:

        def let_go(line: str) -> None:
            said.append(line)
            other.communicate(b"\n")

        with all_claimed([path, tmp_path / "another"], wait=60, on_wait=let_go):
            pass
    assert len(said) == 1 and f"waiting for process {other.pid}" in said[0]
    assert not list(tmp_path.iterdir())


def test_folders_that_are_made_for_a_claim_go_with_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "a/b/run.json"):
        pass
    assert not list(tmp_path.iterdir())
    with claimed(tmp_path / "a/b/run.json"):
        (tmp_path / "a/b/kept").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]
