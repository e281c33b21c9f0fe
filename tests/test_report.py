"""What a run tells its loggers, read back from what they wrote; nothing leaves the machine and nobody is asked."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import Logger
from PIL import Image

from tave.config import CONF, TrainOptions, typed
from tave.edit import edit
from tave.options import OptionError
from tave.report import Wandb, finish, heat, heat_sheet, play, show, tabulate
from tave.roadside.cases import NAMED, write_case
from tave.train import objective, train

NUMBERS = {"loss", "lr", "reconstruction_psnr", "autoencoder_psnr", "edit/mask_share", "figure/mask_iou_union"}
PICTURES = {"edit/sheet", "edit/reference", "mask/per_step"}
CLIPS = {"edit/clip", "mask/clip"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clip")
    write_case(NAMED["bus_to_suv"], folder, 32)
    edit = f"video.edits.suv.target_image={folder / 'target.png'}"
    small = ["backbone=tiny", "tuning.steps=6", "inversion.steps=3", "metrics.judge=null", f"cache={folder / 'cache'}"]
    return [
        "+video=bus_to_suv",
        f"video.path={folder / 'source.mp4'}",
        edit,
        f"video.edits.suv.truth={folder / 'truth'}",
        *small,
    ]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine of a user without a key, and a socket that refuses to leave it."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    connect = socket.socket.connect

    def refusing(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), f"{address} was called"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refusing)
    yield


def options(*overrides: str) -> TrainOptions:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("train", list(overrides)))


def records(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format, blocks of 32 KiB, after a header of seven bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little of the block is left for another piece
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):  # not all of it is written yet
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last piece
            yield whole
            whole = b""


def logged(folder: Path) -> dict[str, Any]:
    """Everything that an offline run's files hold, by key, the last value of each."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {}
    deadline, told = time.monotonic() + 60, []
    # wandb's helper process still writes for a moment after a run's end.
    while not any(record.WhichOneof("record_type") == "exit" for record in told) and time.monotonic() < deadline:
        time.sleep(0.05)
        told = [wandb_internal_pb2.Record.FromString(data) for data in records(next(folder.glob("*.wandb")))]  # type: ignore[attr-defined]
    for record in told:
        for item in record.history.item:
            key, *inner = item.nested_key or [item.key]
            value = json.loads(item.value_json)
            found[key] = {**found.get(key, {}), inner[0]: value} if inner else value
        if record.WhichOneof("record_type") == "run":
            found["run"] = record.run
        for entry in record.config.update:
            found[f"config/{entry.key}"] = json.loads(entry.value_json)
    return found


def columns(folder: Path) -> dict[str, list[str]]:
    """The filled cells of a CSV log, by column."""
    with (folder / "metrics.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    return {key: [row[key] for row in rows if row[key]] for key in rows[0]}


def test_an_offline_run_of_wandb_holds_all_of_it_beside_a_csv(clip: list[str], tmp_path: Path) -> None:
    asked = options(*clip, "logger=[csv,wandb]", "logger.wandb.group=study", "trainer.log_every_n_steps=1")
    run = train(asked, tmp_path / "run", show=False)
    numbers = columns(run / "logs/csv/version_0")
    assert set(numbers) >= NUMBERS
    assert len(numbers["loss"]) == len(numbers["lr"]) == 6
    assert float(numbers["lr"][0]) == pytest.approx(asked.tuning.lr)
    (made,) = (run / "logs/wandb").glob("offline-run-*")
    told = logged(made)
    assert set(told) >= NUMBERS | PICTURES | CLIPS | {"figures"}
    assert told["figure/mask_iou_union"] == pytest.approx(float(numbers["figure/mask_iou_union"][0]))
    for key in CLIPS:
        assert told[key]["_type"] == "videos"
    for key in PICTURES:
        assert told[key]["captions"] == ["suv"]
    table = json.loads((made / "files" / told["figures"]["path"]).read_text())
    assert table["columns"][:2] == ["clip", "edit"] and table["data"][0][:2] == ["bus_to_suv", "suv"]
    assert told["run"].run_group == "study" and "bus_to_suv" in told["run"].tags
    assert told["config/mask"]["threshold"] == "otsu"
    assert len(list((made / "files/media").rglob("*.mp4"))) == 2


def test_each_run_of_a_sweep_is_one_of_its_own(clip: list[str], tmp_path: Path) -> None:
    """wandb would go on in the run that the job before has left open."""
    for name in ("one", "two"):
        train(options(*clip, "logger=wandb", "logger.wandb.name=" + name), tmp_path / name, show=False)
    assert [len(list((tmp_path / name / "logs/wandb").glob("offline-run-*"))) for name in ("one", "two")] == [1, 1]


def test_another_edit_leaves_the_first_log_as_it_is(clip: list[str], tmp_path: Path) -> None:
    asked = options(*clip, "logger=csv", "metrics=none")
    run = train(asked, tmp_path / "run", show=False)
    before = (run / "logs/csv/version_0/metrics.csv").read_bytes()
    edit(run, asked, show=False)
    assert (run / "logs/csv/version_0/metrics.csv").read_bytes() == before
    assert "reconstruction_psnr" in columns(run / "logs/csv/version_1")


def test_tensorboard_or_what_to_install(clip: list[str], tmp_path: Path) -> None:
    asked = options(*clip, "logger=[csv,tensorboard]", "trainer.log_every_n_steps=1", "tuning.lr=1e-3")
    if find_spec("tensorboard") is None:
        with pytest.raises(OptionError, match=r"tave\[tensorboard\]"):
            train(asked, tmp_path / "run", show=False)
        assert not (tmp_path / "run").exists()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-not-found]

    run = train(asked, tmp_path / "run", show=False)
    held = EventAccumulator(str(run / "logs/tensorboard/version_0")).Reload()
    assert set(held.Tags()["scalars"]) >= NUMBERS
    assert set(held.Tags()["images"]) >= PICTURES | CLIPS
    assert "figures/text_summary" in held.Tags()["tensors"]
    with Image.open(io.BytesIO(held.Images("edit/clip")[0].encoded_image_string)) as animated:
        assert getattr(animated, "n_frames", 1) == asked.video.frames
    assert set(columns(run / "logs/csv/version_0")) >= NUMBERS


class Numbers(Logger):
    """A logger of whichever library, that keeps numbers alone."""

    @property
    def name(self) -> None: ...

    @property
    def version(self) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


def test_a_logger_that_keeps_numbers_alone_is_spared_the_rest() -> None:
    logger = Numbers()
    show(logger, "a", torch.zeros(3, 8, 8), "x", 0)
    play(logger, "a", Path("nowhere.mp4"), "x", 0)
    tabulate(logger, "a", ["x"], [[1]])
    finish(logger)


def test_without_a_key_online_is_offline_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logger = Wandb("online", save_dir=str(tmp_path), project="tave")
    assert "wandb login" in caplog.text
    assert logger._wandb_init["mode"] == "offline"


def test_a_key_in_netrc_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert Wandb("online", save_dir=str(tmp_path))._wandb_init["mode"] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere.example")
    assert Wandb("online", save_dir=str(tmp_path))._wandb_init["mode"] == "offline"


def test_a_server_without_an_answer_ends_in_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    logger = Wandb("online", save_dir=str(tmp_path), project="tave", wait=1)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finish()
    assert "wandb sync" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_an_unknown_mode_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"logger\.wandb\.mode='onlin'.*offline"):
        Wandb("onlin")


def test_heat_grows_from_black_over_red_to_white() -> None:
    made = heat(torch.linspace(0, 1, 4)[None])
    assert made.shape == (3, 1, 4)
    assert torch.equal(made[:, 0, 0], torch.full((3,), -1.0)) and torch.equal(made[:, 0, 3], torch.ones(3))
    assert made[0, 0, 1] == pytest.approx(1) and made[1, 0, 1] == pytest.approx(-1)
    assert (made.diff(dim=2) >= 0).all()


def test_a_sheet_of_maps_shows_steps_across_and_frames_down() -> None:
    maps = torch.zeros(12, 5, 8, 8)
    maps[-1, -1] = 2.0
    sheet = heat_sheet(maps, size=16)
    assert sheet.shape == (3, 3 * 16 + 2 * 2, 8 * 16 + 7 * 2)
    assert (sheet[:, -16:, -16:] == 1).all() and (sheet[:, :16, :16] == -1).all()
    assert not heat_sheet(torch.zeros(2, 1, 8, 8)).isnan().any()


def test_a_search_is_told_the_mean_of_what_it_asked_for(clip: list[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"edits": {"suv": {"residue": 0.25, "note": "x"}}}))
    assert objective(options(*clip, "metrics.objective=residue"), tmp_path) == 0.25
    assert objective(options(*clip), tmp_path) is None
    with pytest.raises(OptionError, match=r"metrics\.objective=nothing.*residue"):
        objective(options(*clip, "metrics.objective=nothing"), tmp_path)
