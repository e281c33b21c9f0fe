"""Files are written whole and identified by content; progress records what stages took."""

from __future__ import annotations

from pathlib import Path

import pytest

from tave.files import FileError, content_digest, file_digest, read_json, whole_file, write_json
from tave.progress import Progress


def test_a_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("second")
        raise ZeroDivisionError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_folders_digest_depends_on_names_and_contents_not_on_its_place(tmp_path: Path) -> None:
    digests = []
    for place, name, text in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / place / "deep").mkdir(parents=True)
        (tmp_path / place / "deep" / name).write_text(text)
        (tmp_path / place / ".hidden").write_text(place)
        digests.append(content_digest(tmp_path / place))
    assert digests[0] == digests[1] and len(set(digests)) == 3
    assert content_digest(tmp_path / "a/deep/x") == file_digest(tmp_path / "b/deep/x")


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Ünal", "path": tmp_path, "figures": [1, 2.5, None]})
    assert read_json(path) == {"name": "Ünal", "path": str(tmp_path), "figures": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"psnr": float("nan")})
    assert read_json(path)["name"] == "Ünal"


@pytest.mark.parametrize("content", [None, "{", "[]", "3", "\xff"])
def test_what_is_not_a_json_object_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(FileError, match=r"a\.json .*: copy it again$") as caught:
        read_json(path, "copy it again")
    assert "\n" not in str(caught.value)


def test_stages_that_run_twice_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(show=False)
    for _ in range(2):
        with progress.stage("masking") as on_step:
            on_step(1, 2)
    once = progress.seconds["masking"]
    progress.remember({"inversion": 1.25})
    progress.remember({"inversion": 1.25, "masking": 1})
    assert progress.record["inversion"] == {"seconds": 0.0, "peak_mb": 0.0, "remembered": 2.5}
    assert progress.seconds["masking"] == once and progress.record["masking"]["peak_mb"] > 0
    progress.note("hidden")
    Progress().note("give [a.png,b.png]")
    assert capsys.readouterr().err == "give [a.png,b.png]\n"
