"""A set of the user's own clips: read from one file, refused entry by entry, and laid out as DAVIS is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tave.config import OptionError
from tave.listing import listing_of, read_listing

CASE = {"source_prompt": "a bus", "target_prompt": "a suv", "target_image": "suv.png", "path": "bus.mp4"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The files of a set."""
    for name in ("suv.png", "bus.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "Annotations/bus").mkdir(parents=True)
    return tmp_path


def test_yaml_and_json_list_the_same_cases_by_paths_beside_the_file(home: Path) -> None:
    case = {"name": "bus", "groups": "smaller", "annotations": "Annotations/bus", "frames": 3, **CASE}
    (home / "cases.yaml").write_text(yaml.safe_dump([case]))
    (found,) = read_listing(listing_of(home))
    assert (found.name, found.groups, found.frames, found.truth) == ("bus", ("smaller",), 3, None)
    assert (found.path, found.annotations) == (str(home / "bus.mp4"), str(home / "Annotations/bus"))
    (home / "cases.json").write_text(json.dumps({"cases": [case]}))
    assert listing_of(home).suffix == ".json"
    assert read_listing(listing_of(home)) == [found]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_prompt": None}, "case 'bus' lacks target_prompt"),
        ({"path": "nowhere"}, "path=.*nowhere is missing"),
        ({"prompt": "a bus"}, "unknown prompt: known are .*target_prompt"),
        ({"name": "../x"}, "can't be a folder name"),
        ({"name": "other"}, "other listed twice"),
        ({"name": 3}, "case '3': name is no text"),
        ({"name": "x" * 101}, "can't be a folder name"),
        ({"path": ["bus.mp4"]}, "path is no text"),
        ({"path": "x" * 5000}, "is missing"),
        ({"groups": 5}, "groups is no list of names"),
        ({"groups": [["a"]]}, "groups is no list of names"),
        ({"frames": "x"}, "frames='x' is no number of frames"),
        ({"frames": -1}, "frames='-1' is no number of frames"),
        ({3: "a"}, "unknown 3: known are"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line(home: Path, change: dict[Any, Any], message: str) -> None:
    cases = [{"name": "bus", **CASE, **change}, {"name": "other", **CASE}]
    (home / "cases.yaml").write_text(yaml.safe_dump(cases))
    with pytest.raises(OptionError, match=rf"^.*cases\.yaml.*{message}.*$"):
        read_listing(home / "cases.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "just words",
        "{",
        "[1, 2]",
        "",
        '{"cases": {"a": 1}}',
        "[2024-13-45]",
        "[" * 5000,
        "\0",
        "!!python/name:os.system",
    ],
)
def test_what_is_no_listing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(text)
    with pytest.raises(OptionError, match=r"^.*cases\.json.*$"):
        read_listing(listing_of(tmp_path))
    with pytest.raises(OptionError, match=r"no cases\.json or cases\.yaml"):
        listing_of(tmp_path / "elsewhere")
