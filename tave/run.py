"""A run: its folder, its remembered stages, and the Trainer that tunes and predicts."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor

from tave.backbone import Backbone, BackboneError, licence_text
from tave.cache import StoredError, digest, read_about, read_json, read_tensors, write_json, write_tensors
from tave.conditions import image_levels
from tave.config import PACKAGE, EditEntry, TrainOptions
from tave.data import ClipData, Request, TargetImage
from tave.denoiser import Denoiser
from tave.editor import Editor, Inverted
from tave.files import content_digest, file_digest
from tave.inflate import compile_blocks, inflate, load_tuned, select_trainables, tuned_state
from tave.inversion import Trajectory
from tave.memory import at_work, hold, use_tiles
from tave.options import OptionError, within
from tave.reference import MatteError, load_segmenter, matte
from tave.report import Report
from tave.schedule import Schedule
from tave.stages import OnStep, Stages
from tave.video import Clip, ReadOptions, read_clip, read_image, read_matte, write_video
from tave.writer import RunWriter

log = logging.getLogger(__name__)

FORMAT = 1  # of the run folder and of remembered stages; a change makes old products strangers
# What is made in seconds is also made anew by any other code: that which was imported, whatever happens to the files meanwhile.
MADE_BY = content_digest(PACKAGE, "*.py"), *map(version, ("torch", "diffusers", "transformers", "opencv-python-headless"))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the Trainer's advice that can't apply: one clip lies in memory, so there is nothing for workers to do."""
    with warnings.catch_warnings():
        for told in (
            ".*does not have many workers.*",
            ".*checkpoint directory .* exists.*",
            ".*LeafSpec.*",
            ".*logging interval.*",
            ".*in eval mode.*",
            ".*infer the batch indices.*",
        ):
            warnings.filterwarnings("ignore", told)
        yield


class _Tick(Callback):
    """Moves the tuning bar."""

    def __init__(self, on_step: OnStep):
        self.on_step = on_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_step(trainer.global_step, trainer.max_steps)


class Run:
    """One clip under one configuration. ``begin`` encodes it, ``tune`` and ``predict`` are the Trainer's two loops."""

    def __init__(self, options: TrainOptions, folder: Path, clip: Clip, stages: Stages, config: dict[str, Any] | None):
        self.options, self.folder, self.clip, self.stages, self.config = options, folder, clip, stages, config
        self.report = Report(_loggers(options, folder), folder, config or asdict(options))
        L.seed_everything(options.seed, workers=True, verbose=False)
        # cuDNN's convolutions round float32 to TF32's 10 bits unless told otherwise: guided sampling makes another edit of it
        torch.backends.cudnn.allow_tf32 = False
        self.backbone: Backbone = open_backbone(options.backbone)
        if options.tuning.image_noise is not None:
            within("tuning.image_noise", options.tuning.image_noise, 0, image_levels(self.backbone) - 1)
        self._tell_of_weights()
        device = self._trainer([], logger=False).strategy.root_device
        schedule = Schedule.from_scheduler(self.backbone.scheduler, options.inversion.steps)
        unet = inflate(self.backbone.unet, len(clip.frames), options.inflation)
        self.trained = select_trainables(unet, options.tuning.trainables, options.tuning.lora_rank)
        self._spare(unet)
        self.editor = Editor(
            Denoiser(unet, self.backbone.scheduler, options.memory.branches),
            schedule,
            options.tuning,
            options.editing,
            seed=options.seed,
            optimizer=options.memory.optimizer,
            stages=stages,
        )
        self.data = ClipData(
            self.backbone,
            clip,
            options.video.source_prompt,
            steps=options.tuning.steps,
            condition=options.condition,
            reference=options.reference,
            inversion=options.inversion.condition,
            seed=options.seed,
            device=device,
            memory=options.memory,
            stages=stages,
        )
        self.tuned_key = digest(
            FORMAT,
            dict(self.backbone.hashes),
            self.backbone.name,
            options.inflation,
            options.tuning,
            clip.frames,
            options.video.source_prompt,
            options.seed,
            *options.memory.imprint(options.precision),
        )
        self.overrides: list[str] = []  # in whose words an edit was asked for, beside the run's own
        self.segmenter_hashes: dict[str, str] = {}  # of its weight files, once it was needed
        self._mattes: dict[str, Tensor] = {}  # what it cut out, by picture and prompt
        # The scheduler's configuration is in no weight file, yet it decides the levels.
        levels = (schedule.timesteps, schedule.alphas)
        told = (options.condition, options.reference.frame, options.seed)
        self.inversion_key = digest(self.tuned_key, *levels, options.inversion, *told)

    @classmethod
    def begin(cls, options: TrainOptions, folder: Path, *, config: dict[str, Any] | None = None, show: bool = True) -> Run:
        """Read and encode the clip of ``options`` and open ``folder``.

        All that the edits will need is read and checked as well, so that what is wrong fails now and not after the tuning.
        Raises :class:`StoredError` for a folder that holds another clip or another tuning, and leaves it as it is.
        """
        requests, judge = options.video.requests(), options.metrics.judge_folder
        if requests and options.metrics.enabled and judge and not (judge / "classes.json").is_file():
            raise OptionError(f"metrics.judge={judge} holds no classes.json: give a judge's folder, or null to go without")
        clip = read_clip(options.video.path, options.video)
        run = cls(options, folder, clip, Stages(show=show), config)
        run._asked(requests)
        before, _ = (read_json(file) if file.is_file() else {} for file in (folder / "run.json", folder / "metrics.json"))
        if before.get("keys", {}).get("tuned", run.tuned_key) != run.tuned_key:
            raise StoredError(
                f"{folder} holds a run of another clip or another tuning: give another hydra.run.dir (or hydra.sweep.dir)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / "source.mp4", clip.frames, clip.fps, lossless=True)
        write_video(folder / "round_trip.mp4", run.data.source.round_trip.cpu(), clip.fps, lossless=True)
        return run

    def _spare(self, unet: UNet2DConditionModel) -> None:
        """What ``memory`` asks of the parts, once it is known what trains."""
        memory = self.options.memory
        held = memory.held(self.options.precision)
        if held != torch.float32:
            hold(unet, held)
            for encoder in (self.backbone.text_encoder, self.backbone.image_encoder):
                encoder.to(held)  # type: ignore[arg-type]
        if memory.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.options.compile:
            compile_blocks(unet)
        use_tiles(self.backbone.vae, memory.tile)

    def _tell_of_weights(self) -> None:
        """What a person should know once of the weights that are used."""
        if self.backbone.licence:
            self.stages.say(
                f"weights of {self.backbone.name}: {self.backbone.licence}; it holds for what is tuned from them too"
            )
        if self.backbone.unverified:
            files = ", ".join(self.backbone.unverified)
            self.stages.say(f"not verified, since no published SHA-256 is known: {files}; run.json keeps what they have")
            self._compare_with_before()

    def _compare_with_before(self) -> None:
        """Say which unverified files have changed since they were first used; the cache remembers what they had."""
        path = Path(self.options.cache) / "weights.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
        here = {f"{self.backbone.name}/{file}": self.backbone.hashes[file] for file in self.backbone.unverified}
        for file, sha in here.items():
            if known.get(file, sha) != sha:
                log.warning("%s has changed: it was %s, is %s; if it was not you, fetch it again", file, known[file], sha)
        if known | here != known:
            write_json(path, known | here)

    # ---- the two loops -----------------------------------------------------------------------------------------------

    def tune(self) -> None:
        """Fine-tune, unless the same tuning is remembered; a killed one goes on where it stopped."""
        kept = Path(self.options.cache) / f"tuned-{self.tuned_key}.safetensors"
        if kept.is_file():
            self.stages.say(f"tuned weights found in {kept.parent}, no need to tune")
            self.load(kept)
        elif self.trained and self.options.tuning.steps:
            self._fit(kept)
        self._save_tuned(self.folder / "tuned.safetensors")
        if text := licence_text(self.backbone.licence):
            (self.folder / "LICENSE-MODEL.txt").write_text(text, encoding="utf-8")

    def _fit(self, kept: Path) -> None:
        begun = kept.with_suffix("")
        checkpoint = ModelCheckpoint(begun, every_n_train_steps=50, save_last=True, save_top_k=0, save_on_exception=True)
        with self.stages.stage("tuning", "tuning on the clip") as on_step:
            trainer = self._trainer([checkpoint, _Tick(on_step), self.report], logger=self.report.loggers)
            last = begun / "last.ckpt"
            with _without_advice():
                trainer.fit(self.editor, self.data, ckpt_path=str(last) if last.exists() else None)
        self.editor.zero_grad()  # the last step's gradients would lie beside all that follows
        self._save_tuned(kept)
        shutil.rmtree(begun, ignore_errors=True)

    def predict(self, requests: Mapping[str, EditEntry]) -> None:
        """Make the edits one after another; each is on disk before the next begins."""
        self.data.ask(self._asked(requests), self._inverted, self._remembered)
        truths = {name: entry.truth for name, entry in requests.items() if entry.truth}
        about = {name: self._about(entry) for name, entry in requests.items()}
        writer = RunWriter(self.folder, truths, about, self.stages)
        trainer = self._trainer([writer, self.report], logger=self.report.loggers)
        with _without_advice():
            trainer.predict(self.editor, self.data, return_predictions=False)

    def _asked(self, entries: Mapping[str, EditEntry]) -> list[Request]:
        """The edits that are asked for, read and segmented. Raises ValueError for what sampling or measuring would fail at."""
        for name, entry in entries.items():
            if entry.truth and not Path(entry.truth, "truth.npz").is_file():
                raise OptionError(f"video.edits.{name}.truth={entry.truth} holds no truth.npz: give a drawn clip's, or null")
        read = [_request(name, entry, self.clip, self.options.video) for name, entry in entries.items()]
        if asked := self._segmented(read):
            self.editor.check(any(request.region is None for request in asked))
        for request in asked if self.options.editing.cuts_out else ():
            for image, (path, _) in zip(request.images, entries[request.name].images, strict=True):
                try:
                    matte(image.rgb, image.alpha, image.matte, self.options.reference.matte)
                except MatteError as error:
                    raise MatteError(f"{path}: {error}") from None
        return asked

    def _segmented(self, asked: Sequence[Request]) -> list[Request]:
        """``asked`` with the segmenter's matte of each target image, if one is to cut them out; it is gone afterwards."""
        if self.options.reference.matte != "segmented" or not self.options.editing.cuts_out:
            return list(asked)
        due = {digest(image.rgb, request.prompt): (image.rgb, request.prompt) for request in asked for image in request.images}
        if lacking := {key: told for key, told in due.items() if key not in self._mattes}:
            self._cut_out(lacking)

        def cut(request: Request) -> Request:
            images = [replace(image, matte=self._mattes[digest(image.rgb, request.prompt)]) for image in request.images]
            return replace(request, images=images)

        return [cut(request) for request in asked]

    def _cut_out(self, due: Mapping[str, tuple[Tensor, str]]) -> None:
        """Cut the target out of pictures ``3 H W``, each told with its prompt, and remember the mattes by their keys."""
        with self.stages.stage("segmenting", "cutting out the target"):
            segmenter = load_segmenter(str(self.options.reference.segmenter))
            with at_work(segmenter.model, self.data.device):
                cuts = {key: segmenter.cut(*told) for key, told in due.items()}
        self.segmenter_hashes = dict(segmenter.hashes)
        self._mattes |= {key: cut.matte for key, cut in cuts.items()}
        found = ", ".join(f"{cut.name} ({cut.confidence:.2f})" for cut in cuts.values())
        self.stages.say(f"{segmenter.name} cut out: {found}; its weights are not verified, edit.json keeps their SHA-256")

    def _about(self, entry: EditEntry) -> dict[str, Any]:
        """What ``edit.json`` keeps of how an edit was asked for."""
        images = [
            {"target_image": path, "sha256": file_digest(path), "matte": matte, "matte_sha256": matte and file_digest(matte)}
            for path, matte in entry.images
        ]
        return {
            "source_prompt": self.options.video.source_prompt,
            **images[0],  # the metrics compare with the first
            "more_images": images[1:],
            "mask": entry.mask,
            "segmenter": self.segmenter_hashes,
            "seed": self.options.seed,
            "options": asdict(self.options.editing),
            **({"overrides": self.overrides} if self.overrides else {}),
        }

    def close(self) -> None:
        """Finish the logs."""
        self.report.close()

    def _trainer(self, callbacks: list[Callback], logger: Any) -> L.Trainer:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        try:
            return instantiate(
                self.options.trainer,
                max_steps=self.options.tuning.steps,
                gradient_clip_val=self.options.tuning.gradient_clip or None,
                callbacks=callbacks,
                logger=logger or False,
                default_root_dir=str(self.folder),
                enable_progress_bar=False,
                enable_model_summary=False,
                _convert_="all",
            )
        except InstantiationException as error:
            raise _refused("trainer", error) from error

    # ---- what is remembered ------------------------------------------------------------------------------------------

    def _save_tuned(self, path: Path) -> None:
        about = {
            "base": dict(self.backbone.hashes),
            "backbone": self.backbone.name,
            "licence": self.backbone.licence,
            "frames": len(self.clip.frames),
            "inflation": asdict(self.options.inflation),
            "tuning": asdict(self.options.tuning),
            "key": self.tuned_key,
        }
        write_tensors(path, tuned_state(self.editor.denoiser.unet), about)
        write_json(path.with_suffix(".json"), about)

    def load(self, path: Path) -> None:
        """Load tuned weights; :class:`StoredError` if they were tuned from another backbone or for other frames."""
        state, about = read_tensors(path)
        base, here = about.get("base", {}), self.backbone.hashes
        differing = [
            f"{file} was {base.get(file)}, is {here.get(file)}" for file in {**base, **here} if base.get(file) != here.get(file)
        ]
        if about.get("backbone") != self.backbone.name:
            differing.insert(0, f"it was {about.get('backbone')}")
        if differing:
            raise StoredError(
                f"{path}: tuned from another backbone than {self.backbone.name} ({differing[0]}); give that one, or tune again"
            )
        load_tuned(self.editor.denoiser.unet, state)
        if (key := about.get("key")) != self.tuned_key:  # tuned in another precision than it edits in
            self.inversion_key = digest(self.inversion_key, key)

    def _inverted(self, make: Callable[[], Inverted]) -> Inverted:
        """The inversion from this run folder, else from the cache, else made and kept in both."""
        here = self.folder / "trajectory.safetensors"
        kept = Path(self.options.cache) / f"trajectory-{self.inversion_key}.safetensors"
        lacking = [path for path in (here, kept) if not path.is_file() or read_about(path).get("key") != self.inversion_key]
        if len(lacking) == 2:
            made = make()
        else:
            tensors, about = read_tensors(kept if here in lacking else here)
            trajectory = Trajectory(tensors["latents"].to(self.data.device))
            made = Inverted(trajectory, about["reconstruction_psnr"], about["autoencoder_psnr"])
        about = {
            "key": self.inversion_key,
            "reconstruction_psnr": round(made.reconstruction_psnr, 4),
            "autoencoder_psnr": round(made.autoencoder_psnr, 4),
        }
        for path in lacking:
            write_tensors(path, {"latents": made.trajectory.latents}, about)
        return made

    def _remembered(self, name: str, parts: Sequence[Any], make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Tensors from the cache, else made and kept there: the same of another edit that differs in what comes after."""
        levels = self.editor.denoiser.alphas_cumprod, self.editor.denoiser.prediction_type
        key = digest(self.inversion_key, *levels, MADE_BY, *parts)
        kept = Path(self.options.cache) / f"{name}-{key}.safetensors"
        if kept.is_file():
            self.stages.say(f"{name} found in {kept.parent}, no need to find it again")
            found, about = read_tensors(kept)
            self.stages.remember(about["seconds"])
            return found
        before = self.stages.seconds
        made = make()
        spent = {stage: now - before.get(stage, 0.0) for stage, now in self.stages.seconds.items()}
        about = {"seconds": {stage: round(took, 3) for stage, took in spent.items() if took > 0}}
        write_tensors(kept, {part: tensor.clone() for part, tensor in made.items()}, about)  # a file holds no tensor twice
        return made

    def record(self, chosen: Mapping[str, Any] | None = None, unmeasured: Collection[str] = ()) -> None:
        """``run.json``: how all of it was made, and in which words it was ``chosen``.

        ``metrics.json``: stages and reconstruction beside the edits' numbers. ``unmeasured``: the edits that were made anew,
        so that the numbers of those before them go.
        """
        found = self.folder / "trajectory.safetensors"
        about = read_about(found) if found.is_file() else {}
        psnr = {key: about[key] for key in ("reconstruction_psnr", "autoencoder_psnr") if key in about}
        metrics = self.folder / "metrics.json"
        before = read_json(metrics) if metrics.is_file() else {}
        kept = {key: value for key, value in before.items() if key in ("edits", "metrics", "measured")}
        for part in {"edits", "measured"} & kept.keys():
            kept[part] = {name: told for name, told in kept[part].items() if name not in unmeasured}
        write_json(metrics, {**psnr, "stages": self.stages.record} | kept)
        write_json(
            self.folder / "run.json",
            {
                "format": FORMAT,
                "config": self.config or asdict(self.options),
                "chosen": chosen,
                "seed": self.options.seed,
                "fps": self.clip.fps,
                "size": list(self.clip.frames.shape),
                "commit": _commit(),
                "versions": {name: version(name) for name in ("tave", "torch", "diffusers", "transformers", "lightning")}
                | {"python": platform.python_version()},
                "hardware": {
                    "machine": platform.machine(),
                    "threads": torch.get_num_threads(),
                    "cuda": torch.cuda.is_available(),
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                },
                "weights": dict(self.backbone.hashes),
                "weights_unverified": list(self.backbone.unverified),
                "segmenter": self.segmenter_hashes,
                "image_encoder": self.backbone.conditioner,
                "licence": self.backbone.licence,
                "inputs": input_digests(self.options),
                "keys": {"tuned": self.tuned_key, "trajectory": self.inversion_key},
                "stages": self.stages.record,
            },
        )


def open_backbone(settings: dict[str, Any]) -> Backbone:
    """The backbone of a configuration. Raises ValueError with one line, its loader's own if there is one."""
    try:
        return instantiate(settings, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (BackboneError, OptionError, torch.OutOfMemoryError)):
            raise error.__cause__ from None
        raise _refused("backbone", error) from error


def _refused(group: str, error: InstantiationException) -> OptionError:
    """In one line why what ``group`` calls doesn't take its options; it mostly tells itself which it takes."""
    told = " ".join(str(error.__cause__ or error).split())
    return OptionError(f"{group}: {told}; look through the options below {group}")


def _loggers(options: TrainOptions, folder: Path) -> list[Logger]:
    """The loggers that are asked for; each keeps its files below ``folder/logs``, and makes them when it has to tell."""
    # Called outside of Hydra, which would wrap an error of one line into five.
    told = {"save_dir": str(folder / "logs"), "_partial_": True, "_convert_": "all"}
    return [instantiate(entry, **told)() for entry in options.logger.values()]


def _request(name: str, entry: EditEntry, clip: Clip, cut: ReadOptions) -> Request:
    images = [TargetImage(*read_image(path), None if matte is None else read_matte(matte)) for path, matte in entry.images]
    region = None if entry.mask is None else read_region(entry.mask, clip, cut)
    return Request(name, entry.target_prompt, images, region)


def read_region(path: str, clip: Clip, cut: ReadOptions) -> Tensor:
    """The user's mask for ``clip``, ``f 1 H W``, 1 where it is white: a mask of the clip's frames, or of the whole file.

    Raises :class:`OptionError` if it fits neither, cut as the clip was, and where nothing of it is white.
    """
    masks = read_clip(path, ReadOptions(frames=None, multiple=1)).frames
    if masks.shape != clip.frames.shape:
        masks = read_clip(path, cut).frames
    if masks.shape != clip.frames.shape:
        found, wanted = (f"{len(t)} frames of {t.shape[3]}x{t.shape[2]}" for t in (masks, clip.frames))
        raise OptionError(f"video.mask={path} has {found}, the clip {wanted}: give a mask clip cut like the clip")
    region = (masks.mean(1, keepdim=True) > 0).float()
    if not region.any():
        raise OptionError(f"video.mask={path} is black everywhere: make it white where to edit, or leave it out")
    return region


def _commit() -> str | None:
    """The commit of the checkout that this package is in, with a plus where files differ from it; None elsewhere."""
    git = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def input_digests(options: TrainOptions) -> dict[str, str]:
    """SHA-256 of what was given from outside, by its path: clip, target images, mattes and masks, as far as they are there."""
    entries = options.video.requests().values()
    pictures = [path for entry in entries for pair in entry.images for path in pair]
    paths = [options.video.path, *pictures, *(entry.mask for entry in entries)]
    return {path: content_digest(path) for path in dict.fromkeys(paths) if path and Path(path).exists()}
