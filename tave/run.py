"""A run: its folder, what is already made in it, and the Trainer's two loops."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers.utils.logging import disable_progress_bar

from tave.backbone import Backbone, licence_text, load_backbone
from tave.build import build_editor, build_trainer
from tave.cache import Cache, StoredError, is_made, key_of, read_about, read_tensors, write_tensors
from tave.config import PACKAGE, EditEntry, OptionError, TrainOptions
from tave.data import VideoData
from tave.files import read_json, write_json
from tave.inflate import load_tuned, tuned_state
from tave.inputs import (
    clip_notes,
    input_digests,
    knowledge_notes,
    read_targets,
    request_record,
    segment_targets,
)
from tave.loggers import RunLogger, open_loggers
from tave.memory import preset_note, rounding
from tave.pipeline import Target
from tave.progress import OnStep, Progress
from tave.video import Clip, read_clip, write_video
from tave.writer import RunWriter, write_mask_preview

log = logging.getLogger(__name__)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence advice of the Trainer that does not apply: one clip lies in memory, so there is no work for loaders."""
    with warnings.catch_warnings():
        for message in ("does not have many workers", "checkpoint directory .* exists", "LeafSpec", "logging interval",
                        "in eval mode", "infer the batch indices", "dataloader is not resumable"):  # fmt: skip
            warnings.filterwarnings("ignore", f".*{message}.*")
        yield


class _Tick(Callback):
    """Moves the tuning bar."""

    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_step(trainer.global_step, trainer.max_steps)


class Run:
    """One clip under one configuration, in ``folder``: ``tune``, then ``predict``, then ``record``.

    What is stored with the same key is not made again (:mod:`tave.cache`). ``tuned``: tuned weights of an earlier run
    to edit with instead of tuning.
    """

    def __init__(
        self, options: TrainOptions, folder: Path, clip: Clip, progress: Progress, tuned: Path | None = None
    ) -> None:
        self.options, self.folder, self.clip, self.progress = options, folder, clip, progress
        self.loggers = open_loggers(options.logger, folder)
        self.log = RunLogger(self.loggers, folder, asdict(options))
        disable_progress_bar()  # transformers' own bars, one for each part of the backbone
        L.seed_everything(options.seed, workers=True, verbose=False)
        # cuDNN's convolutions round float32 to TF32's 10 bits by default: guided sampling amplifies the difference
        torch.backends.cudnn.allow_tf32 = False
        self.backbone: Backbone = load_backbone(options.backbone)
        self.backbone.check_size(clip.frames.shape[-1], clip.frames.shape[-2])
        self._note_weights()
        device = build_trainer(options, str(folder)).strategy.root_device
        self.editor = build_editor(options, len(clip.frames), backbone=self.backbone, device=device, progress=progress)
        pipeline = self.editor.pipeline
        self.data = VideoData(pipeline, clip, options.video.source_prompt, steps=options.tuning.steps)
        if tuned is not None:
            self.tuned_key = self._load(tuned)
        else:
            self.tuned_key = key_of(
                *(dict(self.backbone.hashes), self.backbone.name, self.editor.denoiser.prediction_type),
                *(options.inflation, options.tuning, clip.frames, options.video.source_prompt, options.seed),
                rounding(options.memory, options.precision),
            )
        levels = (pipeline.schedule.timesteps, pipeline.schedule.alphas)
        self.key = key_of(
            *(self.tuned_key, *levels, options.inversion, options.condition, options.reference.frame, options.seed),
            rounding(options.memory, options.precision),
        )
        pipeline.cache = Cache(
            Path(options.cache), self.key, progress, {"trajectory": folder / "trajectory.safetensors"}
        )
        self._said: set[str] = set()
        self.segmenter_hashes: dict[str, str] = {}  # of its weight files, once it was used

    @classmethod
    def begin(cls, options: TrainOptions, folder: Path, *, show: bool = True) -> Run:
        """Read the clip of ``options`` and open ``folder``.

        Everything that the edits need is read and checked too, so that a mistake fails now and not after the tuning.
        Raises :class:`StoredError` for a folder that holds another clip or another tuning, and leaves it as it is.
        """
        progress = Progress(show=show)
        clip = read_clip(options.video.path, options.video)
        for note in clip_notes(clip):
            progress.note(note)
        run = cls(options, folder, clip, progress)
        targets = run.targets(options.video.requests())
        if options.metrics.enabled and (judge := options.judge) and not (judge / "classes.json").is_file():
            raise OptionError(f"metrics.judge={judge} holds no classes.json: give a judge's folder, or null")
        tuned = folder / "tuned.safetensors"
        if tuned.is_file() and not is_made(tuned, run.tuned_key):
            raise StoredError(
                f"{folder} holds a run of another clip or another tuning: give another hydra.run.dir or hydra.sweep.dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / "source.mp4", run.clip.frames, run.clip.fps, lossless=True)
        if write_mask_preview(path := folder / "mask_preview.png", run.clip, targets):
            progress.note(f"masks as they are read: {path}")
        return run

    # ---- the two loops -----------------------------------------------------------------------------------------------

    def tune(self) -> None:
        """Fine-tune, unless the tuned weights are stored; an interrupted tuning continues where it stopped."""
        here, unet = self.folder / "tuned.safetensors", self.editor.denoiser.unet
        stored = Path(self.options.cache) / f"tuned-{self.tuned_key}.safetensors"
        found = next((path for path in (here, stored) if is_made(path, self.tuned_key)), None)
        trained = any(parameter.requires_grad for parameter in unet.parameters())
        if found is not None:
            self.progress.note(f"tuned weights: found in {found.parent}")
            load_tuned(unet, read_tensors(found)[0])
        elif trained and self.options.tuning.steps:
            self._fit(stored)
        if found != here:
            self._save_tuned(here)
        if text := licence_text(self.backbone.licence):
            (self.folder / "LICENSE-MODEL.txt").write_text(text, encoding="utf-8")

    def _fit(self, stored: Path) -> None:
        states = stored.with_suffix("")
        checkpoint = ModelCheckpoint(
            states, every_n_train_steps=50, save_last=True, save_top_k=0, save_on_exception=True
        )
        last = states / "last.ckpt"
        with self.progress.stage("tuning", "tuning on the clip") as on_step, _without_advice():
            trainer = build_trainer(
                self.options, str(self.folder), [checkpoint, _Tick(on_step), self.log], self.loggers
            )
            trainer.fit(self.editor, self.data, ckpt_path=str(last) if last.exists() else None)
        self.editor.zero_grad()  # frees the last step's gradients
        self._save_tuned(stored)
        shutil.rmtree(states, ignore_errors=True)

    def predict(self, requests: Mapping[str, EditEntry], about: Mapping[str, Any] | None = None) -> list[str]:
        """Make the edits that are not made yet, one after another, each written before the next begins; return their
        names.

        ``about``: further content of ``edit.json``.
        """
        targets = self.targets(requests)
        keys = {target.name: self.edit_key(target) for target in targets}
        due = [t for t in targets if not is_made(self.folder / "edits" / t.name / "edit.json", keys[t.name])]
        if not due:
            return []
        write_mask_preview(self.folder / "mask_preview.png", self.clip, due)
        self._drop_figures([target.name for target in due])
        self.data.targets = due
        write_video(self.folder / "round_trip.mp4", self.data.source.round_trip.cpu(), self.clip.fps, lossless=True)
        truths = {name: entry.truth for name, entry in requests.items() if entry.truth}
        common = {
            "source_prompt": self.options.video.source_prompt,
            "segmenter": self.segmenter_hashes,
            "seed": self.options.seed,
            "options": asdict(self.options.editing),
            **(about or {}),
        }
        recorded = {name: {"key": keys[name], **request_record(entry), **common} for name, entry in requests.items()}
        writer = RunWriter(self.folder, truths, recorded, self.progress)
        with _without_advice():
            trainer = build_trainer(self.options, str(self.folder), [writer, self.log], self.loggers)
            trainer.predict(self.editor, self.data, return_predictions=False)
        return [target.name for target in due]

    def _drop_figures(self, names: Sequence[str]) -> None:
        """Remove the figures of edits that are about to be replaced from ``metrics.json``."""
        path = self.folder / "metrics.json"
        stored = read_json(path) if path.is_file() else {}
        if {*names} & {*stored.get("edits", {}), *stored.get("keys", {})}:
            for part in ("edits", "keys"):
                stored[part] = {name: value for name, value in stored.get(part, {}).items() if name not in names}
            write_json(path, stored)

    def edit_key(self, target: Target) -> str:
        """The key of an edit: all that it depends on."""
        images = [part for image in target.images for part in (image.rgb, image.alpha, image.matte)]
        return key_of(self.key, self.options.editing, target.prompt, *images, target.region)

    def targets(self, entries: Mapping[str, EditEntry]) -> list[Target]:
        """The requested edits, read and segmented. Raises ValueError for what sampling or measuring would fail at."""
        reference = self.options.reference
        targets = read_targets(entries, self.clip, self.options.video, reference, self._warn_once)
        if targets and reference.matte == "segmented" and reference.mode not in ("as_is", "none"):
            device = self.editor.pipeline.encoders.device
            targets, self.segmenter_hashes = segment_targets(targets, str(reference.segmenter), device, self.progress)
        return targets

    def _warn_once(self, line: str) -> None:
        """Warn of what is read again for each of a run's steps."""
        if line not in self._said:
            self._said.add(line)
            log.warning("%s", line)

    def _note_weights(self) -> None:
        """Tell the user once about the weights in use."""
        backbone, options = self.backbone, self.options
        if backbone.licence:
            self.progress.note(
                f"weights of {backbone.name}: {backbone.licence}; it applies to what is tuned from them too"
            )
        if backbone.unverified:
            files = ", ".join(backbone.unverified)
            self.progress.note(f"not verified, since no published SHA-256 is known: {files}; run.json records theirs")
            self._compare_weights()
        if note := preset_note(options.memory, options.precision, torch.cuda.is_available()):
            log.warning("%s", note)
        for note in knowledge_notes(options.backbone, options.video.source_prompt, options.video.requests()):
            log.warning("%s", note)

    def _compare_weights(self) -> None:
        """Warn about unverified files that have changed since they were first used; the cache records their digests."""
        path = Path(self.options.cache) / "weights.json"
        known: dict[str, str] = read_json(path) if path.is_file() else {}
        here = {f"{self.backbone.name}/{file}": self.backbone.hashes[file] for file in self.backbone.unverified}
        for file, sha in here.items():
            if known.get(file, sha) != sha:
                log.warning(
                    "%s has changed: it was %s, is %s; fetch it again if this is unexpected", file, known[file], sha
                )
        if known | here != known:
            write_json(path, known | here)

    # ---- stored products ---------------------------------------------------------------------------------------------

    def _save_tuned(self, path: Path) -> None:
        about = {
            "key": self.tuned_key,
            "base": dict(self.backbone.hashes),
            "backbone": self.backbone.name,
            "licence": self.backbone.licence,
            "frames": len(self.clip.frames),
            "inflation": asdict(self.options.inflation),
            "tuning": asdict(self.options.tuning),
        }
        write_tensors(path, tuned_state(self.editor.denoiser.unet), about)
        write_json(path.with_suffix(".json"), about)

    def _load(self, path: Path) -> str:
        """Load tuned weights, return their key; :class:`StoredError` if they were tuned from another backbone."""
        state, about = read_tensors(path)
        base, here = about.get("base", {}), self.backbone.hashes
        differing = [
            f"{file} was {base.get(file)}, is {here.get(file)}"
            for file in {**base, **here}
            if base.get(file) != here.get(file)
        ]
        if differing:  # the hashes alone decide: a folder's name is its path, and it may have been moved
            raise StoredError(
                f"{path}: tuned from another backbone ({about.get('backbone')}) than {self.backbone.name} "
                f"({differing[0]}): give that one, or tune again"
            )
        load_tuned(self.editor.denoiser.unet, state)
        return str(about.get("key"))

    def record(self, chosen: Mapping[str, Any] | None = None) -> None:
        """Write ``run.json``: how everything was made, and the experiment and overrides that were ``chosen``.

        ``metrics.json`` gets the seconds and peak memory of each stage, and the reconstruction.
        """
        trajectory = self.folder / "trajectory.safetensors"
        about = read_about(trajectory) if trajectory.is_file() else {}
        psnr = {key: about[key] for key in ("reconstruction_psnr", "autoencoder_psnr") if key in about}
        metrics = self.folder / "metrics.json"
        kept = read_json(metrics) if metrics.is_file() else {}
        write_json(metrics, kept | psnr | {"stages": kept.get("stages", {}) | self.progress.record})
        versions = {name: version(name) for name in ("tave", "torch", "diffusers", "transformers", "lightning")}
        cuda = torch.cuda.is_available()
        write_json(
            self.folder / "run.json",
            {
                "key": self.key,
                "config": asdict(self.options),
                "chosen": chosen,
                "seed": self.options.seed,
                "fps": self.clip.fps,
                "origin": self.clip.origin and self.clip.origin.record(),
                "size": list(self.clip.frames.shape),
                "commit": _commit(),
                "versions": versions | {"python": platform.python_version()},
                "hardware": {
                    "machine": platform.machine(),
                    "threads": torch.get_num_threads(),
                    "cuda": cuda,
                    "gpu": torch.cuda.get_device_name() if cuda else None,
                },
                "weights": dict(self.backbone.hashes),
                "weights_unverified": list(self.backbone.unverified),
                "segmenter": self.segmenter_hashes,
                "image_encoder": self.backbone.conditioner,
                "licence": self.backbone.licence,
                "inputs": input_digests(self.options),
            },
        )

    def close(self) -> None:
        """Finish the logs."""
        self.log.close()


def _commit() -> str | None:
    """The commit of the checkout that contains this package, with a plus where files differ from it; None elsewhere."""
    git = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
