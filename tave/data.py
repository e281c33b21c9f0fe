"""The LightningDataModule: one clip, encoded once, to tune on; a list of edits to predict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from tave.editor import EditTask, TuningBatch
from tave.pipeline import Pipeline, Source, Target
from tave.video import Clip


class _Items(Dataset[Any]):
    """``items``, all of them repeated ``times``."""

    def __init__(self, items: Sequence[Any], times: int = 1) -> None:
        self.items, self.times = items, times

    def __len__(self) -> int:
        return len(self.items) * self.times

    def __getitem__(self, index: int) -> Any:
        return self.items[index % len(self.items)]


class VideoData(L.LightningDataModule):
    """A clip, the prompt that describes it, and the edits to make.

    ``steps``: how often ``train_dataloader`` repeats the clip. Everything lies on the pipeline's device.
    """

    def __init__(
        self, pipeline: Pipeline, clip: Clip, prompt: str, targets: Sequence[Target] = (), steps: int = 0
    ) -> None:
        super().__init__()
        self.pipeline, self.clip, self.prompt, self.steps = pipeline, clip, prompt, steps
        self.targets = list(targets)

    @cached_property
    def source(self) -> Source:
        """The encoded clip."""
        return self.pipeline.encode(self.clip, self.prompt)

    def train_dataloader(self) -> DataLoader[TuningBatch]:
        embeds = self.pipeline.encoders.embed(self.clip.frames)
        batch = TuningBatch(self.source.latents, self.source.condition, embeds)
        return DataLoader(_Items([batch], self.steps), batch_size=None)

    def predict_dataloader(self) -> DataLoader[EditTask]:
        return DataLoader(_Items([EditTask(self.source, target) for target in self.targets]), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # encoded on the right device already
