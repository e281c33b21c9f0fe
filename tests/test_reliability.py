"""The short forms of ``make kill``, ``fuzz``, ``disk`` and ``together`` (docs/reliability.md), and how they judge."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from reliability.faults import Fault
from reliability.mutations import changed_tree, damaged
from reliability.shared import ENVIRONMENT, ROOT, Outcome, differing, fault_of


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_short_forms_of_all_trials_survive(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.reliability", "short=true", f"out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("code", "err", "fault"),
    [
        (0, "", ""),
        (1, "error: a.png: no such file\n", ""),
        (1, "warning: slow\nerror: a.png: no such file\n", ""),
        (None, "", "hangs"),
        (-11, "", "died of SIGSEGV"),
        (1, "", "no single line of error"),
        (1, "error: a\nerror: b\n", "more than one line"),
        (1, "error: a\nmore\n", "more than one line"),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", "traceback: KeyError: 'x'"),
        (1, "error: [Errno 32] Broken pipe\n", "a line without input or remedy"),
        (1, "error: 'utf-8' codec can't encode\n", "a line without input or remedy"),
        (1, "error: Got NoneType\n", "a line without input or remedy"),
        (1, "error: KeyError: 'seconds'\n", "a line without input or remedy"),
        (1, "error: Error while deserializing a.safetensors: give another\n", ""),
        (2, "usage\n", "exit code 2, not 0 or 1"),
    ],
)
def test_how_a_command_ends_is_judged(code: int | None, err: str, fault: str) -> None:
    found = fault_of(Outcome(code, "", err, 0.0))
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_a_fault_is_read_as_it_is_written() -> None:
    for fault in (Fault("kill", "file", 3), Fault("gone", "step", 1, "/a:b/run")):
        assert Fault.read(str(fault)) == fault


def test_damage_is_the_seeds_and_leaves_the_original(tmp_path: Path) -> None:
    tree = {"a": [1, {"b": None}], "c": "text"}
    for seed in range(50):
        one, other = (damaged(b"some bytes" * 9, random.Random(seed)) for _ in range(2))
        assert one == other
        assert str(changed_tree(tree, random.Random(seed))) == str(changed_tree(tree, random.Random(seed)))
    assert tree == {"a": [1, {"b": None}], "c": "text"}


def test_missing_and_other_results_differ() -> None:
    assert differing({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]
