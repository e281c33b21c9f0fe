"""A run: its folder, what is already made in it, and the Trainer's two loops."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers.utils.logging import disable_progress_bar

from tave.backbone import Backbone, licence_text, load_backbone
from tave.build import Tick, build_editor, build_trainer, without_advice
from tave.cache import (
    Cache,
    StoredError,
    digest_of,
    find_tensors,
    form_of,
    is_made,
    key_of,
    mark_used,
    read_about,
    read_tensors,
    write_tensors,
)
from tave.checkpoints import TuningCheckpoint, resumable
from tave.config import EditEntry, OptionError, TrainOptions
from tave.crop import find_box
from tave.data import VideoData
from tave.editor import UNET
from tave.files import FileError, prepare, whole_file, write_json
from tave.fitting import fit
from tave.inflate import load_tuned, tuned_parameters, tuned_state
from tave.inputs import clip_notes, first_clip, input_digests, read_targets, request_record, segment_targets
from tave.locks import claimed
from tave.loggers import RunLogger, open_loggers
from tave.memory import rounding
from tave.notes import note_weights
from tave.origin import origin
from tave.pipeline import RECONSTRUCTION, Target
from tave.progress import Progress
from tave.record import SUMS, begin_record, changed_metrics, check_links, check_record, rewriting
from tave.scratch import Scratch
from tave.space import check_space
from tave.video import Clip, Footage, read_clip, write_video
from tave.writer import RunWriter, write_mask_preview

log = logging.getLogger(__name__)

CHECKPOINT = 3  # weights and the two moments of AdamW

LICENCE = "LICENSE-MODEL.txt"

INVERTED = ("round_trip.mp4", "trajectory.safetensors")  # what edits are made from


class Run:
    """One clip under one configuration, in ``folder``: ``tune``, then ``predict``, then ``record``.

    What is stored with the same key is not made again (:mod:`tave.cache`). ``tuned``: tuned weights of an earlier run
    to edit with instead of tuning. ``footage``: the clip's file, which the edits are laid over.
    """

    def __init__(
        self,
        options: TrainOptions,
        folder: Path,
        clip: Clip,
        progress: Progress,
        tuned: Path | None = None,
        footage: Footage | None = None,
    ) -> None:
        self.options, self.folder, self.progress, self.footage = options, folder, progress, footage
        check_links(folder)
        prepare(folder, folder / "edits", Path(options.cache), *Path(options.cache).glob("tuned-*/"))
        self.loggers = open_loggers(options.logger, folder)
        self.log = RunLogger(self.loggers, folder, asdict(options))
        disable_progress_bar()  # transformers' own bars, one for each part of the backbone
        L.seed_everything(options.seed, workers=True, verbose=False)
        # cuDNN's convolutions round float32 to TF32's 10 bits by default: guided sampling amplifies the difference
        torch.backends.cudnn.allow_tf32 = False
        tuned_from = None
        if tuned is not None:
            base = read_about(tuned).get("base")
            tuned_from = base if isinstance(base, dict) else {}
        self.backbone: Backbone = load_backbone(options.backbone, tuned_from)
        self.backbone.check_size(clip.frames.shape[-1], clip.frames.shape[-2])
        note_weights(self.backbone, options, progress)
        device = build_trainer(options, str(folder)).strategy.root_device
        height, width = clip.frames.shape[-2:]
        seen = min(len(clip.frames), options.window.frames)
        memory, note = fit(options.memory, options.precision, self.backbone, seen, (height, width), device)
        if note:
            progress.note(note)
        options = replace(options, memory=memory)
        self.editor = build_editor(options, len(clip.frames), backbone=self.backbone, device=device, progress=progress)
        self.segmenter_hashes: dict[str, str] = {}  # of its weight files, once it was used
        self.losses: list[float] = []  # of the tuning's steps
        self._take(clip, None if tuned is None else self._load(tuned))

    def _take(self, clip: Clip, tuned: str | None = None) -> None:
        """Work on ``clip``; ``tuned``: the key of tuned weights that are loaded already."""
        options, pipeline = self.options, self.editor.pipeline
        self.clip, self._targets = clip, dict[str, Target]()
        self.data = VideoData(pipeline, clip, options.video.source_prompt, steps=options.tuning.steps)
        key = key_of(
            *(dict(self.backbone.hashes), self.backbone.name, self.editor.denoiser.prediction_type),
            *(options.inflation, options.tuning, clip.frames, options.video.source_prompt, options.seed),
            rounding(options.memory, options.precision),
            *([options.window] if len(clip.frames) > options.window.frames else []),
        )
        self.tuned_key = key if tuned is None else tuned
        levels = (pipeline.schedule.timesteps, pipeline.schedule.alphas)
        self.key = key_of(
            *(self.tuned_key, *levels, options.inversion, options.condition, options.reference.frame, options.seed),
            rounding(options.memory, options.precision),
        )
        pipeline.cache = Cache(
            Path(options.cache), self.key, self.progress, {"trajectory": self.folder / "trajectory.safetensors"}
        )
        if tuned is not None:
            state = tuned_state(self.editor.denoiser.unet)
            if tuned != key or not self._tuned_here(state):
                pipeline.cache.take(state | {"clip": clip.frames})

    @classmethod
    def open(cls, options: TrainOptions, folder: Path, *, show: bool = True, look: bool = True) -> Run:
        """Read the clip of ``options``, and find the object in it if the network is to see a part of its frames.

        ``folder`` stays as it is. ``look`` False: the network doesn't look for the object; raises
        :class:`LookupError` if the cache doesn't know its place.
        """
        video, scratch = options.video, Scratch(Path(options.cache))
        whole, clip = first_clip(options, scratch)
        clip_notes(clip)
        run = cls(options, folder, clip, Progress(show=show))
        if whole is not None:
            found = {run.edit_key(target): target for target in run.targets(video.requests(), quiet=True)}
            view = find_box(run.editor.pipeline, run.clip, video, found, look=look)
            run._take(read_clip(video.path, video, view, scratch))
        assert run.clip.view is not None
        run.footage = Footage(Path(video.path), video, run.clip.view)
        return run

    @classmethod
    def begin(cls, options: TrainOptions, folder: Path, *, show: bool = True) -> Run:
        """:meth:`open`, and begin ``folder``.

        Everything that the edits need is read and checked too, so that a mistake fails now and not after the tuning.
        Raises :class:`StoredError` for a folder that holds another clip, another tuning or damaged weights, and leaves
        it as it is.
        """
        run = cls.open(options, folder, show=show)
        for note in clip_notes(run.clip):
            run.progress.note(note)
        targets = run.targets(options.video.requests())
        if options.metrics.enabled and (judge := options.judge) and not (judge / "classes.json").is_file():
            raise OptionError(f"metrics.judge={judge} holds no classes.json: give a judge's folder, or null")
        tuned = folder / "tuned.safetensors"
        if tuned.is_file() and read_about(tuned).get("key") != run.tuned_key:
            raise StoredError(
                f"{folder} holds a run of another clip or another tuning: give another hydra.run.dir or hydra.sweep.dir"
            )
        check_space(run.needed())
        folder.mkdir(parents=True, exist_ok=True)
        begin_record(folder)
        with rewriting(folder, "source.mp4"):
            write_video(folder / "source.mp4", run.clip.frames, run.clip.fps, lossless=True)
        if write_mask_preview(path := folder / "mask_preview.png", run.clip, targets):
            run.progress.note(f"masks as they are read: {path}")
        return run

    def needed(self) -> dict[Path, int]:
        """The bytes of the tensors that the run will store, by path; clips and logs are small beside them."""
        options, frames, vae = self.options, self.clip.frames, dict(self.backbone.vae.config)
        cells = len(frames) * (frames.shape[-2] * frames.shape[-1]) // 4 ** (len(vae["block_out_channels"]) - 1)
        trajectory = (options.inversion.steps + 1) * cells * vae["latent_channels"] * 4  # float32
        trained = [weight for weight in self.editor.denoiser.unet.parameters() if weight.requires_grad]
        tuned, here = sum(weight.nbytes for weight in trained), self.folder / "tuned.safetensors"
        tuned = tuned if options.tuning.steps else 0
        cache, shown = Path(options.cache), self.clip.origin.size if self.clip.origin else (0, 0)
        stills = len(frames) * 3 * shown[0] * shown[1] if options.output.frames else 0
        stored = {} if here.is_file() else {cache / f"tuned-{self.tuned_key}.safetensors": (1 + CHECKPOINT) * tuned}
        return stored | {
            self.folder / "trajectory.safetensors": trajectory,
            cache / f"trajectory-{key_of(self.key, options.inversion)}.safetensors": trajectory,
            here: tuned,
            cache / "temporary files": trajectory + 6 * frames.nbytes,  # tave.scratch
            self.folder / "edits" / "frames": stills,
        }

    # ---- the two loops -----------------------------------------------------------------------------------------------

    def tune(self) -> None:
        """Fine-tune, unless the tuned weights are stored; an interrupted tuning continues where it stopped."""
        here, unet = self.folder / "tuned.safetensors", self.editor.denoiser.unet
        stored = Path(self.options.cache) / f"tuned-{self.tuned_key}.safetensors"
        trained = any(parameter.requires_grad for parameter in unet.parameters())
        if self._found(here):
            if not self._tuned_here(state := tuned_state(unet)):
                self.editor.pipeline.cache.take(state)
        else:
            if not self._found(stored) and trained and self.options.tuning.steps:
                damaged = stored.is_file()
                with claimed(stored.with_suffix(""), math.inf, self.progress.note):
                    if damaged or not self._found(stored):  # another process may have tuned while this one waited
                        self._fit(stored)
            with rewriting(self.folder, here.name, here.with_suffix(".json").name):
                self._save_tuned(here)
        if text := licence_text(self.backbone.licence):
            with rewriting(self.folder, LICENCE), whole_file(self.folder / LICENCE) as waiting:
                waiting.write_text(text, encoding="utf-8")

    def _tuned_here(self, state: Mapping[str, torch.Tensor]) -> bool:
        """Whether the cache has these tuned weights: others were made elsewhere, by whoever wrote their key."""
        stored = Path(self.options.cache) / f"tuned-{self.tuned_key}.safetensors"
        known = find_tensors(stored, self.tuned_key, mapped=True)
        return known is not None and digest_of(state) == digest_of(known[0])

    def _found(self, path: Path) -> bool:
        """Load the tuned weights in ``path`` if they are those of this run."""
        unet = self.editor.denoiser.unet
        found = find_tensors(path, self.tuned_key, form_of(tuned_parameters(unet)))
        if found is None:
            return False
        self.progress.note(f"tuned weights: reused from {path.parent}")
        load_tuned(unet, found[0])
        self.losses = found[1].get("losses", [])
        if path.parent == Path(self.options.cache):
            mark_used(path)
        return True

    def _fit(self, stored: Path) -> None:
        states = stored.with_suffix("")
        last = states / "last.ckpt"
        form = {f"{UNET}{name}": each for name, each in form_of(tuned_parameters(self.editor.denoiser.unet)).items()}
        whole = resumable(last, form)
        with self.progress.stage("tuning", "tuning on the clip") as on_step, without_advice():
            trainer = build_trainer(
                self.options, str(self.folder), [TuningCheckpoint(last), Tick(on_step), self.log], self.loggers
            )
            trainer.fit(self.editor, self.data, ckpt_path=whole)
        self.editor.zero_grad()  # frees the last step's gradients
        self.losses = self.editor.losses
        self._save_tuned(stored)
        shutil.rmtree(states, ignore_errors=True)

    def predict(self, requests: Mapping[str, EditEntry], about: Mapping[str, Any] | None = None) -> list[str]:
        """Make the edits that are not made yet, one after another, each written before the next begins; return their
        names.

        ``about``: further content of ``edit.json``.
        """
        targets = self.targets(requests)
        keys = {target.name: self.edit_key(target) for target in targets}
        due = [target for target in targets if not self._holds(target.name, keys[target.name])]
        written = [f"edits/{target.name}/{SUMS}" for target in due]
        gone = bool(targets) and not all((self.folder / name).is_file() for name in INVERTED)
        with rewriting(self.folder, *written, *(INVERTED if due or gone else ())):
            if due:
                self._predict(due, keys, requests, about or {})
            elif gone:  # the edits stand, what they were made from does not
                self._write_round_trip()
                self.editor.pipeline.invert(self.data.source)
        return [target.name for target in due]

    def _holds(self, name: str, key: str) -> bool:
        """Whether the folder holds the edit ``name`` of this key, as it was made."""
        folder = self.folder / "edits" / name
        if not is_made(folder / "edit.json", key):
            return False
        try:
            check_record(folder)
        except FileError as error:
            log.warning("%s; made again now", error)
            return False
        return True

    def _predict(
        self, due: list[Target], keys: Mapping[str, str], requests: Mapping[str, EditEntry], about: Mapping[str, Any]
    ) -> None:
        self._drop_figures([target.name for target in due])
        write_mask_preview(self.folder / "mask_preview.png", self.clip, due)
        self.data.targets = due
        self._write_round_trip()
        truths = {name: entry.truth for name, entry in requests.items() if entry.truth}
        common = {
            "source_prompt": self.options.video.source_prompt,
            "segmenter": self.segmenter_hashes,
            "seed": self.options.seed,
            "options": asdict(self.options.editing),
            **about,
        }
        recorded = {name: {"key": keys[name], **request_record(entry), **common} for name, entry in requests.items()}
        stills = self.options.output.frames is not None
        writer = RunWriter(self.folder, truths, recorded, self.progress, self.footage, stills)
        with without_advice():
            trainer = build_trainer(self.options, str(self.folder), [writer, self.log], self.loggers)
            trainer.predict(self.editor, self.data, return_predictions=False)

    def _write_round_trip(self) -> None:
        write_video(self.folder / "round_trip.mp4", self.data.source.round_trip, self.clip.fps, lossless=True)

    def _drop_figures(self, names: Sequence[str]) -> None:
        """Remove the figures of edits that are about to be replaced from ``metrics.json``."""
        with changed_metrics(self.folder) as stored:
            for part in ("edits", "keys"):
                if {*names} & {*stored.get(part, {})}:
                    stored[part] = {name: value for name, value in stored[part].items() if name not in names}

    def edit_key(self, target: Target) -> str:
        """The key of an edit: all that it depends on."""
        images = [part for image in target.images for part in (image.rgb, image.alpha, image.matte)]
        written = [self.footage is not None, self.options.video.audio, self.options.output]
        return key_of(self.key, self.options.editing, target.prompt, *images, target.region, written)

    def targets(self, entries: Mapping[str, EditEntry], quiet: bool = False) -> list[Target]:
        """The requested edits, read and segmented. Raises ValueError for what sampling or measuring would fail at.

        Of each clip and edit this is done once. ``quiet``: what their masks do is not said.
        """
        keys = {name: key_of(entry) for name, entry in entries.items()}
        due = {name: entry for name, entry in entries.items() if keys[name] not in self._targets}
        for target in self._read(due, log.debug if quiet else log.warning):
            self._targets[keys[target.name]] = target
        return [replace(self._targets[key], name=name) for name, key in keys.items()]

    def _read(self, entries: Mapping[str, EditEntry], say: Callable[[str], None]) -> list[Target]:
        reference, video = self.options.reference, self.options.video
        targets = read_targets(entries, self.clip, video, reference, say, Scratch(Path(self.options.cache)))
        if targets and reference.matte == "segmented" and reference.mode not in ("as_is", "none"):
            device = self.editor.pipeline.encoders.device
            targets, self.segmenter_hashes = segment_targets(targets, str(reference.segmenter), device, self.progress)
        return targets

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
            "losses": self.losses,
        }
        write_tensors(path, tuned_state(self.editor.denoiser.unet), about)
        if path.parent == self.folder:
            write_json(path.with_suffix(".json"), about)

    def _load(self, path: Path) -> str:
        """Load tuned weights, return their key; :class:`StoredError` if they were tuned from another backbone."""
        state, about = read_tensors(path)
        if about.get("base") != self.backbone.hashes:  # a folder's name is its path, and it may have been moved
            raise StoredError(
                f"{path}: tuned from another backbone ({about.get('backbone')}) than {self.backbone.name}: give that "
                "one, or tune again"
            )
        load_tuned(self.editor.denoiser.unet, state)
        return str(about.get("key"))

    def record(self, chosen: Mapping[str, Any] | None = None) -> None:
        """Write ``run.json``: how everything was made, and the experiment and overrides that were ``chosen``.

        ``metrics.json`` gets the seconds and peak memory of each stage, and the reconstruction.
        """
        trajectory = self.folder / "trajectory.safetensors"
        about = read_about(trajectory) if trajectory.is_file() else {}
        psnr = {key: about[key] for key in RECONSTRUCTION if key in about}
        with changed_metrics(self.folder) as metrics:
            metrics |= psnr | {"stages": metrics.get("stages", {}) | self.progress.record}
        content = {
            "key": self.key,
            "config": asdict(self.options),
            "chosen": chosen,
            "seed": self.options.seed,
            "fps": self.clip.fps,
            "origin": self.clip.origin and self.clip.origin.record(),
            "size": list(self.clip.frames.shape),
            "windows": [[w.start, w.stop] for w in self.editor.denoiser.windows(len(self.clip.frames))],
            "crop": self.clip.view and list(self.clip.view),
            **origin(),
            "weights": dict(self.backbone.hashes),
            "weights_unverified": list(self.backbone.unverified),
            "segmenter": self.segmenter_hashes,
            "image_encoder": self.backbone.conditioner,
            "licence": self.backbone.licence,
            "inputs": input_digests(self.options),
        }
        with rewriting(self.folder, "run.json"):
            write_json(self.folder / "run.json", content)

    def close(self) -> None:
        """Finish the logs."""
        self.log.close()
