"""report.html: what it shows of a run, that text stays text, and that it loads nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from runs import call, options

from eval.rules import DOUBTFUL, GOOD, OPEN, POOR, RULES, verdicts
from tave.edit import edit
from tave.files import FileError, read_json
from tave.record import SUMS, check_record, read_sums
from tave.report import __main__ as command
from tave.report import write_report
from tave.report.charts import curves, running_median
from tave.report.read import commands, read_report
from tave.train import train

EVIL = "<script>alert(1)</script>\"'&"


class Structure(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prompt and target's file name are HTML. Not to be changed."""
    folder = tmp_path_factory.mktemp("report")
    target = Path(shutil.copy(clip / "target.png", folder / "<script>alert(2)<script>.png"))
    words = ["metrics.judge=shipped", "report=true", "tuning.steps=3"]
    given = options(clip, folder / "cache", *words)
    entry = given.video.edits["suv"]
    entry.target_prompt, entry.target_image = EVIL, str(target)
    return train(given, folder / "run", chosen={"overrides": ["video.name=" + EVIL]}, show=False)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_report_is_part_of_the_run_and_shows_all_of_it(run: Path, page: str) -> None:
    assert "report.html" in read_sums(run) and "report.html" not in read_sums(run / "edits/suv")
    check_record(run)
    held = Structure(page)
    (slider,) = held.all("input")
    frames = len(read_report(run).source.frames)
    assert (slider["type"], slider["max"]) == ("range", str(frames - 1))
    assert [video["aria-label"] for video in held.all("video")] == ["Source", "Mask", "Edit"]
    labels = [tag.get("aria-label") or "" for tag in held.all("div")]
    assert sum("of the map" in label for label in labels) == 2  # a step of two, and the average
    assert sum("data-frame" in group for group in held.all("g")) == frames  # of the field
    assert {"Loss", "Reconstruction", "Time and memory", "How to make it again"} <= set(
        re.findall(r"<h3>(.*?)</h3>", page)
    )
    for stated in (
        "Background outside the mask",
        "good at least 40, poor at most 30",
        "ceiling: the ideal clip",
        "seed",
    ):
        assert stated in held.text
    assert len(read_json(run / "tuned.json")["losses"]) == page.count('class="dots"') == 3
    assert len(page) < 400_000


def test_text_of_users_stays_text_and_nothing_is_loaded(page: str) -> None:
    held = Structure(page)
    assert EVIL in held.text and "video.name=" in held.text
    assert len(held.all("script")) == 1 and "alert(" not in page.partition("</style>")[2].partition("<script>")[2]
    assert "<script>alert" not in page
    addresses = [value for _, tags in held.tags for key, value in tags.items() if key in ("src", "href") and value]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"https?://|@import", page)
    assert all(url.startswith("data:") or url == "#tip" for url in re.findall(r"url\(([^)]*?)\)", page))
    assert "default-src 'none'" in page


@pytest.mark.slow  # several runs
def test_it_is_made_again_from_the_folder_alone_and_covers_every_edit(run: Path, clip: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(run, tmp_path / "run"))
    words = ["metrics.enabled=false", "correction.enabled=false", "mask.dilate=0.1", "report=false"]
    edit(here, options(clip, tmp_path / "cache", *words), overrides=words, show=False)
    assert (here / "report.html").read_bytes() == (run / "report.html").read_bytes()
    (here / "report.html").unlink()
    assert call(command.main, f"run={here}") == 0
    held = Structure((here / "report.html").read_text())
    assert [section["id"] for section in held.all("section") if section.get("id")] == ["edit-suv-2", "edit-suv"]
    assert len(held.all("video")) == 6
    for stated in ("The inter-frame correction was off", "The edit itself was not measured", "mask.dilate"):
        assert stated in held.text
    assert f"python -m tave.edit run={here} metrics.enabled=false" in commands(read_report(here))[1]
    check_record(here)


def test_arrays_of_another_form_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(run, tmp_path / "run"))
    (here / "edits/suv" / SUMS).unlink()
    np.savez(here / "edits/suv/soft_mask.npz", per_step=np.zeros(3), soft=np.zeros(3))
    with pytest.raises(FileError, match=r"soft_mask\.npz holds no maps"):
        write_report(here)
    assert (here / "report.html").read_bytes() == (run / "report.html").read_bytes()


@pytest.mark.parametrize("odd", [None, [], "<b>", {"edits": 3}, 1e400, {"seconds": "<b>"}])
def test_records_of_any_content_make_a_page(run: Path, odd: object, tmp_path: Path) -> None:
    """They may be somebody else's."""
    here = Path(shutil.copytree(run, tmp_path / "run"))
    changes = {
        "run.json": dict.fromkeys(("chosen", "versions", "commit", "seed"), odd) | {"config": {"video": odd}},
        "tuned.json": {"losses": odd},
        "edits/suv/edit.json": dict.fromkeys(("notes", "options", "overrides", "target_prompt"), odd),
        "metrics.json": dict.fromkeys(("reconstruction_by_frame", "autoencoder_psnr"), odd)
        | {"stages": {"<b>": {"seconds": 1.0, "peak_mb": odd, "remembered": odd}}},
    }
    for name, change in changes.items():
        (here / name).write_text(json.dumps(read_json(here / name) | change))
    for sums in (here / SUMS, here / "edits/suv" / SUMS):
        sums.unlink()
    if odd == math.inf:  # figures are finite
        with pytest.raises(FileError, match=r"metrics\.json: \w+ is not finite: delete it and score again"):
            write_report(here)
        return
    page = write_report(here).read_text()
    assert len(Structure(page).all("video")) == 3
    assert "<b>" not in re.sub(r"<b>[^<]*</b>", "", page)


def test_a_clip_of_any_size_and_length_is_shown(run: Path, clip: Path, tmp_path: Path) -> None:
    words = [
        "video.frames=1",
        "video.width=48",
        "video.height=32",
        "video.edits.suv.truth=null",
        "metrics.enabled=false",
    ]
    made = train(options(clip, tmp_path / "cache", *words, "report=true"), tmp_path / "run", show=False)
    held = Structure((made / "report.html").read_text())
    assert held.all("input")[0]["max"] == "0" and len(held.all("video")) == 3
    assert "Nothing was measured" not in held.text and "The edit itself was not measured" in held.text


# ---- what the figures say --------------------------------------------------------------------------------------------


def level(**figures: float) -> dict[str, str]:
    return {verdict.metric: verdict.level for verdict in verdicts(figures)}


def test_a_figure_reads_as_its_thresholds_say() -> None:
    assert level(residue_old=0.05) == {"residue_old": GOOD} and level(residue_old=0.06) == {"residue_old": DOUBTFUL}
    assert level(residue_old=0.3) == {"residue_old": POOR}
    assert level(background_psnr=40) == {"background_psnr": GOOD} and level(background_psnr=30) == {
        "background_psnr": POOR
    }
    assert level(residue_old=float("nan")) == {} and verdicts({"residue_old": None, "unknown": 1.0}) == []


def test_a_relative_figure_needs_what_it_is_relative_to() -> None:
    assert level(warp_error_object=15) == {"warp_error_object": OPEN}
    assert level(warp_error_object=15, warp_error_object_source=10) == {"warp_error_object": GOOD}
    assert level(warp_error_object=31, warp_error_object_source=10) == {"warp_error_object": POOR}
    assert level(warp_error_object=31, warp_error_object_source=0) == {"warp_error_object": OPEN}
    assert level(clip_image=0.5, clip_image_source=0.6) == {"clip_image": POOR}


def test_where_even_the_ideal_clip_fails_there_is_no_verdict() -> None:
    """The judge doesn't recognise every pattern."""
    assert level(judge_pattern_accuracy=0, judge_pattern_accuracy_ceiling=0) == {"judge_pattern_accuracy": OPEN}
    assert level(judge_pattern_accuracy=0, judge_pattern_accuracy_ceiling=1) == {"judge_pattern_accuracy": POOR}


def test_every_rule_is_of_a_metric_and_goes_its_way() -> None:
    from eval.metrics import METRICS

    for name, rule in RULES.items():
        assert rule.good != rule.poor and rule.meaning.endswith(".") and not rule.change.endswith(".")
        if name in METRICS and (better := METRICS[name].higher_is_better) is not None:
            assert (rule.good > rule.poor) == better, name
    assert set(RULES) - set(METRICS) == {"reconstruction_psnr"}


def test_curves_hold_every_point_and_survive_odd_ones() -> None:
    assert curves([("a", [])], "x", "step") == "" == curves([("a", [0.0])], "x", "step", log=True)
    assert curves([("dots", [1.0, 10.0, 0.0])], "x", "step", log=True).count("<circle") == 2
    assert "nan" not in curves([("a", [3.0]), ("b", [3.0])], "x", "step")
    long = curves([("a", [float(i) for i in range(2500)])], "x", "step", first=1)
    assert long.count(",") < 1000 and ">2500</text>" in long
    assert running_median([9, 1, 1, 1, 9], 3) == [5, 1, 1, 1, 5]
