"""A set of the user's own clips: read from one file, refused entry by entry, and laid out as DAVIS is."""

from __future__ import annotations

import json
from itertools import pairwise
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
        ({"name": 3}, r"case '\?': name is no text"),
        ({"name": "x" * 101}, "can't be a folder name"),
        ({"path": ["bus.mp4"]}, "path is no text"),
        ({"path": "x" * 5000}, "is missing"),
        ({"groups": 5}, "groups is no list of names"),
        ({"groups": [["a"]]}, "groups is no list of names"),
        ({"frames": "x"}, "frames is no number of frames"),
        ({"frames": -1}, "frames is no number of frames"),
        ({"frames": 10**9}, "frames is no number of frames"),
        ({"target_prompt": "\ud800"}, "target_prompt is no text in UTF-8"),
        ({"groups": ["a\udcff"]}, "groups is no text in UTF-8"),
        ({3: "a"}, r"unknown int \(no text\): known are"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line(home: Path, change: dict[Any, Any], message: str) -> None:
    cases = [{"name": "bus", **CASE, **change}, {"name": "other", **CASE}]
    (home / "cases.yaml").write_text(yaml.safe_dump(cases))
    with pytest.raises(OptionError, match=rf"^.*cases\.yaml.*{message}.*$"):
        read_listing(home / "cases.yaml")


# Ten lines that stand for nine to the ninth power of words.
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))


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
        BOMB + "cases: [{name: *j}]",
        "[{name: x, frames: " + "9" * 5000 + "}]",
        "[{name: 0x" + "f" * 5000 + "}]",
        "# " + "x" * 4_000_000,
    ],
)
def test_what_is_no_listing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(text)
    with pytest.raises(ValueError, match=r"^.*cases\.json.*$") as caught:
        read_listing(listing_of(tmp_path))
    assert not any(word in str(caught.value) for word in ("codec", "Exceeds", "recursion"))
    with pytest.raises(OptionError, match=r"no cases\.json or cases\.yaml"):
        listing_of(tmp_path / "elsewhere")
