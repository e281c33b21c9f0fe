"""Results -> means and paired differences with intervals over cases, as plain records, and Markdown tables.

The unit is the case: seeds of one case are averaged first, since they are no evidence about other cases. Intervals are
percentile bootstraps (Efron 1979) of the mean from one seeded draw, so that a table is reproducible.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from tave.findings import printable

if TYPE_CHECKING:
    from .runs import Result, Results

ALL = "all"
DRAWS, SEED, COVER = 2000, 0, 0.95
# Pairs below which no difference is decided: of five with random signs one in sixteen has all alike, and a bootstrap
# of few is too narrow: without any difference it leaves out 0 in half of all tables of two cases.
FEWEST = 6
# Endings of the names of values that an edit is compared with; see eval.metrics.
REFERENCES = ("source", "ideal", "ceiling", "floor", "autoencoder")
# Differences of NEARNESS to a control that pastes the photograph: name -> control.
NEARNESS = "ideal_psnr_aligned"
GAINS = {f"gain_over_{control}": control for control in ("pasted", "pasted_true_pose")}
# The figures that matter, in this order: identity, nearness to the ideal, likeness by CLIP, residue, steadiness and
# background. Of one metric's names a clip has that of its truth, of an annotation, or of the edit mask.
HEADLINE = ("judge_vehicle_accuracy", "judge_color_accuracy", "judge_pattern_accuracy", NEARNESS)
HEADLINE += ("clip_image_crop", "clip_image_in_annotation", "clip_image_in_mask", "residue_old", "warp_error_object")
HEADLINE += ("warp_error_in_annotation", "warp_error_in_mask", "background_psnr", "background_psnr_outside_annotation")
HEADLINE += ("background_psnr_outside_mask",)
ARROWS = {True: " ↑", False: " ↓", None: ""}
BETTER = {True: "higher is better", False: "lower is better", None: ""}


def interval(values: Sequence[float], draws: int = DRAWS, seed: int = SEED) -> tuple[float, float, float]:
    """Mean of ``values`` (at least one), and the ends of its 95 % bootstrap interval."""
    found = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(found.size, size=(draws, found.size))
    low, high = np.quantile(found[chosen].mean(1), [(1 - COVER) / 2, (1 + COVER) / 2])
    return float(found.mean()), float(low), float(high)


def by_method(results: Iterable[Result], metric: str, group: str = ALL) -> dict[str, dict[str, float]]:
    """method -> case -> value of ``metric``, mean over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if metric in result.figures and (group == ALL or group in result.groups):
            found.setdefault(result.method, {}).setdefault(result.case, []).append(result.figures[metric])
    return {m: {case: sum(own) / len(own) for case, own in sorted(cases.items())} for m, cases in found.items()}


def groups_of(results: Iterable[Result]) -> list[str]:
    """``all``, then every group in the order of its first case."""
    return list(dict.fromkeys([ALL, *(group for result in results for group in result.groups)]))


def methods_of(results: Iterable[Result], first: str) -> list[str]:
    """``first``, then the other methods in the order of their first edit."""
    found = dict.fromkeys(result.method for result in results)
    return [first] * (first in found) + [method for method in found if method != first]


def _mean(metric: str, group: str, cases: Mapping[str, float]) -> dict[str, Any]:
    mean, low, high = interval(list(cases.values()))
    return {"group": group, "metric": metric, "mean": mean, "low": low, "high": high, "n": len(cases)}


def means(results: Sequence[Result], metrics: Iterable[str], first: str) -> list[dict[str, Any]]:
    """For each group, metric and method with a case: mean, interval and number of cases."""
    made = []
    for group, metric in product(groups_of(results), metrics):
        found = by_method(results, metric, group)
        order = [method for method in methods_of(results, first) if method in found]
        made += [_mean(metric, group, found[method]) | {"method": method} for method in order]
    return made


def reference_of(name: str) -> tuple[str, str]:
    """The metric and the reference of a name METRIC_REFERENCE; ("", "") for any other."""
    metric, _, suffix = name.rpartition("_")
    return (metric, suffix) if suffix in REFERENCES else ("", "")


def references(results: Sequence[Result], metrics: Iterable[str], first: str) -> list[dict[str, Any]]:
    """The values that ``metrics`` are compared with, of the method ``first``: the others have the same clips."""
    wanted, own = set(metrics), [result for result in results if result.method == first]
    names = sorted({name for result in own for name in result.figures if reference_of(name)[0] in wanted})
    made = []
    for group, name in product(groups_of(own), names):
        if found := by_method(own, name, group).get(first):
            metric, reference = reference_of(name)
            made.append(_mean(metric, group, found) | {"reference": reference})
    return made


def paired(results: Sequence[Result], metrics: Iterable[str], versus: str) -> list[dict[str, Any]]:
    """Mean of ``versus`` minus every other method over the cases that both have, with its interval.

    ``decided``: at least :data:`FEWEST` pairs, and an interval that leaves out 0.
    """
    made = []
    for group, metric in product(groups_of(results), metrics):
        found = by_method(results, metric, group)
        for method in methods_of(results, versus)[1:]:
            ours, others = found.get(versus, {}), found.get(method, {})
            if both := {case: ours[case] - other for case, other in others.items() if case in ours}:
                pair: dict[str, Any] = {"method": method, "versus": versus} | _mean(metric, group, both)
                decided = len(both) >= FEWEST and (pair["low"] > 0 or pair["high"] < 0)
                made.append(pair | {"difference": pair.pop("mean"), "decided": decided})
    return made


def with_gains(found: Results) -> Results:
    """``found`` with :data:`GAINS`: each edit's ideal_psnr_aligned minus that of a control in the same case, in dB.

    The control itself has no gain. Where it was made with several seeds, their mean counts.
    """
    if NEARNESS not in found.metrics:
        return found
    controls = by_method([result for result in found.results if result.control], NEARNESS)
    pasted = {name: (control, controls[control]) for name, control in GAINS.items() if control in controls}

    def gains(result: Result) -> dict[str, float]:
        if NEARNESS not in result.figures:
            return {}
        over = {name: cases for name, (control, cases) in pasted.items() if control != result.method}
        return {
            name: result.figures[NEARNESS] - cases[result.case] for name, cases in over.items() if result.case in cases
        }

    about = found.metrics[NEARNESS]
    facts = {name: about | {"id": str(about["id"]).replace(NEARNESS, name, 1)} for name in pasted}
    results = [replace(result, figures=result.figures | gains(result)) for result in found.results]
    return replace(found, results=results, metrics=found.metrics | facts)


def missing(results: Sequence[Result], failed: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """Case and method wherever a benchmark's case lacks a method that others have and no failure is listed."""
    failures = [(each["case"], each["method"]) for each in failed]
    known = dict.fromkeys((result.case, result.method) for result in results if result.options is None)
    cases, methods = dict.fromkeys(case for case, _ in [*known, *failures]), dict.fromkeys(m for _, m in known)
    absent = [(case, method) for case in cases for method in methods if (case, method) not in {*known, *failures}]
    return [{"case": case, "method": method} for case, method in absent]


def repeated(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Case, method and seed with several edits, which are averaged whatever made them differ, and their number."""
    count = Counter((result.case, result.method, result.seed) for result in results)
    return [{"case": c, "method": m, "seed": seed, "n": n} for (c, m, seed), n in count.items() if n > 1]


def as_json(found: Results, metrics: Sequence[str], versus: str) -> dict[str, Any]:
    """The content of ``leaderboard.json``."""
    results = found.results
    return {
        "versus": versus,
        "interval": {"cover": COVER, "draws": DRAWS, "seed": SEED, "unit": "case", "fewest": FEWEST},
        "metrics": {name: found.metrics[name] for name in metrics},
        "methods": methods_of(results, versus),
        "controls": methods_of([result for result in results if result.control], ""),
        "groups": groups_of(results),
        "means": means(results, metrics, versus),
        "paired": paired(results, metrics, versus),
        "references": references(results, metrics, versus),
        "seeds": sorted({result.seed for result in results if result.seed is not None}),
        "failed": found.failed,
        "missing": missing(results, found.failed),
        "repeated": repeated(results),
        "left_out": found.left_out,
    }


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table of cells in Markdown: names in them are to be escaped."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def escape(text: str) -> str:
    """``text`` as Markdown shows it unchanged, in a table, a list or a heading."""
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\n", " "), ("\r", " ")):
        text = text.replace(character, escaped)
    text = re.sub(r"[\\`*|~]|\](?=[(\[:])|\b_|_\b|^[-+#=\[]", r"\\\g<0>", printable(text))
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


def code(text: str) -> str:
    """``text`` as a code span of Markdown, in which nothing else is Markdown."""
    return f"`{printable(' '.join(text.replace('`', chr(39)).split()))}`"
