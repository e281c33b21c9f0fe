"""A set of one's own, laid out as DAVIS lays it out, through the same door as the drawn one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image

from tave.benchmark import BenchmarkOptions, benchmark
from tave.config import CONF, typed
from tave.listing import listing_of, read_listing
from tave.options import OptionError
from tave.roadside.cases import NAMED, target_image, truth_of
from tave.video import write_video

ENTRY = {"source_prompt": "a white bus", "target_prompt": "a red suv", "target_image": "references/suv.png"}
TINY = ["backbone=tiny", "tuning.steps=1", "inversion.steps=2", "inversion.refine=0", "metrics.judge=null"]


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and palette masks by number, of a landscape size that the clip is cut from; and the same clip as a video."""
    home, (arrays, _) = tmp_path_factory.mktemp("davis"), truth_of(NAMED["bus_to_suv"], 64)
    for folder in ("JPEGImages/bus", "Annotations/bus", "references"):
        (home / folder).mkdir(parents=True)
    for number, (frame, mask) in enumerate(zip(arrays["source"], arrays["source_mask"], strict=True)):
        Image.fromarray(frame[8:]).save(home / "JPEGImages/bus" / f"{number:05}.jpg", quality=95)
        palette = Image.fromarray(mask[8:].astype(np.uint8), "P")
        palette.putpalette([0, 0, 0, 128, 0, 0])  # DAVIS paints the first object dark red
        palette.save(home / "Annotations/bus" / f"{number:05}.png")
    target_image(NAMED["bus_to_suv"], 64).save(home / "references/suv.png")
    frames = torch.from_numpy(arrays["source"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    write_video(home / "bus.mp4", frames, 8.0)
    cases = [
        {"name": "pictures", "path": "JPEGImages/bus", "annotations": "Annotations/bus", "groups": "smaller", **ENTRY},
        {"name": "video", "path": "bus.mp4", "frames": 3, **ENTRY},
    ]
    (home / "cases.yaml").write_text(yaml.safe_dump(cases))
    return home


def asked(davis: Path, folder: Path, *overrides: str) -> BenchmarkOptions:
    own = [f'"{value}"' for value in (*TINY, "video.frames=4", "video.stride=2")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["set=folder", f"set.folder={davis}", f"folder={folder}", f"overrides=[{','.join(own)}]"]
        return typed(compose("benchmark", [*given, *overrides]))


def test_a_davis_style_folder_goes_through_the_same_door(davis: Path, tmp_path: Path) -> None:
    rows = ["tave", "oracle_mask", "source_unchanged", "target_pasted"]
    assert benchmark(asked(davis, tmp_path, f"rows=[{','.join(rows)}]"), show=False) == []
    found = json.loads((tmp_path / "pictures/metrics.json").read_text())["edits"]
    assert set(found) == set(rows)
    # the oracle is told the annotated bus: the mask covers it, and more only by the cells it touches
    assert found["oracle_mask"]["mask_recall"] == 1
    assert found["oracle_mask"]["mask_iou_source"] > 0.5
    told = json.loads((tmp_path / "pictures/edits/tave/edit.json").read_text())
    assert told["benchmark"] == {"case": "pictures", "group": ["smaller"], "method": "tave", "seed": 33}
    assert json.loads((tmp_path / "pictures/run.json").read_text())["size"] == [4, 3, 32, 32]
    assert {path.name for path in (tmp_path / "video/edits").iterdir()} == set(rows) - {
        "oracle_mask"
    }  # nobody annotated it
    assert json.loads((tmp_path / "video/run.json").read_text())["size"] == [3, 3, 32, 32]


def test_annotations_that_come_or_change_later_are_measured_against(davis: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(davis, tmp_path / "davis"))
    (entry, _), folder, rows = (
        yaml.safe_load((home / "cases.yaml").read_text()),
        tmp_path / "out",
        "rows=[tave,oracle_mask]",
    )
    (home / "cases.yaml").write_text(yaml.safe_dump([{k: v for k, v in entry.items() if k != "annotations"}]))
    assert benchmark(asked(home, folder, rows), show=False) == []

    def recall() -> float | None:
        return json.loads((folder / "pictures/metrics.json").read_text())["edits"]["tave"].get("mask_recall")

    assert recall() is None
    (home / "cases.yaml").write_text(yaml.safe_dump([entry]))
    assert benchmark(asked(home, folder, rows), show=False) == []
    before = recall()
    for path in (home / "Annotations/bus").iterdir():  # now the object is the whole left half
        mask = Image.fromarray((np.arange(64) < 32)[None].repeat(56, 0).astype(np.uint8), "P")
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(path)
    (failed,) = benchmark(asked(home, folder, rows), show=False)
    assert failed["method"] == "oracle_mask" and "region_told" in failed["error"]
    assert recall() not in (None, before)


def test_json_and_yaml_say_the_same(davis: Path, tmp_path: Path) -> None:
    listed = yaml.safe_load((davis / "cases.yaml").read_text())
    (davis / "cases.json").write_text(json.dumps({"cases": listed}))
    try:
        assert listing_of(davis).suffix == ".json"
        assert read_listing(davis / "cases.json") == read_listing(davis / "cases.yaml")
    finally:
        (davis / "cases.json").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"target_prompt": None}, "target_prompt"),
        ({"path": "nowhere"}, "nowhere"),
        ({"prompt": "a bus"}, "prompt"),
        ({"name": "../x"}, "folder name"),
        ({"name": "video"}, "twice"),
    ],
)
def test_a_wrong_entry_is_named(davis: Path, change: dict[str, str | None], named: str) -> None:
    first, second = yaml.safe_load((davis / "cases.yaml").read_text())
    listing = davis / "wrong.yaml"
    listing.write_text(yaml.safe_dump([first | change, second]))
    with pytest.raises(OptionError, match=named):
        read_listing(listing)


@pytest.mark.parametrize("text", ["just words", "{", "[1, 2]"])
def test_what_is_no_listing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(text)
    with pytest.raises(OptionError, match=r"cases\.json"):
        read_listing(listing_of(tmp_path))
    with pytest.raises(OptionError, match="external_sets"):
        listing_of(tmp_path / "nobody")
