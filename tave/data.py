"""The DataModule: one clip, encoded once, to tune on; a list of edits to predict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tave.backbone import Backbone
from tave.conditions import (
    Condition,
    ConditionOptions,
    draw_noise,
    encode_condition,
    image_embedding,
    image_levels,
    noise_embedding,
)
from tave.editor import EditTask, Inverted, Lesson, Remembered, Source
from tave.evidence import missing_tokens, words_of
from tave.inversion import inversion_condition
from tave.latents import decode, encode
from tave.masking import to_cells
from tave.memory import MemoryOptions, at_work, in_chunks
from tave.reference import (
    Placed,
    Pose,
    Reference,
    ReferenceOptions,
    Site,
    matte,
    put,
    reference_images,
    source_frames,
)
from tave.stages import Stages
from tave.video import Clip

log = logging.getLogger(__name__)

RememberInverted = Callable[[Callable[[], Inverted]], Inverted]


@dataclass(frozen=True)
class TargetImage:
    """A picture of the target ``3 H W`` in [-1, 1], with its alpha or the user's matte ``1 H W`` if there is one."""

    rgb: Tensor
    alpha: Tensor | None = None
    matte: Tensor | None = None


@dataclass(frozen=True)
class Request:
    """An edit that is asked for, by one or several pictures of its target.

    ``region``: where to edit, ``f 1 H W``, 1 = edit; None: it is found.
    """

    name: str
    prompt: str
    images: Sequence[TargetImage]
    region: Tensor | None = None


class _Items(Dataset[Any]):
    def __init__(self, items: Sequence[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Repeated(_Items):
    """One item, ``count`` times: every tuning step sees the same clip."""

    def __init__(self, item: Any, count: int):
        super().__init__([item])
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.items[0]


class ClipData(L.LightningDataModule):
    """Encodes clip, prompts and frames on construction, then serves them.

    One draw of the image noise, from ``seed``, is shared by all conditions (METHOD 1): two pictures that are equal
    give conditions that are equal to the bit.
    """

    def __init__(
        self,
        backbone: Backbone,
        clip: Clip,
        prompt: str,
        *,
        steps: int,
        condition: ConditionOptions,
        reference: ReferenceOptions,
        inversion: str,
        seed: int,
        device: torch.device | str = "cpu",
        memory: MemoryOptions = MemoryOptions(),
        stages: Stages | None = None,
    ):
        super().__init__()
        self.backbone, self.clip, self.prompt, self.steps = backbone, clip, prompt, steps
        self.options, self.reference, self.device = condition, reference, torch.device(device)
        self.memory = memory
        self._noise = draw_noise(backbone, torch.Generator().manual_seed(seed))
        self._tasks: list[EditTask] = []
        with (stages or Stages(show=False)).stage("encoding", "encoding the clip"):
            self.source = self._encode(inversion)
            self.lesson = self._lesson()

    def condition(self, prompt: str, pictures: Tensor | Sequence[Tensor | Sequence[Tensor]] | None) -> Condition:
        """Prompt and pictures ``n 3 H W`` (several: of one object; None: words alone) -> condition with the run's noise."""
        options = self.options
        with self._at_work(self.backbone.text_encoder, self.backbone.image_encoder):
            made = encode_condition(
                self.backbone,
                prompt,
                pictures,
                several=self.reference.several,
                frames=len(self.clip.frames),
                level=options.noise_level,
                noise=self._noise,
                negative_prompt=options.negative_prompt,
            )
        return Condition(*(part.to(self.device) for part in made.parts))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``f 3 H W`` -> latents ``1 f c h w`` on the run's device."""
        with self._at_work(self.backbone.vae):
            return encode(self.backbone.vae, frames, self.memory.chunk).to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``1 f c h w`` -> frames ``f 3 H W`` float32 on the CPU."""
        with self._at_work(self.backbone.vae):
            return decode(self.backbone.vae, latents, self.memory.chunk).cpu()

    @contextmanager
    def _at_work(self, *parts: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(at_work(part, self.device, self.memory.offload))
            yield

    def _encode(self, inversion: str) -> Source:
        latents = self.encode(self.clip.frames)
        told = self.condition(self.prompt, source_frames(self.clip.frames, self.reference.frame))
        return Source(
            self.clip,
            latents,
            self.decode(latents),
            told,
            inversion_condition(told, inversion),
        )

    def _lesson(self) -> Lesson:
        with self._at_work(self.backbone.image_encoder):
            embeds = in_chunks(partial(image_embedding, self.backbone), self.clip.frames, self.memory.chunk)
        noised = partial(noise_embedding, self.backbone)
        return Lesson(self.source.latents, self.source.condition, embeds.to(self.device), noised, image_levels(self.backbone))

    def ask(self, requests: Sequence[Request], inverted: RememberInverted, remembered: Remembered) -> None:
        """Set the edits that ``predict_dataloader`` serves."""
        self._tasks = [self._task(request, inverted, remembered) for request in requests]

    def _task(self, request: Request, inverted: RememberInverted, remembered: Remembered) -> EditTask:
        frames, options = self.clip.frames, self.reference

        def refer(first: Sequence[Reference], site: Site | None, poses: Sequence[Pose]) -> list[Reference]:
            mattes = [seen.matte for seen in first] or [image.matte for image in request.images]
            stances = poses or [Pose()] * len(request.images)
            return [
                reference_images(frames, image.rgb, image.alpha, options, given=given, site=site, pose=pose)
                for image, given, pose in zip(request.images, mattes, stances, strict=True)
            ]

        @cache
        def cut_anew(number: int) -> Tensor:  # a picture that is shown as it is was not cut out yet
            image = request.images[number]
            return matte(image.rgb, image.alpha, image.matte, options.matte)

        def cut_out(seen: Reference, number: int) -> Tensor:
            return cut_anew(number) if seen.matte is None else seen.matte

        def place(seen: Reference, number: int, site: Site, pose: Pose) -> Placed:
            return put(site, request.images[number].rgb, cut_out(seen, number), pose, options.feather)

        return EditTask(
            request.name,
            request.prompt,
            self.source,
            refer,
            cut_out,
            place,
            [image.rgb[None] for image in request.images],
            [
                options.matte == "colour" or (options.matte == "auto" and image.alpha is None and image.matte is None)
                for image in request.images
            ],
            partial(self.condition, request.prompt),
            self.encode,
            self.decode,
            missing_tokens(self.backbone.tokenizer, self.prompt, request.prompt),
            words_of(self.prompt) == words_of(request.prompt),
            None if request.region is None else to_cells(request.region, *self.source.latents.shape[-2:]),
            inverted,
            remembered,
        )

    def train_dataloader(self) -> DataLoader[Lesson]:
        return DataLoader(_Repeated(self.lesson, self.steps), batch_size=None)

    def predict_dataloader(self) -> DataLoader[EditTask]:
        return DataLoader(_Items(self._tasks), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # encoded on the right device already
