"""The app: the closed job description, limits, queue, spaces, token; without the network's work, by a fake worker."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import Setting as ClipSetting
from clips import write as write_clip
from test_video import turn

from tave.app.check import Checker, Prepared, _answered
from tave.app.job import (
    KEYS,
    OWN,
    TARGET,
    Job,
    check_limits,
    inherited,
    model_words,
    read_job,
    same_maps,
    schema,
    words_of,
)
from tave.app.plan import Plan, Stage, counted, learn, measured, note, planned
from tave.app.public import public, zipped
from tave.app.queue import Queue
from tave.app.spaces import RefusedError, Spaces, stored_name
from tave.cache import write_tensors
from tave.cli import compose_options
from tave.config import PACKAGE, AppOptions, LimitOptions, OptionError
from tave.files import write_json
from tave.roadside.resolver import drawn

CLIP = Path(drawn("bus_to_suv"))
OWN_CLIP = {"video.path": "clip", "video.source_prompt": "a bus", "video.target_image": "pic"}
OWN_CLIP |= {"video.target_prompt": "a suv"}
CLIP_IN_A_PAGE = "<img src=data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2wBD+/a/b=>"
LIMITS = LimitOptions(queue=4, each=2, megabytes=1, uploads=3, keep="1h")


# ---- the job description ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"_target_": "os.system", "example": "bus_to_suv"}, "unknown key '_target_'"),
        ({"example": "bus_to_suv", "cache": "/etc"}, "unknown key 'cache'"),
        ({"example": "bus_to_suv", "backbone.path": "/etc"}, "unknown key 'backbone.path'"),
        ({"example": "bus_to_suv", "trainer": {}}, "unknown key 'trainer'"),
        ({"example": "bus_to_suv", "mask.fixd": 1}, "did you mean mask.fixed?"),
        ({"example": "../../etc"}, "example=../../etc is not known"),
        (
            {"example": "bus_to_suv", "backbone": "sd21_unclip"},
            "backbone=sd21_unclip is not known: choose one of roadside",
        ),
        ({"example": "bus_to_suv", "seed": 1.5}, "seed=1.5: give a whole number"),
        ({"example": "bus_to_suv", "seed": True}, "seed=true: give a whole number"),
        ({"example": "bus_to_suv", "seed": -1}, "seed=-1 is out of range: set it between 0 and 2147483647"),
        ({"example": "bus_to_suv", "mask.fixed": float("nan")}, "mask.fixed=nan is out of range"),
        ({"example": "bus_to_suv", "correction.enabled": 1}, "correction.enabled=1: give true or false"),
        ({"example": "bus_to_suv", "name": "../x"}, "can't be a folder name"),
        ({"example": "bus_to_suv", "video.path": "x"}, "video.path and example exclude each other"),
        ({"example": "bus_to_suv", "video.target_prompt": "a car"}, "video.target_prompt is that of the example"),
        ({**OWN_CLIP, "video.source_prompt": "x" * 501}, "video.source_prompt has 501 characters: give at most 500"),
        ({**OWN_CLIP, "video.source_prompt": "a\x1b[2J"}, "control characters"),
        ({**OWN_CLIP, "video.target_image": ["a", "b"]}, "give text"),
        ({key: OWN_CLIP[key] for key in list(OWN_CLIP)[:3]}, "video.target_prompt not set"),
        ({**OWN_CLIP, "mask_stays": True}, "mask_stays is about video.mask"),
        ({"tuned": "0" * 16, "seed": 2}, "seed was decided when the clip was tuned"),
        ({"tuned": "0" * 16, "backbone": "roadside"}, "backbone was decided when the clip was tuned"),
        ({"tuned": "0" * 16, "video.target_image": "x"}, "belong together"),
        ({}, "no clip: give video.path, or example, or tuned"),
        ([], "a job is a JSON object"),
        ("x", "a job is a JSON object"),
    ],
)
def test_what_is_no_job_is_refused_in_the_words_of_the_command_line(content: Any, line: str) -> None:
    with pytest.raises(OptionError, match=re.escape(line)) as caught:
        read_job(content, ["roadside"])
    assert "\n" not in str(caught.value)


def test_the_keys_are_a_closed_list_of_plain_options() -> None:
    """A key that chooses a class, a folder of the server or a logger must never be added by accident."""
    assert not [
        key for key in KEYS if re.search(r"_target_|cache|logger|trainer|backbone|clip$|judge|segmenter|truth", key)
    ]
    made = schema(["roadside"])
    assert made["additionalProperties"] is False and set(made["properties"]) == {*OWN, *KEYS}
    assert made["properties"]["backbone"]["enum"] == ["roadside", None]
    assert made["properties"]["mask.fixed"] | {"description": ""} == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "",
    }


@pytest.mark.parametrize("prompt", ["a ${oc.env:HOME} bus", 'a "bus", [x]', "null", "choice(a,b)", "it's {a: 1}", "\\"])
def test_texts_reach_the_run_as_they_are_typed(prompt: str) -> None:
    job = read_job(
        {**OWN_CLIP, "video.source_prompt": prompt, "video.frames": 4, "mask.threshold": "fixed"}, ["roadside"]
    )
    options = compose_options("train", words_of(job, {"video.path": "in/a.mp4", "video.target_image": "in/b.png"}))
    assert options.video.source_prompt == prompt and options.video.frames == 4 and options.mask.threshold == "fixed"
    assert options.video.path == "in/a.mp4" and list(options.video.requests()) == ["b"]


def test_limits_are_those_of_the_server() -> None:
    for key, value in {"video.frames": 65, "video.width": 2048, "tuning.steps": 1001}.items():
        with pytest.raises(OptionError, match=f"{key}={value} is out of range"):
            check_limits(Job(example="bus_to_suv", values={key: value}), LimitOptions())


def test_what_the_schema_allows_is_a_job() -> None:
    """Null wherever it says so; and what it says that null means is what a run does."""
    properties = schema(["roadside"])["properties"]
    for key, about in properties.items():
        if "null" in about["type"] and key not in (*TARGET, "video.path", "example", "tuned"):
            job = read_job({"example": "bus_to_suv", key: None}, ["roadside"])
            check_limits(job, LimitOptions())
            compose_options("train", words_of(job, {}))
    assert "null: auto" in properties["memory"]["description"]
    assert compose_options("train", words_of(Job(example="bus_to_suv"), {})).memory.auto


def test_another_edit_takes_the_target_of_the_earlier_one() -> None:
    earlier = Job(values={**OWN_CLIP, "video.mask": "m"}, mask_stays=True)
    again = inherited(Job(tuned="a", values={"mask.fixed": 0.3}), earlier)
    assert again.values == {
        "video.target_image": "pic",
        "video.target_prompt": "a suv",
        "video.mask": "m",
        "mask.fixed": 0.3,
    }
    assert again.mask_stays and same_maps(Job(tuned="a", values={"mask.fixed": 0.3}), Job(values=OWN_CLIP))
    assert not same_maps(Job(tuned="a", values={"reference.heading": "mirrored"}), Job(values=OWN_CLIP))
    other = Job(tuned="a", values={"video.target_image": "x", "video.target_prompt": "y"})
    assert inherited(other, earlier) == other


def test_nothing_of_the_server_leaves() -> None:
    line = public(
        f"/srv/app/spaces/ab-cd/jobs/1/inputs/video/a.mp4: damaged (see {PACKAGE}/roadside/weights and ~/x/y)"
    )
    assert line == "a.mp4: damaged (see tave/roadside/weights and y)"
    assert public("inputs/target_image/suv.png: no", {"inputs/target_image/suv.png": "my suv.png"}) == "my suv.png: no"
    assert public("a red/blue suv at 1/2 size; video.mask=FILE") == "a red/blue suv at 1/2 size; video.mask=FILE"
    assert public(f"{CLIP_IN_A_PAGE}<td>/srv/weights/sd21</td>") == f"{CLIP_IN_A_PAGE}<td>sd21</td>"
    digest = "script-src 'sha256-uU0nuZNNPgilLlLX2n2r+/sSE7+N6U4DukIj3rOLvzek='"
    assert public(digest) == digest
    script = (PACKAGE / "report" / "page.js").read_text()
    assert public(script) == script  # the digest is its own


def test_the_page_shows_figures_that_the_report_explains() -> None:
    from eval.rules import RULES
    from eval.tables import HEADLINE

    script = (PACKAGE / "app/static/page.js").read_text()
    shown = re.search(r"const FIGURES = \{(.*?)\};", script, re.DOTALL)
    names = {*re.findall(r"(\w+): \"", shown[1])} if shown else set()
    assert names and names <= {*RULES, *HEADLINE}


def test_a_zip_has_no_path_and_its_record_is_that_of_its_files(tmp_path: Path) -> None:
    import hashlib

    from tave.record import write_record

    run = tmp_path / "secret" / "run"
    write_json(run / "edits/suv/edit.json", {"target_image": str(tmp_path / "secret/inputs/suv.png")})
    write_record(run / "edits/suv")
    write_json(run / "run.json", {"config": {"backbone": {"path": str(PACKAGE / "roadside/weights/backbone")}}})
    (run / "edited.mp4").write_bytes(b"\x00/tmp/x/y")
    write_record(run)
    (run / ".lock-1").touch()
    stored = zipfile.ZipFile(io.BytesIO(b"".join(zipped(run, "mine"))))
    assert stored.testzip() is None and not [name for name in stored.namelist() if ".lock" in name]
    texts = [stored.read(name).decode() for name in stored.namelist() if not name.endswith("mp4")]
    assert not any(str(tmp_path) in text or str(PACKAGE.parent) in text for text in texts)
    assert json.loads(stored.read("mine/run.json"))["config"]["backbone"]["path"] == "tave/roadside/weights/backbone"
    for place in ("mine/", "mine/edits/suv/"):
        for line in stored.read(f"{place}SHA256SUMS").decode().splitlines():
            sha, name = line.split("  ")
            assert hashlib.sha256(stored.read(place + name)).hexdigest() == sha, name


def test_the_service_holds_no_network(tmp_path: Path) -> None:
    """Jobs and checks have processes of their own, so that a server is small, and a crash of theirs is not its own."""
    pytest.importorskip("fastapi", reason="the app's packages: pip install -e '.[app]'")
    code = "import sys, tave.app.service, tave.app.batch, tave.stored; from tave.app.plan import learn, measured; "
    code += "from pathlib import Path; tave.app.spaces.sweep_cache(Path('cache'), 0.0); "
    code += "assert not {'torch', 'gradio', 'lightning', 'av'} & sys.modules.keys()"
    write_tensors(tmp_path / "cache/maps-0123456789ab.safetensors", {"soft": torch.zeros(2)}, {"key": "0123456789ab"})
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_what_a_job_took_is_expected_of_the_next(tmp_path: Path) -> None:
    plan = Plan((Stage("sampling", 10, 0.2), Stage("tuning", 5, remembered=True)), 4, (100, 50), "model")
    assert plan.seconds is None
    seen: dict[str, dict[str, Any]] = {}
    for done, seconds, over in (
        (1, 0.1, False),
        (4, 1.0, True),
        (1, 0.5, False),
        (4, 1.0, True),
    ):  # twice 4 of 10 steps
        event = {"stage": "sampling", "done": done, "total": 4, "seconds": seconds, "peak_mb": 300.0 * over}
        note(seen, event | {"over": over})
    learn(tmp_path, plan, seen)
    rate, peak = measured(tmp_path, "model")["sampling"]
    assert rate * 0.2 == pytest.approx(2.5) and peak == 300.0  # of all ten
    assert measured(tmp_path, "other") == {}


def test_a_long_clip_costs_its_windows_and_the_memory_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = compose_options("train", ["video=bus_to_suv", "inversion.steps=10", "tuning.steps=5"])
    short, long = (planned(options, (count, 3, 100, 100), tmp_path, tuned=False) for count in (16, 64))
    frames = {a.name: (a.megapixels / a.steps * 100, b.megapixels / b.steps * 100)
              for a, b in zip(short.stages, long.stages, strict=True)}  # fmt: skip
    assert frames["encoding"] == pytest.approx((16, 64)) and frames["tuning"] == pytest.approx((16, 16))
    for name in ("inversion", "reconstruction", "masking", "sampling"):
        assert frames[name] == pytest.approx((16, 96))  # six windows of 16, with the frames that they share
    seen: list[int] = []

    def footprint(shapes: Any, memory: Any, precision: str, frames: int, side: int) -> Any:
        seen.append(frames)
        raise InterruptedError

    monkeypatch.setattr("tave.counting.footprint", footprint)
    big = replace(options, backbone=replace(options.backbone, name="sd21_unclip_small"))
    with pytest.raises(InterruptedError):
        counted(big, (64, 3, 768, 768))
    assert seen == [16]


def test_the_pages_settings_become_keys_and_what_is_empty_its_default() -> None:
    pytest.importorskip("gradio", reason="the app's packages: pip install -e '.[app]'")
    from tave.app.events import AGAIN, SETTINGS, chosen, outline_of

    empty = dict.fromkeys((*SETTINGS, *AGAIN), "") | {
        "mask.threshold": "default",
        "mask.fixed": 0.5,
        "mask.quantile": 0.8,
    }
    assert chosen(empty) == {}
    assert chosen(empty | {"mask.threshold": "as at first"}) == {}  # of a clip that is tuned
    assert chosen(dict.fromkeys(empty)) == {}  # fields that were never shown
    given = chosen(
        empty | {"seed": " 7 ", "sampler.guidance_scale": "2.5", "mask.threshold": "fixed", "video.frames": "x"}
    )
    assert given == {
        "seed": 7,
        "sampler.guidance_scale": 2.5,
        "mask.threshold": "fixed",
        "mask.fixed": 0.5,
        "video.frames": "x",
    }
    assert outline_of(None) is None and outline_of({"layers": [np.zeros((4, 4, 4), np.uint8)]}) is None
    drawn = np.zeros((4, 4, 4), np.uint8)
    drawn[1:3, 1:3] = 255
    region = outline_of({"layers": [drawn]})
    assert region is not None and region.sum() == 4


# ---- a server whose jobs are fakes -----------------------------------------------------------------------------------


class Shortcut(Checker):
    """Looks at uploads in this process, and believes jobs."""

    def _call(self, task: str, **given: Any) -> Any:
        if task == "offered":
            return {"device": [], "memory": ["full"], "backbones": ["roadside"]}
        answer = _answered({"task": task, **given})
        if "error" in answer:
            raise OptionError(answer["error"])
        return answer["result"]

    def prepare(self, job: Job, files: Mapping[str, str], setting: Any, limits: LimitOptions) -> Prepared:
        if job.values.get("video.source_prompt") == "bad":  # not any value: an id may hold the word
            raise OptionError(f"{setting.folder}/{files['video.path']}: is bad")
        return Prepared(("a",), Plan((Stage("tuning", 3), Stage("sampling", 2)), 8, (8, 8), "m"), files)


class Fake:
    """A job that takes steps until it is let go, and writes what a real one would."""

    begun: list[Fake]
    hold: threading.Event

    def __init__(self, folder: Path, words: Sequence[str], run: str, *, tuned: bool) -> None:
        self.folder, self.run, self.code, self.ended = folder, folder / run, 0, threading.Event()
        self.begun.append(self)

    def wait(self, send: Callable[[Mapping[str, Any]], None]) -> int:
        base = {"label": "", "peak_mb": 1.0, "seconds": 0.1, "over": False}
        send({"stage": "tuning", "done": 1, "total": 3, **base})
        send({"warning": f"look at {self.folder}/x.mp4"})
        while not self.hold.is_set() and not self.ended.is_set():
            time.sleep(0.005)
        if self.ended.is_set():
            return 143
        send({"stage": "tuning", "done": 3, "total": 3, **base, "over": True})
        send({"stage": "sampling", "done": 2, "total": 2, **base, "over": True})
        edit = self.run / "edits" / "suv"
        edit.mkdir(parents=True, exist_ok=True)
        (edit / "edited.mp4").write_bytes(b"clip of " + self.folder.name.encode())
        write_json(self.run / "run.json", {"path": str(self.folder)})
        (self.run / "report.html").write_text(f"<td>{self.folder}/weights</td>{CLIP_IN_A_PAGE}")
        send({"edits": ["suv"]})
        return self.code

    def cancel(self) -> None:
        self.ended.set()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    monkeypatch.setattr(Fake, "begun", [], raising=False)
    monkeypatch.setattr(Fake, "hold", threading.Event(), raising=False)
    return Fake.begun


@pytest.fixture
def queue(tmp_path: Path, begun: list[Fake]) -> Iterator[Queue]:
    made = Queue(tmp_path, Spaces(tmp_path, LIMITS, Shortcut()), {}, Fake)
    yield made
    Fake.hold.set()
    made.close()


def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


EXAMPLE = Job(example="bus_to_suv")


def test_the_queue_is_bounded_for_all_and_for_each(queue: Queue) -> None:
    spaces = [queue.spaces.issue() for _ in range(4)]
    first = queue.submit(spaces[0], EXAMPLE)
    until(lambda: first.status.state == "running")
    second = queue.submit(spaces[0], EXAMPLE)
    with pytest.raises(RefusedError, match="2 of your jobs wait or run"):
        queue.submit(spaces[0], EXAMPLE)
    for space in spaces[1:]:
        queue.submit(space, EXAMPLE)
    with pytest.raises(RefusedError, match="4 jobs are waiting"):
        queue.submit(spaces[1], EXAMPLE)
    assert (queue.position(first.id), queue.position(second.id)) == (None, 1)
    queue.cancel(spaces[0], second.id)
    assert second.status.state == "cancelled"
    queue.submit(spaces[1], EXAMPLE)
    Fake.hold.set()
    until(lambda: all(ticket.status.state in ("done", "cancelled") for ticket in queue.tickets.values()))
    assert len(Fake.begun) == 5  # all but the cancelled one


def test_a_bad_job_leaves_nothing_and_keeps_no_seat(queue: Queue) -> None:
    space = queue.spaces.issue()
    upload = queue.spaces.take(space, "my clip.mp4", CLIP / "source.mp4")
    picture = queue.spaces.take(space, "suv.png", CLIP / "target.png")
    values = {**OWN_CLIP, "video.path": upload.id, "video.target_image": picture.id, "video.source_prompt": "bad"}
    for _ in range(50):
        with pytest.raises(OptionError) as caught:
            queue.submit(space, Job(values=values))
    assert str(caught.value) == "my clip.mp4: is bad"
    assert not list((queue.spaces.of(space) / "jobs").glob("*")) and not queue.tickets
    queue.submit(space, Job(values=values | {"video.source_prompt": "good"}))


def test_cancelling_ends_a_running_job_and_the_next_begins(queue: Queue, begun: list[Fake]) -> None:
    space = queue.spaces.issue()
    first, second = (queue.submit(space, EXAMPLE) for _ in range(2))
    until(lambda: begun)
    queue.cancel(space, first.id)
    until(lambda: first.status.state == "cancelled" and len(begun) == 2)
    assert second.status.state == "running"
    queue.cancel(space, first.id)  # once more changes nothing
    assert second.status.state == "running"


def test_another_edit_tells_what_became_of_the_tuning(queue: Queue, begun: list[Fake]) -> None:
    space = queue.spaces.issue()
    lost, failed = (queue.submit(space, EXAMPLE) for _ in range(2))
    until(lambda: begun)
    with pytest.raises(OptionError, match="that job is not done: wait"):
        queue.submit(space, Job(tuned=lost.id))
    queue.cancel(space, lost.id)
    until(lambda: len(begun) == 2)
    with pytest.raises(OptionError, match="that job was cancelled and has no tuned clip: submit it again"):
        queue.submit(space, Job(tuned=lost.id))
    queue.cancel(space, failed.id)
    until(lambda: failed.status.state == "cancelled")
    failed.status.state = "failed"
    with pytest.raises(OptionError, match="that job failed and has no tuned clip"):
        queue.submit(space, Job(tuned=failed.id))


def test_a_crash_is_told_and_hurts_nobody(queue: Queue, begun: list[Fake]) -> None:
    space = queue.spaces.issue()
    first = queue.submit(space, EXAMPLE)
    until(lambda: begun)
    begun[0].code = -9
    Fake.hold.set()
    until(lambda: first.status.state == "failed")
    assert "lack of memory" in (first.status.error or "")
    second = queue.submit(space, EXAMPLE)
    until(lambda: second.status.state == "done")


def test_nothing_is_lost_when_the_server_stops(tmp_path: Path, begun: list[Fake]) -> None:
    queue = Queue(tmp_path, Spaces(tmp_path, LIMITS, Shortcut()), {}, Fake)
    space = queue.spaces.issue()
    running, waiting = (queue.submit(space, EXAMPLE).id for _ in range(2))
    until(lambda: begun)
    queue.close()
    Fake.hold.set()
    again = Queue(tmp_path, Spaces(tmp_path, LIMITS, Shortcut()), {}, Fake)
    assert again.spaces.valid(space)
    until(lambda: [again.get(space, key).status.state for key in (running, waiting)] == ["done", "done"])
    assert [each.folder.name for each in begun] == [running, running, waiting]
    again.close()


def test_old_work_goes_with_its_space_and_what_is_in_use_stays(queue: Queue) -> None:
    Fake.hold.set()
    old, young = queue.spaces.issue(), queue.spaces.issue()
    queue.spaces.take(old, "suv.png", CLIP / "target.png")
    first = queue.submit(old, EXAMPLE)
    until(lambda: first.status.state == "done")
    again = queue.submit(old, Job(tuned=first.id))
    until(lambda: again.status.state == "done")
    with pytest.raises(OptionError, match="holds the tuned clip"):
        queue.remove(old, first.id)
    kept = queue.submit(young, EXAMPLE)
    until(lambda: kept.status.state == "done")
    end = time.time()
    first.status.finished = end - 7200
    queue.sweep(end)
    assert first.id in queue.tickets  # another edit needs its tuned clip
    again.status.finished = end - 7200
    queue.sweep(end)
    assert set(queue.tickets) == {kept.id} and not first.folder.exists()
    queue.sweep(end + 7200)
    assert not list(queue.spaces.all()) and not queue.tickets


def test_uploads_are_read_before_they_are_kept(queue: Queue, tmp_path: Path) -> None:
    space = queue.spaces.issue()
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    script = tmp_path / "x.ffconcat"
    script.write_text("ffconcat version 1.0\nfile '/etc/passwd'\n")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((CLIP / "source.mp4").read_bytes()[:900])
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (playlist, script, cut, empty):
        with pytest.raises(ValueError) as caught:
            queue.spaces.take(space, path.name, path)
        assert str(tmp_path) not in public(str(caught.value)) and not queue.spaces.uploads(space)
    found = queue.spaces.take(space, "a/../b.MP4", CLIP / "source.mp4")
    assert (found.kind, found.width, found.height, found.frames) == ("clip", 96, 96, 8)
    turned = tmp_path / "phone.mp4"
    write_clip(turned, ClipSetting())
    turn(turned, 90)
    shown = queue.spaces.take(space, turned.name, turned)
    assert (shown.width, shown.height) == (96, 160)  # as it is shown, and not as it is stored
    for name in ("../../etc/passwd", ".x", "a b.PNG", "\u202e.mp4"):
        assert re.fullmatch(r"[\w-]+(\.[\w-]{1,8})?", stored_name(name))
    queue.spaces.take(space, "t.png", CLIP / "target.png")
    with pytest.raises(RefusedError, match="3 uploads"):
        queue.spaces.take(space, "t.png", CLIP / "target.png")


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, begun: list[Fake]) -> Iterator[Callable[..., Any]]:
    """A function that makes a user of one server; ``token``, ``host``: how it was started, ``headers``: the user's."""
    pytest.importorskip("fastapi", reason="the app's packages: pip install -e '.[app]'")
    from fastapi.testclient import TestClient

    from tave.app.service import Desk, build

    made: dict[Any, Any] = {}

    def user(token: str | None = None, **given: Any) -> Any:
        if token not in made:
            options = AppOptions(folder=str(tmp_path / "app"), token=token, limits=LIMITS)
            made[token] = Desk(options, Spaces(Path(options.folder), LIMITS, Shortcut()), Fake)
        return TestClient(build(made[token]), base_url="http://127.0.0.1", follow_redirects=False, **given)

    yield user
    Fake.hold.set()
    for desk in made.values():
        desk.close()


def test_an_edit_over_http(served: Callable[..., Any]) -> None:
    user, other = served(), served()
    clip = user.put("/api/uploads/my clip.mp4", content=(CLIP / "source.mp4").read_bytes())
    assert clip.status_code == 201 and clip.json()["name"] == "my clip.mp4" and clip.json()["frames"] == 8
    picture = user.put("/api/uploads/suv.png", content=(CLIP / "target.png").read_bytes()).json()
    given = {**OWN_CLIP, "video.path": clip.json()["id"], "video.target_image": picture["id"]}
    assert other.post("/api/jobs", json=given).json() == {
        "error": f"video.path='{clip.json()['id']}' is no upload of yours: upload the file first, and give its id"
    }
    answer = user.post("/api/jobs", json=given)
    assert answer.status_code == 202
    at = f"/api/jobs/{answer.json()['id']}"
    until(lambda: user.get(at).json()["state"] == "running" and user.get(at).json()["warnings"])
    seen = user.get(at).json()
    assert seen["warnings"] == ["look at x.mp4"] and seen["stages"][0]["done"] == 1 and seen["stages"][0]["left"] > 0
    Fake.hold.set()
    until(lambda: user.get(at).json()["state"] == "done")
    assert user.get(at).json()["files"] == ["edited.mp4", "report.html", "run.zip"]
    assert user.get(f"{at}/files/edited.mp4").content.startswith(b"clip of")
    stored = zipfile.ZipFile(io.BytesIO(user.get(f"{at}/files/run.zip").content))
    assert json.loads(stored.read("edit/run.json")) == {"path": answer.json()["id"]}
    report = user.get(f"{at}/files/report.html")
    assert report.text == stored.read("edit/report.html").decode() == f"<td>weights</td>{CLIP_IN_A_PAGE}"
    assert report.headers["content-type"].startswith("text/html")
    # nothing of it is another user's
    for call in (other.get(at), other.get(f"{at}/files/edited.mp4"), other.post(f"{at}/cancel"), other.delete(at)):
        assert call.status_code == 404
    assert other.get("/api/jobs").json() == [] and other.get("/api/uploads").json() == []
    for name in ("../job.json", "..%2f..%2fjob.json", "request.json", "log.txt", "web/../job.json"):
        assert user.get(f"{at}/files/{name}").status_code == 404
    assert user.delete(at).status_code == 204 and user.get(at).status_code == 404


def test_answers_name_no_folder_of_the_server(served: Callable[..., Any], tmp_path: Path) -> None:
    user = served()
    clip = user.put("/api/uploads/c.mp4", content=(CLIP / "source.mp4").read_bytes()).json()["id"]
    picture = user.put("/api/uploads/suv.png", content=(CLIP / "target.png").read_bytes()).json()["id"]
    given = {**OWN_CLIP, "video.path": clip, "video.target_image": picture}
    answers = [user.post("/api/jobs", json=given | {"video.source_prompt": "bad"}), user.get("/api/options")]
    answers += [user.post("/api/jobs", json={"example": "x"}), user.post("/api/jobs", content=b"{"), user.get("/docs")]
    answers += [user.put("/api/uploads/x.mp4", content=b"....ftyp" + bytes(99)), user.get("/openapi.json")]
    for answer in answers:
        assert str(tmp_path) not in answer.text and str(PACKAGE.parent) not in answer.text, answer.text
    assert [answer.status_code for answer in answers] == [422, 200, 422, 422, 200, 422, 200]
    assert "NaN is no number" in user.post("/api/jobs", content=b'{"seed": NaN}').json()["error"]
    assert user.post("/api/jobs", content=b"[" * 100_000).status_code == 422


def test_sizes_and_numbers_are_limited(served: Callable[..., Any]) -> None:
    user = served()
    assert user.put("/api/uploads/big.mp4", content=bytes(2_000_001)).status_code == 413  # by its length, unread
    answer = user.put("/api/uploads/big.mp4", content=(bytes(1000) for _ in range(1500)))  # without a length
    assert answer.status_code == 429 and "larger than 1 MB" in answer.json()["error"]
    assert user.put("/api/uploads/big.mp4", content=(bytes(100_000) for _ in range(30))).status_code in (413, 429)
    assert user.post("/api/jobs", content=bytes(1_000_001)).status_code == 413
    assert user.get("/api/uploads").json() == []
    codes = [user.post("/api/jobs", json={"example": "bus_to_suv"}).status_code for _ in range(3)]
    assert codes == [202, 202, 429]


def test_files_of_forms_are_counted_too(tmp_path: Path) -> None:
    """Gradio takes uploads by a route of its own, a thousand in one form, and keeps them for an hour."""
    pytest.importorskip("fastapi", reason="the app's packages: pip install -e '.[app]'")
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route
    from starlette.testclient import TestClient

    from tave.app.guard import Guard

    async def upload(request: Any) -> JSONResponse:
        return JSONResponse((await request.body()).count(b"filename="))

    mounted = Starlette(routes=[Route("/gradio_api/upload", upload, methods=["POST"])])
    spaces = Spaces(tmp_path, LIMITS, Shortcut())
    outer = Guard(Starlette(routes=[Mount("/", mounted)]), AppOptions(limits=LIMITS), spaces)

    def gives(user: TestClient, count: int, size: int = 10) -> Any:
        files = [("files", (f"{number}.png", bytes(size))) for number in range(count)]
        return user.post("/gradio_api/upload", files=files)

    user, other, third = (TestClient(outer, base_url="http://127.0.0.1") for _ in range(3))
    assert gives(user, 2).json() == 2
    refused = gives(user, 2)
    assert refused.status_code == 429 and refused.json() == {
        "error": "you gave 3 files within an hour: wait until old ones go"
    }
    assert gives(user, 1).status_code == 429 and gives(other, 3).json() == 3
    assert gives(third, 100).status_code == 429
    head = b'--a\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
    body = (bytes(100_000) if number else head for number in range(30))  # without a length
    form = {"content-type": "multipart/form-data; boundary=a"}
    fourth = TestClient(outer, base_url="http://127.0.0.1")
    assert fourth.post("/gradio_api/upload", content=body, headers=form).status_code == 413


def test_only_this_machine_may_come_without_a_token(served: Callable[..., Any]) -> None:
    user = served()
    assert user.get("/api/options", headers={"host": "localhost:7860"}).status_code == 200
    assert user.get("/api/options", headers={"host": "rebound.example"}).status_code == 421
    evil = {"origin": "https://evil.example"}
    assert user.post("/api/jobs", json={"example": "bus_to_suv"}, headers=evil).status_code == 403
    assert user.post("/api/jobs", json={"example": "bus_to_suv"}, headers={"origin": "null"}).status_code == 403
    cookie = (
        user.get("/api/options").headers.get("set-cookie", "") or served().get("/api/options").headers["set-cookie"]
    )
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    forged = served(cookies={"tave_space": f"{'0' * 24}-{'0' * 24}"}).get("/api/options")
    assert "tave_space=" in forged.headers["set-cookie"]  # it gets a space of its own instead


def test_a_token_is_asked_of_everyone(served: Callable[..., Any]) -> None:
    token = "correct-horse-battery"
    for path in ("/api/options", "/api/jobs", "/docs", "/openapi.json", "/"):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {token}"}):
            assert served(token).get(path, headers=headers).status_code == 401
    assert served(token).get("/api/options", headers={"authorization": f"Bearer {token}"}).status_code == 200
    page = served(token)
    entered = page.get(f"http://127.0.0.1//evil.example/?token={token}")
    assert entered.status_code == 303 and entered.headers["location"] == "/evil.example/"
    assert page.get("/api/options").status_code == 200  # by the cookie that this has set
    assert served(token).get("/?token=wrong").status_code == 401


def test_a_token_is_long_and_the_backbones_exist() -> None:
    with pytest.raises(OptionError, match="16 or more"):
        AppOptions(token="short")
    with pytest.raises(OptionError, match=r"backbones\.sd21 is not known: did you mean sd21_unclip"):
        model_words({"sd21": "x"}, {})
    words = model_words({"sd15_ip_adapter": "/w", "tiny": ""}, {"sd15_ip_adapter": "/a"})
    assert words["sd15_ip_adapter"] == ['backbone.path="/w"', 'backbone.adapter="/a"'] and words["tiny"] == []
    assert AppOptions().local and not replace(AppOptions(), host="0.0.0.0").local
