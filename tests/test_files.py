"""Files are written whole and identified by content; progress records what stages took."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tave import files
from tave.files import (
    HOST,
    LOCK,
    PART,
    FileError,
    check_writable,
    content_digest,
    file_digest,
    naming,
    read_json,
    remove_leftovers,
    whole_file,
    whole_folder,
    write_json,
)
from tave.progress import Progress


def test_a_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("second")
        raise ZeroDivisionError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_new_file_has_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a") as temporary:
            temporary.touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_any_name_that_the_system_takes_can_be_written(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("ä" * 127)) as temporary:
        temporary.write_text("1")
    message = r"ä: can't be written \(File name too long\): give a shorter name"
    with pytest.raises(FileError, match=message), whole_file(tmp_path / ("ä" * 128)):
        raise AssertionError("told after the work")
    with pytest.raises(FileError, match="too long"):
        check_writable(tmp_path.joinpath(*["deep" * 50] * 20))
    assert [path.name for path in tmp_path.iterdir()] == ["ä" * 127]


def folder_of(path: Path, text: str, *, replace: bool = True) -> None:
    with whole_folder(path, replace=replace) as waiting:
        assert waiting.name == path.name
        (waiting / "a").write_text(text)


def test_a_folder_that_is_removed_while_it_is_written_never_gets_its_name(tmp_path: Path) -> None:
    """What is written afterwards makes it again, without what came before."""
    with pytest.raises(FileError, match="its folder is gone"), whole_folder(tmp_path / "edits/suv") as waiting:
        (waiting / "first").touch()
        shutil.rmtree(tmp_path / "edits")
        waiting.mkdir(parents=True)
        (waiting / "second").touch()
    assert not (tmp_path / "edits/suv").exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "edits" / "suv"
    folder_of(path, "first")
    with pytest.raises(ZeroDivisionError), whole_folder(path, replace=True) as waiting:
        (waiting / "a").write_text("second")
        raise ZeroDivisionError
    assert (path / "a").read_text() == "first"
    with pytest.raises(FileError, match=r"suv: .* a folder of this name is there: give another name"):
        folder_of(path, "second", replace=False)
    assert (path / "a").read_text() == "first"
    folder_of(path, "third")
    assert (path / "a").read_text() == "third" and list(path.parent.iterdir()) == [path]


class Killed(BaseException):
    """Stands for the death of a process: nothing of its own runs any more."""


@pytest.mark.parametrize("operation", range(6))
def test_whenever_a_process_dies_one_of_the_two_folders_is_there_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: int
) -> None:
    path, left = tmp_path / "suv", iter(range(operation))
    folder_of(path, "old")

    def mortal(name: str) -> Callable[..., Any]:
        original = getattr(Path, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, "_undo_or_complete", lambda around: None)
        patch.setattr(files, "TOKEN", "ofthedead")
        for name in ("mkdir", "rename"):
            patch.setattr(Path, name, mortal(name))
        with suppress(Killed):
            folder_of(path, "new")
    remove_leftovers(tmp_path)
    assert (path / "a").read_text() in ("old", "new") and list(tmp_path.iterdir()) == [path]
    remove_leftovers(tmp_path)
    folder_of(path, "newer")


def test_leftovers_of_dead_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = files._beside(tmp_path / "a").name
    gone = [f"{PART}{HOST}-{dead.pid}-0-1", f"{PART}{HOST}-{os.getpid()}-anothertoken-1", f"{PART}old-1-0-1"]
    kept = [mine, f"{PART}{HOST}-{os.getppid()}-0-1", f"{PART}another-1-0-1", "a.txt"]
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    os.utime(tmp_path / gone[-1], (0, 0))  # of another host, and so old that it wrote nothing that long
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_is_no_leftover_of_this_program_stays_and_no_link_is_followed(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    for name in ("new", "old"):
        (mine / name).mkdir(parents=True)
        (mine / name / "thesis.txt").write_text("the only copy")
    (folder / f"{PART}elsewhere-1-0-2").mkdir(parents=True)
    places = (f"{PART}elsewhere-1-0-1", f"{PART}elsewhere-1-0-2/old", f"{PART}elsewhere-1-0-2/new")
    for name, target in zip(places, (mine, mine / "old", mine / "new"), strict=True):
        (folder / name).symlink_to(target)
    (folder / f"{LOCK}0123456789abcdef").symlink_to(mine / "created")
    others = [f"{PART}video.mp4", f"{PART}a-b", f"{LOCK}mine", f"{PART}elsewhere-1-0-3.mp4"]
    for name in others:
        (folder / name).touch()
    for path in (mine, *folder.iterdir()):
        os.utime(path, (0, 0), follow_symlinks=path == mine)
    remove_leftovers(folder)
    kept = [places[0], f"{LOCK}0123456789abcdef", *others]
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    assert sorted(path.name for path in mine.rglob("*")) == ["new", "old", "thesis.txt", "thesis.txt"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "may write"), (errno.EACCES, "rights"), (errno.EIO, "disk")],
)
def test_what_the_system_refuses_names_file_and_remedy_in_one_line(tmp_path: Path, number: int, remedy: str) -> None:
    message = rf"a\.txt: can't be written \(.*\): .*{remedy}"
    with pytest.raises(FileError, match=message) as caught, whole_file(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    with pytest.raises(FileError, match=rf"^{tmp_path}.*{remedy}"), naming(tmp_path):
        raise OSError(number, os.strerror(number), *([] if number in files.REFUSED else [tmp_path / "logs"]))


def test_what_a_user_gave_is_not_named_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), naming(tmp_path / "run"):
        (tmp_path / "clip.mp4").read_bytes()


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file: can't be written .*: a part of this path is a file"):
        check_writable(tmp_path / "file" / "b")


def test_a_folder_that_another_process_removes_after_its_own_check_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, times = Path.write_bytes, iter(range(3))

    def late(path: Path, content: bytes) -> int:
        if next(times, None) is not None:
            path.parent.rmdir()
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", late)
    check_writable(tmp_path / "outputs/cache")
    assert next(times, None) is None and not list(tmp_path.iterdir())


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


DEEP = f'{{"a": {"[" * 200}{"]" * 200}}}'  # which the parser takes, and copying doesn't


@pytest.mark.parametrize("content", [None, "{", "[]", "3", "\xff", DEEP, f'{{"a": {"9" * 5000}}}'])
def test_what_is_not_a_json_object_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(FileError, match=r"a\.json .*: copy it again$") as caught:
        read_json(path, "copy it again")
    assert not any(word in str(caught.value) for word in ("\n", "codec", "Exceeds"))


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


def test_what_a_library_leaves_beside_a_file_goes_with_it(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.safetensors") as waiting:
        waiting.write_text("a")
        waiting.with_name(".tmpLTpjJH").write_text("half of it")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
