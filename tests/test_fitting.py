"""``memory=auto``: as much is saved as the device needs, and nothing that changes the result."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest
import torch

from tave import fitting
from tave.backbone import Backbone
from tave.cli import compose_options
from tave.config import MemoryOptions
from tave.counting import SHAPES, shapes_of
from tave.fitting import GIB, LIBRARIES, STEPS, fit, fitted, savings, words
from tave.memory import rounding

AUTO = MemoryOptions(auto=True)
NEED = {way: (40 - 6 * number) * GIB for number, way in enumerate(savings(AUTO))}  # 40, 34, ... 16 GiB
CPU = torch.device("cpu")


@pytest.mark.parametrize("room", [60, 36, 28, 22, 16, 10])
def test_the_device_decides_how_much_is_saved(room: int) -> None:
    found = fitted(AUTO, NEED.__getitem__, int(room * GIB + LIBRARIES))
    expected = [way for way, need in NEED.items() if need <= room * GIB]
    assert found == (expected[0] if expected else None)


def test_nothing_is_saved_that_changes_precision_or_result() -> None:
    """Each step is tested to give the same, in test_memory."""
    assert {name for step in STEPS for name in step} == {"gradient_checkpointing", "offload", "chunk", "branches"}
    for way in savings(AUTO):
        assert (way.weights, way.tile, way.optimizer) == ("full", None, "adamw")
        assert rounding(way, "32-true") == []


def test_it_is_the_default_and_what_is_given_beside_it_stays() -> None:
    options = compose_options("train", ["video=bus_to_suv", "memory.chunk=2", "memory.offload=true"])
    assert options.memory == MemoryOptions(auto=True, chunk=2, offload=True) and options.precision == "32-true"
    assert all(way.offload and way.chunk <= 2 for way in savings(options.memory))
    assert not compose_options("train", ["video=bus_to_suv", "memory=full"]).memory.auto


def test_small_networks_are_not_counted(tiny: Backbone) -> None:
    memory, note = fit(AUTO, "32-true", tiny, 8, (32, 32), CPU)
    assert memory == AUTO and "nothing has to be saved" in note and "\n" not in note
    assert not any(way.offload for way in savings(AUTO, gpu=False))
    assert fit(MemoryOptions(), "32-true", tiny, 8, (32, 32), CPU) == (MemoryOptions(), "")


def test_what_others_hold_of_a_computers_memory_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"meminfo": "MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n", "statm": "900 500 80 1 0 1 0"}
    monkeypatch.setattr(fitting.Path, "read_text", lambda path: state[path.name])
    assert fitting.available(CPU)[0] == 4000 * 1024 + 500 * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(fitting.Path, "read_text", lambda path: path.with_name("absent").read_bytes())
    assert fitting.available(CPU)[0] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no Linux


def test_what_is_done_is_said_in_one_line_and_a_misfit_has_remedies(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    monkeypatch.setattr(
        "tave.counting.footprint", lambda _, way, *at: asked.append(at) or SimpleNamespace(peak=NEED[way])
    )
    monkeypatch.setattr(fitting, "available", lambda _: (int(30 * GIB + LIBRARIES), "a card"))
    memory, note = fit(AUTO, "32-true", tiny, 16, (2048, 2048), torch.device("cuda"))
    assert memory == savings(AUTO)[2] and asked[0] == ("32-true", 16, 2048)
    assert note == "memory=auto: 31.5 GiB on a card, memory.gradient_checkpointing=true memory.offload=true"
    assert words(memory, AUTO) in note
    monkeypatch.setattr(fitting, "available", lambda _: (int(10 * GIB), "a card"))
    with caplog.at_level(logging.WARNING):
        memory, note = fit(AUTO, "32-true", tiny, 16, (2048, 2048), torch.device("cuda"))
    assert memory == savings(AUTO)[-1] and not note
    assert "16 frames of 2048x2048 don't fit: set window.frames=8" in caplog.text and "memory=16gb" in caplog.text


def test_checkpoints_are_known_by_their_widths(tiny: Backbone) -> None:
    for name, shapes in SHAPES.items():
        assert shapes_of(SimpleNamespace(config=shapes.unet)) == SHAPES[name]  # type: ignore[arg-type]
    assert shapes_of(tiny.unet) == SHAPES["sd21_unclip"]
