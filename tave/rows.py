"""One case under many rows: tuned once, then one more edit for each method and each control, labelled and measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tave.cache import write_json
from tave.config import CONF, EditEntry, MetricsOptions, TrainOptions, schema, typed
from tave.controls import CONTROLS, make, region_told
from tave.listing import ListedCase
from tave.options import OptionError

AFTERWARDS = ("reference", "mask", "correction", "sampler")  # what may differ between edits of one tuned clip
SAME = (*AFTERWARDS, "seed", "backbone", "condition", "inflation", "tuning", "inversion")  # what a resumed run must agree in


@dataclass
class Method:
    """A row: a file of conf/experiment by name, then ``overrides`` as for ``tave.edit``.

    ``oracle``: it is told the true region, so only cases whose truth or annotation is known have it.
    """

    experiment: str | None = None
    overrides: list[str] = field(default_factory=list)
    oracle: bool = False


def method_of(name: str, told: Mapping[str, Any]) -> Method:
    """The row ``name`` as a config tells it. Raises :class:`OptionError` for what is unknown there, or in what it changes."""
    try:
        method: Method = OmegaConf.to_object(OmegaConf.merge(schema(Method), dict(told)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise OptionError(f"methods.{name}: {str(error).splitlines()[0]}") from error
    changes_of(name, method)
    return method


def changes_of(name: str, method: Method) -> DictConfig:
    """What ``method`` changes of the run's options. Raises :class:`OptionError` for an unknown key or one of the tuning."""
    path = CONF / "experiment" / f"{method.experiment}.yaml"
    if method.experiment and not path.is_file():
        raise OptionError(f"methods.{name}.experiment={method.experiment}: there is no {path}")
    try:
        file = OmegaConf.load(path) if method.experiment else {}
        changes = OmegaConf.merge(file, OmegaConf.from_dotlist(list(method.overrides)))
        OmegaConf.merge(schema(TrainOptions), changes)
    except OmegaConfBaseException as error:
        raise OptionError(f"methods.{name}: {str(error).splitlines()[0]}") from error
    if early := sorted(str(key) for key in changes if key not in AFTERWARDS):
        raise OptionError(f"methods.{name} changes {', '.join(early)}: put it into overrides=[...] of a benchmark of its own")
    return changes  # type: ignore[return-value]


@dataclass(frozen=True)
class Job:
    """A case under one seed. ``config`` is that of its tuning; ``home`` its run folder."""

    case: ListedCase
    seed: int
    home: Path
    config: DictConfig

    @property
    def tuned(self) -> bool:
        return (self.home / "run.json").is_file()

    def stands(self, row: str) -> bool:
        return (self.home / "edits" / row / "edit.json").is_file()

    def tune(self) -> None:
        """Tune, unless that stands. Raises :class:`OptionError` if it stands and was tuned by other choices."""
        from tave.edit import recorded
        from tave.train import train

        asked: Any = OmegaConf.to_container(self.config, resolve=True)
        if not self.tuned:
            train(typed(self.config), self.home, config=asked, show=False)
            return
        before: Any = OmegaConf.to_container(recorded(self.home), resolve=True)
        self._agree({key: before[key] for key in SAME}, {key: asked[key] for key in SAME})

    def edit(self, row: str, method: Method) -> None:
        """Make a method's edit, unless it stands. Raises :class:`OptionError` if it stands and was made otherwise."""
        from tave.edit import edit, recorded

        entry = EditEntry(self.case.target_image, self.case.target_prompt, self.case.matte, truth=self.case.truth)
        cfg = OmegaConf.merge(recorded(self.home), changes_of(row, method))
        options: TrainOptions = typed(cfg)  # type: ignore[arg-type]
        if self.stands(row):
            told = json.loads((self.home / "edits" / row / "edit.json").read_text())
            self._agree(told["options"], json.loads(json.dumps(asdict(options.editing))))
            return
        if method.oracle:
            entry.mask = str(region_told(self.home, self.case, options.video))
        video = replace(options.video, edits={row: entry})
        edit(self.home, replace(options, video=video, metrics=MetricsOptions(enabled=False)), show=False)

    def control(self, row: str) -> None:
        """Make a control's edit from the files of the row ``tave``, unless it stands."""
        if not self.stands(row):
            make(row, self.home, self.case)

    def label(self, row: str) -> None:
        """Say in ``edit.json`` which row of which case it is, for the tables."""
        path = self.home / "edits" / row / "edit.json"
        told = json.loads(path.read_text())
        label = {"case": self.case.name, "group": list(self.case.groups), "method": row, "seed": self.seed}
        if told.get("benchmark") != label:
            write_json(path, told | {"benchmark": label})

    def score(self, row: str, tools: Any) -> None:
        """Measure the edit, unless it has its figures. ``tools``: an :class:`eval.score.Toolbox`."""
        from eval.cases import read_cases
        from eval.score import merge_metrics, score_cases

        path = self.home / "metrics.json"
        if json.loads(path.read_text()).get("edits", {}).get(row):
            return
        drawn = Path(self.case.annotations) if self.case.annotations and not self.case.truth else None
        scores = score_cases(read_cases(self.home, [row], drawn), tools, self.home / "edits")
        merge_metrics(path, scores.edits, scores.metrics)

    def _agree(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for key, old, new in differing(before, now):
            raise OptionError(f"{self.home} was made with {key}={old}, not {new}: give another folder=..., or delete it")


def differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value wherever they differ; a key that one side hasn't got is None there."""
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differing(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def wanted(case: ListedCase, rows: Mapping[str, Method | None]) -> Iterator[tuple[str, Method | None]]:
    """The rows that ``case`` can have, methods first: controls (None) are made from the files of one of them."""
    known = case.truth or case.annotations
    yield from ((row, method) for row, method in rows.items() if method is not None and (known or not method.oracle))
    yield from ((row, None) for row, method in rows.items() if method is None and row in CONTROLS)
