"""Results -> rows and paired differences, with intervals over cases.

A case is the unit: several seeds of it are averaged first, since they are no further evidence about other cases. Intervals
are percentile bootstraps (Efron 1979) of the mean, from one seeded draw, so that a table is the same whoever makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .collect import Collection, Result

ALL = "all"
DRAWS, SEED, COVER = 2000, 0, 0.95
FEWEST = 6
"""Pairs below which no difference counts as decided: of five with random signs one in sixteen has all alike (six: one in 32),
and a bootstrap of few is too narrow: where there is no difference it leaves out 0 in half of all tables of two cases."""

REFERENCES = ("source", "ideal", "ceiling", "floor", "autoencoder")
"""Suffixes of figures that an edit is read against: :mod:`eval.figures`."""

Cases = dict[str, float]
"""case -> figure, seeds averaged"""


@dataclass(frozen=True)
class Mean:
    """The mean of one metric over cases of a group, with its interval and the number of cases."""

    group: str
    metric: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Row(Mean):
    """Of a method's cases."""

    method: str


@dataclass(frozen=True)
class Beside(Mean):
    """What a metric is read against, by its ``reference``."""

    reference: str


@dataclass(frozen=True)
class Paired:
    """The mean of ``method`` minus ``versus`` over the cases that both have.

    ``decided``: they are :data:`FEWEST` or more, and the interval leaves out 0.
    """

    method: str
    versus: str
    metric: str
    group: str
    difference: float
    low: float
    high: float
    n: int
    decided: bool


def interval(values: Sequence[float], draws: int = DRAWS, seed: int = SEED) -> tuple[float, float, float]:
    """Mean of ``values`` and the ends of its 95 % interval; a single value is its own interval.

    Raises:
        ValueError: there is no value.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size == 0:
        raise ValueError("an interval needs a value")
    chosen = np.random.default_rng(seed).integers(found.size, size=(draws, found.size))
    low, high = np.quantile(found[chosen].mean(1), [(1 - COVER) / 2, (1 + COVER) / 2])
    return float(found.mean()), float(low), float(high)


def by_method(results: Iterable[Result], metric: str, group: str = ALL) -> dict[str, Cases]:
    """method -> case -> figure of ``metric``; those without the figure don't count."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if metric in result.figures and (group == ALL or group in result.groups):
            found.setdefault(result.method, {}).setdefault(result.case, []).append(result.figures[metric])
    return {
        method: {case: sum(values) / len(values) for case, values in sorted(cases.items())} for method, cases in found.items()
    }


def groups_of(results: Iterable[Result]) -> list[str]:
    """``all``, then every group in the order of its first case."""
    return list(dict.fromkeys([ALL, *(group for result in results for group in result.groups)]))


def methods_of(results: Iterable[Result], first: str) -> list[str]:
    """``first``, then the others in the order of their first edit."""
    found = dict.fromkeys(result.method for result in results)
    return [first] * (first in found) + [method for method in found if method != first]


def _mean(group: str, metric: str, cases: Cases) -> tuple[str, str, float, float, float, int]:
    """The fields of a :class:`Mean`."""
    return group, metric, *interval(list(cases.values())), len(cases)


def rows(results: Sequence[Result], metrics: Iterable[str], first: str) -> list[Row]:
    """One row for each method, group and metric that has a case."""
    made = []
    for group in groups_of(results):
        for metric in metrics:
            found = by_method(results, metric, group)
            for method in methods_of(results, first):
                if found.get(method):
                    made.append(Row(*_mean(group, metric, found[method]), method))
    return made


def reference_of(name: str) -> tuple[str, str]:
    """The metric that a figure ``METRIC_REFERENCE`` stands beside, and the reference; ("", "") for what is none."""
    metric, _, suffix = name.rpartition("_")
    return (metric, suffix) if suffix in REFERENCES else ("", "")


def beside(results: Sequence[Result], metrics: Iterable[str], first: str) -> list[Beside]:
    """What ``metrics`` are read against, as the row ``first`` has it: the other rows have the same clips."""
    wanted, own = set(metrics), [result for result in results if result.method == first]
    names = sorted({name for result in own for name in result.figures if reference_of(name)[0] in wanted})
    made = []
    for group in groups_of(own):
        for name in names:
            if found := by_method(own, name, group).get(first):
                metric, reference = reference_of(name)
                made.append(Beside(*_mean(group, metric, found), reference))
    return made


def paired(results: Sequence[Result], metrics: Iterable[str], versus: str) -> list[Paired]:
    """``versus`` against every other method, over the cases that both have: positive where ``versus`` is higher."""
    made = []
    for group in groups_of(results):
        for metric in metrics:
            found = by_method(results, metric, group)
            ours = found.get(versus, {})
            for method in methods_of(results, versus)[1:]:
                both = [ours[case] - other for case, other in found.get(method, {}).items() if case in ours]
                if both:
                    mean, low, high = interval(both)
                    decided = len(both) >= FEWEST and (low > 0 or high < 0)
                    made.append(Paired(versus, method, metric, group, mean, low, high, len(both), decided))
    return made


def missing(results: Sequence[Result], failed: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """Case and method wherever a labelled case lacks a row that others have, and no failure says why.

    A case that failed before its first row, so that it has no result at all, lacks every one.
    """
    failed = list(failed)
    labelled = [result for result in results if result.labelled]
    known = {(result.case, result.method) for result in labelled} | {(f["case"], f["method"]) for f in failed}
    cases = dict.fromkeys([*(result.case for result in labelled), *(f["case"] for f in failed)])
    methods = dict.fromkeys(r.method for r in labelled)
    return [{"case": case, "method": method} for case in cases for method in methods if (case, method) not in known]


def repeated(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Case, method, seed and ``n`` of edits that are there more than once: they are averaged, whatever made them differ."""
    count = Counter((result.case, result.method, result.seed) for result in results)
    return [{"case": c, "method": m, "seed": seed, "n": n} for (c, m, seed), n in count.items() if n > 1]


def as_json(found: Collection, metrics: Sequence[str], versus: str) -> dict[str, Any]:
    """The content of ``leaderboard.json``."""
    about: Mapping[str, Any] = {name: found.metrics.get(name, {}) for name in metrics}
    return {
        "versus": versus,
        "interval": {"cover": COVER, "draws": DRAWS, "seed": SEED, "unit": "case", "fewest": FEWEST},
        "metrics": about,
        "methods": methods_of(found.results, versus),
        "controls": methods_of([result for result in found.results if result.control], ""),
        "groups": groups_of(found.results),
        "rows": [asdict(row) for row in rows(found.results, metrics, versus)],
        "paired": [asdict(row) for row in paired(found.results, metrics, versus)],
        "beside": [asdict(row) for row in beside(found.results, metrics, versus)],
        "seeds": sorted({result.seed for result in found.results if result.seed is not None}),
        "failed": found.failed,
        "missing": missing(found.results, found.failed),
        "repeated": repeated(found.results),
    }
