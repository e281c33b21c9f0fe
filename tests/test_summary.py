"""The end of a command: a table for people, the folder alone with quiet=true, one JSON line with json=true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import TINY, call, figures_of, of_clip

import tave.edit
import tave.train
from eval import score
from eval.rules import summary
from tave.files import read_json

UNKNOWN = "backbone.knows=[van]"  # a warning, since the prompts name no van


@pytest.fixture(scope="module")
def words(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small run, made by the first test."""
    folder = tmp_path_factory.mktemp("summary")
    places = [f"hydra.run.dir={folder / 'run'}", f"cache={folder / 'cache'}"]
    return [*of_clip(clip), *TINY, "logger=none", "report=true", *places]


@pytest.fixture
def run(words: list[str]) -> Path:
    return Path(next(word for word in words if word.startswith("hydra.run.dir=")).partition("=")[2])


def test_a_run_ends_with_a_table_and_the_next_commands(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tave.train.main, *words) == 0
    out, err = capsys.readouterr()
    assert out == f"{run}\n"
    assert "suv: " in err and "Residue of the old object" in err and "Loading weights" not in err
    assert f"look at:  {run / 'report.html'}" in err and (run / "report.html").is_file()
    assert f"python -m tave.edit run={run} video.target_image=" in err


def test_quiet_prints_the_folder_alone(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tave.train.main, *words, "quiet=true", UNKNOWN) == 0
    assert capsys.readouterr() == (f"{run}\n", "")


@pytest.mark.slow  # several runs
def test_json_is_one_line_with_all_that_a_script_needs(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tave.train.main, *words, "json=true", UNKNOWN) == 0
    (line,) = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert made.keys() == {"folder", "edits", "figures", "warnings", "seconds"}
    assert (made["folder"], made["edits"]) == (str(run), {"suv": str(run / "edits/suv")})
    assert made["figures"] == figures_of(run) and made["seconds"] > 0
    assert any("names nothing" in warning for warning in made["warnings"])
    given = ["logger=none", "metrics.enabled=false", "video.edits.suv.truth=null", f"cache={run.parent / 'cache'}"]
    picture = read_json(run / "edits/suv/edit.json")["target_image"]
    target = [f"video.target_image={picture}", "video.target_prompt=a van", "video.edit=van"]
    assert call(tave.edit.main, f"run={run}", *given[:2], given[3], *target, "json=true", "report=false") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["edits"] == {"van": str(run / "edits/van")} and json.loads(line)["figures"] == {}
    before = (run / "report.html").read_bytes()
    assert call(score.main, f"run={run}", "judge=null", "json=true") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["edits"] == ["suv", "van"]
    assert (run / "report.html").read_bytes() != before  # a report doesn't show outdated figures


@pytest.mark.parametrize("wrong", ["video.frames=many", "mask.dilat=1", "correction.block=7"])
def test_an_error_is_a_json_line_too(
    words: list[str], wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tave.train.main, *words[:-2], f"hydra.run.dir={tmp_path / 'new'}", wrong, "json=true") == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert json.loads(line)["code"] == 1 and f"error: {json.loads(line)['error']}" == err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_the_table_has_the_figures_that_matter_and_those_that_are_not_good() -> None:
    figures = {
        "residue_old": 0.4,
        "mask_recall": 0.99,
        "mask_area_ratio": 2.0,
        "ideal_psnr_aligned": 13.0,
        "clip_text": None,
    }
    lines, remedies = summary(figures)
    assert [line.split("  ")[0] for line in lines] == [
        "Nearness to the ideal clip, dB",
        "Residue of the old object",
        "Size of the mask",
    ]
    assert lines[0].split()[-1] == "13" and lines[1].endswith("poor") and lines[2].endswith("doubtful")
    assert remedies[0].startswith("residue of the old object: ") and len(remedies) == 2
    assert summary({}) == ([], [])
