"""Pictures of run folders and sweeps show what the files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval import EvalError, plots
from eval.runs import Result
from eval.study import Sweep
from tave.correspondence import correspond
from tave.video import write_video

pytest.importorskip("matplotlib")
FRAMES, H, W = 4, 6, 8


@pytest.fixture
def edit(tmp_path: Path) -> Path:
    """An edit of a clip that moves by one cell to the right from frame to frame; a cell is 8 pixels."""
    folder = tmp_path / "edits" / "suv"
    folder.mkdir(parents=True)
    wide = torch.randn(16, H, W + FRAMES, generator=torch.Generator().manual_seed(0))
    features = torch.stack([wide[:, :, FRAMES - i : FRAMES - i + W] for i in range(FRAMES)])
    found = correspond(features)
    mask = np.zeros((FRAMES, H, W), np.uint8)
    mask[:, 2:4, 1:7] = 1
    np.savez(folder / "field.npz", previous=found.previous, following=found.following, mask=mask)
    maps = np.random.default_rng(0).random((12, FRAMES, H, W))
    np.savez(folder / "soft_mask.npz", per_step=maps, soft=maps[0], mask=mask)
    for path in (tmp_path / "source.mp4", folder / "edited.mp4"):
        write_video(path, torch.zeros(FRAMES, 3, 8 * H, 8 * W), 8)
    return folder


def test_the_field_of_a_clip_that_moves_by_a_cell_points_one_cell_on(edit: Path) -> None:
    moves = plots.field(edit)
    assert (moves[:-1, 2:4, 1:7] == [1, 0]).all()
    assert np.isnan(moves[-1]).all() and np.isnan(moves[0, 0]).all()  # no next frame; outside the mask


def test_arrows_are_as_long_as_the_motion_in_pixels(edit: Path) -> None:
    panels = plots.arrows(edit).axes
    assert len(panels) == FRAMES - 1
    (arrows,) = panels[0].collections
    assert len(np.asarray(arrows.get_offsets())) == 12  # the masked cells
    assert set(arrows.U) == {8.0} and set(arrows.V) == {0.0}  # type: ignore[attr-defined]


def test_tracks_follow_the_motion_to_the_last_frame_or_out_of_the_mask(edit: Path) -> None:
    lines = plots.tracks(edit).axes[0].lines
    assert len(lines) == 12
    lengths = [len(np.asarray(line.get_xdata())) for line in lines[:6]]
    assert lengths == [4, 4, 4, 4, 3, 2]
    assert np.asarray(lines[0].get_xdata()).tolist() == [12, 20, 28, 36]


def test_maps_are_shown_for_up_to_eight_steps_the_first_and_the_last_among_them(edit: Path) -> None:
    figure = plots.step_maps(edit)
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert len(titles) == 8 and (titles[0], titles[-1]) == ("step 1", "step 12")
    assert len(figure.axes) == 3 * 8
    assert len(plots.masks(edit).axes) == 2 * FRAMES


def test_what_was_not_made_is_named(edit: Path) -> None:
    (edit / "field.npz").unlink()
    with pytest.raises(EvalError, match=r"field\.npz.*correction"):
        plots.arrows(edit)
    np.savez(edit / "soft_mask.npz", soft=np.zeros((FRAMES, H, W)))
    with pytest.raises(EvalError, match="no maps"):
        plots.step_maps(edit)


def test_the_strip_of_a_sweep_has_the_source_then_each_value(edit: Path) -> None:
    values = ["dilate=0", "dilate=2"]
    results = [Result("bus", value, (), seed, {}, edit) for seed in (1, 2) for value in reversed(values)]
    sweep = Sweep(results, ["mask.dilate"], values, {}, [])
    figure = plots.edits(sweep, "bus")
    labels = [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()]
    assert labels == ["source", "dilate=0", "dilate=2"]
    with pytest.raises(EvalError, match=r"case=car.*bus"):
        plots.edits(sweep, "car")


def test_a_sweep_has_a_panel_for_each_metric() -> None:
    facts = {"good": {"higher_is_better": True, "unit": "dB"}}
    found = [
        {"value": "a", "metric": "good", "mean": 2.0, "seeds_sd": None, "cases": {"bus": 1.0, "car": 3.0}},
        {"value": "b", "metric": "good", "mean": 4.0, "seeds_sd": 0.1, "cases": {"bus": 2.0, "car": 4.0, "van": 6.0}},
    ]
    (panel,) = plots.by_value(found, ["good"], facts).axes
    assert {line.get_label() for line in panel.lines} >= {"bus", "car", "van"}
    pair = {"method": "b", "versus": "a", "metric": "good", "group": "all", "difference": 1.0, "low": 0.5, "high": 2}
    (panel,) = plots.intervals([pair], ["good"], facts).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["b"]
