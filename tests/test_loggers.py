"""What a run logs, read from what the loggers wrote; nothing leaves the machine."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from PIL import Image
from runs import options

from tave.config import OptionError
from tave.edit import edit
from tave.loggers import RunLogger, Wandb, heat_sheet, log_numbers, open_loggers
from tave.train import train
from tave.video import heat

NUMBERS = {"loss", "lr", "reconstruction_psnr", "autoencoder_psnr", "edit/mask_share", "figure/mask_iou_union"}
PICTURES = {"edit/sheet", "edit/reference", "mask/per_step"}
CLIPS = {"edit/clip", "mask/clip"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without a key, and sockets that connect to this machine alone."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), f"{address} was called"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def columns(folder: Path) -> dict[str, list[str]]:
    """The filled cells of a CSV log, by column."""
    with (folder / "metrics.csv").open() as opened:
        lines = list(csv.DictReader(opened))
    return {key: [line[key] for line in lines if line[key]] for key in lines[0]}


def test_a_sentence_with_signs_of_an_interpolation_is_logged_as_it_is(tmp_path: Path) -> None:
    """OmegaConf, with which Lightning writes hyperparameters, would look for a value in it."""
    prompt, logger = 'a ${van, "red', CSVLogger(tmp_path)
    RunLogger([logger], tmp_path, {"video": {"prompt": prompt}}).setup(None, None, "fit")  # type: ignore[arg-type]
    logger.save()
    assert OmegaConf.load(Path(logger.log_dir) / "hparams.yaml").video.prompt == prompt


@pytest.mark.slow  # W&B's own process
def test_wandb_offline_holds_all_of_a_run_beside_a_csv(clip: Path, tmp_path: Path) -> None:
    words = ["logger=[csv,wandb]", "logger.wandb.group=my-study", "trainer.log_every_n_steps=1", "tuning.steps=3"]
    words.append("metrics.objective=mask_iou_union")
    given = options(clip, tmp_path / "cache", *words)
    run = train(given, tmp_path / "run", show=False)
    (log,) = (run / "logs").rglob("metrics.csv")
    numbers = columns(log.parent)
    assert numbers.keys() >= NUMBERS
    assert len(numbers["loss"]) == len(numbers["lr"]) == 3
    assert float(numbers["lr"][0]) == pytest.approx(given.tuning.lr)
    (made,) = (run / "logs/wandb").glob("offline-run-*")
    notes = given.video.source_prompt
    expected = {name.encode() for name in NUMBERS | PICTURES | CLIPS | {"cases", "my-study", "otsu", "goal", notes}}
    (stored,), deadline = made.glob("*.wandb"), time.monotonic() + 60
    while absent := {name for name in expected if name not in stored.read_bytes()}:
        assert time.monotonic() < deadline, absent  # wandb's helper process may still write after a run's end
        time.sleep(0.05)
    media = [path.relative_to(made / "files/media") for path in (made / "files/media").rglob("*.*")]
    assert {path.parent.as_posix() for path in media} >= {f"images/{name.split('/')[0]}" for name in PICTURES}
    assert sum(path.suffix == ".mp4" for path in media) == len(CLIPS)
    table = json.loads((made / "files/media" / next(path for path in media if path.suffix == ".json")).read_text())
    assert table["columns"][:2] == ["clip", "edit"] and table["data"][0][:2] == ["bus_to_suv", "suv"]
    iou = table["data"][0][table["columns"].index("mask_iou_union")]
    assert iou == pytest.approx(float(numbers["figure/mask_iou_union"][0]))


def test_wandbs_summary_is_the_best_edit_by_each_metrics_direction(tmp_path: Path) -> None:
    defined: dict[str, str] = {}
    logged: list[dict[str, float]] = []

    class Run:
        def define_metric(self, name: str, summary: str, hidden: bool) -> None:
            assert hidden  # no chart of a single point
            defined[name] = summary

        def log(self, row: dict[str, float]) -> None:
            logged.append(row)

    logger = Wandb("offline", save_dir=str(tmp_path))
    logger._experiment = Run()  # type: ignore[assignment]
    directions = {"residue": False, "ideal_psnr": True, "energy": None}
    edits = [{"residue": 0.1, "ideal_psnr": 12.0, "energy": 3.0}, {"residue": 0.3, "ideal_psnr": 14.0}]
    log_numbers(logger, edits, directions, "ideal_psnr")
    assert defined == {"figure/residue": "min", "figure/ideal_psnr": "max", "figure/energy": "mean"}
    assert logged[:2] == [{f"figure/{key}": value for key, value in edit.items()} for edit in edits]
    assert logged[2:] == [{"goal": 13.0}]
    logged.clear()
    log_numbers(logger, edits[:1], directions, None)
    assert len(logged) == 1


@pytest.mark.slow  # W&B's own process
def test_each_run_of_a_sweep_is_its_own_and_another_edit_begins_a_new_log(clip: Path, tmp_path: Path) -> None:
    """A process runs a whole sweep, and wandb would continue the run that is open in it."""
    words = ["logger=[csv,wandb]", "metrics.enabled=false", "video.edits.suv.truth=null"]
    given = options(clip, tmp_path / "cache", *words)
    runs = [train(given, tmp_path / name, show=False) for name in ("one", "two")]
    assert [len(list((run / "logs/wandb").glob("offline-run-*"))) for run in runs] == [1, 1]
    (first,) = (runs[0] / "logs").rglob("metrics.csv")
    before = first.read_bytes()
    edit(runs[0], options(clip, tmp_path / "cache", *words, "logger=csv", "sampler.guidance_scale=1"), show=False)
    assert first.read_bytes() == before
    assert len(list((runs[0] / "logs").rglob("metrics.csv"))) == 2


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="it is installed")
def test_a_logger_that_is_not_installed_is_refused_before_the_run(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="pip install"):
        train(options(clip, tmp_path / "cache", "logger=tensorboard"), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_numbers_pictures_and_moving_clips(clip: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    given = options(clip, tmp_path / "cache", "logger=tensorboard", "trainer.log_every_n_steps=1")
    (events,) = (train(given, tmp_path / "run", show=False) / "logs").rglob("events.out.*")
    held = reader.EventAccumulator(str(events.parent)).Reload()
    assert {*held.Tags()["scalars"]} >= NUMBERS and {*held.Tags()["images"]} >= PICTURES | CLIPS
    with Image.open(io.BytesIO(held.Images("edit/clip")[0].encoded_image_string)) as animated:
        assert getattr(animated, "n_frames", 1) == given.video.frames


def test_a_logger_is_opened_by_its_class_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    target = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "mine"}
    (logger,) = open_loggers({"own": target}, tmp_path)
    assert type(logger).__name__ == "CSVLogger" and logger.name == "mine"
    with pytest.raises(OptionError, match=r"logger=mlflow.*csv, tensorboard, wandb"):
        open_loggers({"mlflow": {}}, tmp_path)
    with pytest.raises(OptionError, match=r"logger\.own: .*nonsense"):
        open_loggers({"own": target | {"nonsense": 1}}, tmp_path)
    with pytest.raises(OptionError, match=r"logger\.wandb\.mode=onlin .*offline"):
        open_loggers({"wandb": {"mode": "onlin"}}, tmp_path)


def test_without_a_key_online_becomes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mode() -> str:
        return Wandb("online", save_dir=str(tmp_path))._wandb_init["mode"]

    with caplog.at_level(logging.WARNING):
        assert mode() == "offline"
    assert "WANDB_API_KEY" in caplog.text
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / "netrc").chmod(0o600)
    assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere.example")  # whose key isn't there
    assert mode() == "offline"


def test_maps_are_shown_on_one_scale_from_black_over_red_to_white() -> None:
    colours = heat(torch.linspace(0, 1, 4)[None])[:, 0].T
    assert torch.allclose(colours, torch.tensor([[-1.0, -1, -1], [1, -1, -1], [1, 1, -1], [1, 1, 1]]), atol=1e-6)
    maps = torch.zeros(12, 5, 8, 8)
    maps[-1, -1] = 2.0
    sheet = heat_sheet(maps, size=16)
    assert sheet.shape == (3, 3 * 16 + 2 * 2, 8 * 16 + 7 * 2)  # three frames down, eight steps across
    assert (sheet[:, -16:, -16:] == 1).all() and (sheet[:, :16, :16] == -1).all()
    assert not heat_sheet(torch.zeros(2, 1, 8, 8)).isnan().any()
