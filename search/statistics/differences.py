"""What numbers from a few seeds say: differences paired by seed, tests, hypervolumes, and the verdict in words.

Chance comes in twice: another seed would give other networks, and other test images other percentages of the same
networks. The differences of two methods, one per seed and test image, are taken as a two-way crossed random effects
model without replication:

    d[s, i] = mu + a[s] + b[i] + e[s, i]            S seeds, I images, variances A, B and E
    mean square of seeds      MS_S, S - 1 degrees of freedom, expects E + I A
    mean square of images     MS_I, I - 1, expects E + S B
    residual mean square      MS_E, (S - 1) (I - 1), expects E
    variance of the mean      (MS_S + max(MS_I - MS_E, 0)) / (S I)

(Obuchowski and Rockette, Communications in Statistics 24(2), 1995, doi:10.1080/03610919508813243, with seeds in the
place of readers.) The critical value is the mean of the two Student's t, weighted by their parts of the variance
(Cochran and Cox, Experimental Designs, 1957, section 4.14): false verdicts stay at 5 % or below for every mix of
the two, where Satterthwaite's degrees of freedom let 8 % pass with three seeds. Without marks of single images it
is Student's t over seeds. Several searches at one budget are corrected for their number by Holm's method
(Scandinavian Journal of Statistics 6(2), 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special
import scipy.stats

from espalier.search.spaces.metric import Metric

LEVEL = 0.05
"""Of all tests; intervals hold 1 - LEVEL."""
FEWEST = 3
"""Paired seeds below which nothing is decided."""
SAME = 1e-9
"""Share of a mean difference below which its error is that of floating point."""
SMALLEST = 1e-12
"""The least p that is told."""
RANKED = 6
"""Paired seeds from which Wilcoxon's signed-rank test can go below LEVEL."""

Finding = Literal["better", "worse", "not distinguishable", "identical", "too few seeds"]
"""What the numbers of a method say beside those of the baseline."""

Sample = Mapping[int, float]
"""Seed -> score; greater is better."""

Array = npt.NDArray[Any]

Marks = Mapping[int, Array]
"""Seed -> what single test images add to the score, (n,): numbers whose mean it is."""


@dataclass(frozen=True)
class Paired:
    """A difference, first minus second, over paired seeds.

    Attributes:
        seeds: number of pairs.
        mean: of the differences.
        sd: their standard deviation; 0 for one pair.
        low: lower end of the 95 % interval of the mean; infinite for one pair, and where nothing varies.
        high: its upper end.
        p: two-sided, of a mean of zero; 1 for one pair, and where nothing varies. Like the interval, of seeds and
            test images together where images are known, else of seeds alone.
        seed_p: likewise of Student's t over seeds alone.
        rank_p: two-sided, of Wilcoxon's signed-rank test over seeds; None below `RANKED` pairs.
        identical: whether every difference is zero.
    """

    seeds: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    seed_p: float
    rank_p: float | None
    identical: bool

    @property
    def constant(self) -> bool:
        """Whether several seeds have the same difference, so that chance cannot be told."""
        return self.seeds > 1 and not self.identical and not math.isfinite(self.low)

    @property
    def hangs_on_images(self) -> bool:
        """Whether the seeds agree, and other test images might say otherwise."""
        return not self.constant and self.seed_p < LEVEL <= self.p

    def finding(self, p: float | None = None) -> Finding:
        """What it says; `p` is the corrected one where several methods were tried."""
        if self.seeds < FEWEST:
            return "too few seeds"
        if self.identical:
            return "identical"
        if (self.p if p is None else p) >= LEVEL:
            return "not distinguishable"
        return "better" if self.mean > 0 else "worse"


def paired(first: Sequence[float], second: Sequence[float], marks: Array | None = None) -> Paired:
    """The difference of two lists whose elements belong together.

    Args:
        first: scores per seed; greater is better.
        second: likewise.
        marks: (seeds, images) differences on single test images, in the unit of `first` once averaged; they say how
            far the difference hangs on the choice of the images.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    differences = np.array([a - b for a, b in zip(first, second, strict=True)], dtype=np.float64)
    if not len(differences):
        raise ValueError("there is nothing to pair")
    n, mean, identical = len(differences), float(differences.mean()), bool((differences == 0).all())
    if n < 2:
        return Paired(n, mean, 0.0, -math.inf, math.inf, 1.0, 1.0, None, identical)
    of_seeds = float(differences.var(ddof=1)) / n
    parts = [(of_seeds, n - 1)]
    if marks is not None:
        parts.append((_variance_of_images(marks), marks.shape[1] - 1))
    half, p = _interval(mean, parts)
    if not identical and sum(part for part, _ in parts) ** 0.5 < SAME * abs(mean):
        half, p = math.inf, 1.0  # what varies nothing tells nothing of chance
    return Paired(
        seeds=n,
        mean=mean,
        sd=float(differences.std(ddof=1)),
        low=mean - half,
        high=mean + half,
        p=p,
        seed_p=_interval(mean, parts[:1])[1],
        rank_p=_rank_p(differences),
        identical=identical,
    )


def _variance_of_images(marks: Array) -> float:
    """The part of the variance of the mean that the choice of the images has: max(MS_I - MS_E, 0) / (S I)."""
    seeds, images = marks.shape
    if images < 2:
        return 0.0
    by_seed, by_image, mean = marks.mean(1, keepdims=True), marks.mean(0, keepdims=True), marks.mean()
    of_images = seeds * float(((by_image - mean) ** 2).sum()) / (images - 1)
    residual = float(((marks - by_seed - by_image + mean) ** 2).sum()) / ((seeds - 1) * (images - 1))
    return float(max(of_images - residual, 0.0) / (seeds * images))


def _interval(mean: float, parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Half of the 1 - LEVEL interval of a mean, and the two-sided p of a mean of zero.

    Args:
        mean: in any unit.
        parts: of its variance, in that unit squared, with the degrees of freedom that each was estimated with.
    """
    variance = sum(part for part, _ in parts)
    if variance == 0:  # nothing varies
        return 0.0, float(mean == 0)
    error = variance**0.5

    def excess(log_p: float, t: float = 0.0) -> float:
        quantiles = [-float(scipy.special.stdtrit(freedom, math.exp(log_p) / 2)) for _, freedom in parts]
        return sum(part * each for (part, _), each in zip(parts, quantiles, strict=True)) / variance - t

    half, t, least = excess(math.log(LEVEL)) * error, abs(mean) / error, math.log(SMALLEST)
    if excess(least, t) <= 0:
        return half, SMALLEST
    return half, math.exp(float(scipy.optimize.brentq(excess, least, 0.0, args=(t,))))


def _rank_p(differences: Array) -> float | None:
    if len(differences) < RANKED:
        return None
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)


def common(first: Sample, second: Sample, right: Marks | None = None, other: Marks | None = None) -> Paired | None:
    """The difference over the seeds that both have; None where they share none.

    Args:
        first: scores by seed; greater is better.
        second: likewise.
        right: what single test images add to `first`, by seed.
        other: likewise of `second`.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    marks = None
    if right is not None and other is not None and all(seed in right and seed in other for seed in seeds):
        pairs = [(right[seed], other[seed]) for seed in seeds]
        if len({each.shape for pair in pairs for each in pair}) == 1:
            marks = np.stack([one - another for one, another in pairs])
    return paired([first[seed] for seed in seeds], [second[seed] for seed in seeds], marks)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: name -> adjusted p."""
    adjusted: dict[str, float] = {}
    greatest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        greatest = max(greatest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = greatest
    return adjusted


def hypervolume(points: Sequence[tuple[float, float]], floor: float, ceiling: float = 100.0) -> float:
    """Area that points of (share of the MACs, value) dominate, in percent of what the ceiling for nothing would.

    Args:
        points: shares in [0, 1] of the dense network's MACs, and what networks are worth; greater is better.
        floor: what needs no network, such as the top-1 of one class for all images.
        ceiling: what a perfect network is worth.
    """
    area, best, at = 0.0, floor, 0.0
    for share, value in sorted(points):
        area += (share - at) * (best - floor)
        best, at = max(best, value), share
    return 100 * (area + (1 - at) * (best - floor)) / (ceiling - floor)


@dataclass(frozen=True)
class Answer:
    """What the numbers say, under one budget, of the methods that are judged.

    Attributes:
        budget: in words, such as ``15 % of the MACs``.
        finding: of the leader; ``missing`` where no judged method can be paired with the baseline.
        leader: the method that the finding is about: of those with the best finding, the one of greatest mean.
        differences: to the baseline, of every method that can be paired with it.
        p_values: of the judged methods, corrected for their number.
        findings: of every method that can be paired; judged ones by their corrected p.
    """

    budget: str
    finding: Finding | Literal["missing"]
    leader: str = ""
    differences: Mapping[str, Paired] = field(default_factory=dict)
    p_values: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, Finding] = field(default_factory=dict)


def answer(
    budget: str,
    tops: Mapping[str, Sample],
    judged: Sequence[str],
    baseline: str,
    marks: Mapping[str, Marks] | None = None,
) -> Answer:
    """Judges methods under one budget.

    Args:
        budget: in words.
        tops: method -> seed -> score on test data after fine-tuning; greater is better; missing cells are left out.
        judged: the methods that the answer is about.
        baseline: the method that they are measured by.
        marks: method -> seed -> what single test images add, as of `common`, where that is known.
    """
    known = marks or {}
    beside = {
        name: common(sample, tops.get(baseline, {}), known.get(name), known.get(baseline))
        for name, sample in tops.items()
        if name != baseline
    }
    differences = {name: found for name, found in beside.items() if found is not None}
    p_values = holm({name: differences[name].p for name in judged if name in differences})
    findings = {name: found.finding(p_values.get(name)) for name, found in differences.items()}
    if not p_values:
        return Answer(budget, "missing", differences=differences, findings=findings)
    ranks = get_args(Finding)
    order = {found: ranks.index(found) for found in ranks} | {"worse": len(ranks), "identical": 1.5}
    leader = min(p_values, key=lambda name: (order[findings[name]], -differences[name].mean))
    return Answer(budget, findings[leader], leader, differences, p_values, findings)


def verdict(
    answers: Sequence[Answer],
    baseline: str,
    metric: Metric,
    score: str | None = None,
    subject: Literal["search", "method"] = "search",
) -> str:
    """Whether the search, or any other method, is worth it, in a sentence or two.

    Args:
        answers: one per budget.
        baseline: the method that the judged ones were measured by.
        metric: what networks were measured by.
        score: what it is a score of, such as ``test top-1 after fine-tuning``; by default that.
        subject: what is judged.
    """
    kinds: dict[str, list[Answer]] = {}
    for kind in ("better", "not distinguishable", "identical", "worse", "too few seeds", "missing"):
        if own := [each for each in answers if each.finding == kind]:
            kinds[kind] = own
    score = score or f"test {metric.title} after fine-tuning"
    said = [_sentence(kind, own, baseline, metric, score, subject) for kind, own in kinds.items()]
    if not said:
        return "Nothing was compared."
    first, *others = said
    kind, own = next(iter(kinds.items()))
    second = "; ".join(others) if others else _more(kind, own, baseline, subject)
    return " ".join(f"{_capital(each)}." for each in (first, second) if each)


def _sentence(kind: str, answers: Sequence[Answer], baseline: str, metric: Metric, score: str, subject: str) -> str:
    where, searched = _listed([each.budget for each in answers]), subject == "search"
    if kind == "missing":
        return f"nothing can be said at {where}: no seed has both {baseline} and a {subject} finished"
    how = "; ".join(_difference(each, metric) for each in answers)
    after = metric.differences(score)
    if kind == "better":
        worth_it = "the search is worth it" if searched else "another method is better"
        return f"{worth_it} at {where}: against {baseline}, in {after}, {how}"
    if kind == "worse":
        worthless = "the search is not worth it" if searched else "no other method is better"
        return f"{worthless} at {where}, where even the best is behind {baseline}: {how} {after}"
    if kind == "identical":
        found = "the search found nothing better" if searched else "no other method is better"
        return f"at {where} {found} than {baseline}: the same {metric.title} with every seed"
    if kind == "not distinguishable":
        few = [each.leader for each in answers if each.differences[each.leader].hangs_on_images]
        why = f"; the seeds of {_listed(few)} agree, but the test examples are too few to tell" if few else ""
        best = "the search" if searched else "the best other method"
        return f"at {where} {best} and {baseline} are not distinguishable: in {after}, {how}{why}"
    return f"too few seeds to tell at {where}, where {FEWEST} pairs are the least: {how} {after}"


def _difference(answer: Answer, metric: Metric) -> str:
    found = answer.differences[answer.leader]
    seeds = f"{found.seeds} paired seed" + ("s" if found.seeds > 1 else "")
    if found.seeds < FEWEST:
        return f"{answer.leader} {metric.change(found.mean)} ({seeds})"
    if found.constant:
        return f"{answer.leader} {metric.change(found.mean)} (the same with each of {seeds}, which tells no chance)"
    interval = f"95 % interval {metric.interval(found.low, found.high)}, {seeds}"
    return f"{answer.leader} {metric.change(found.mean)} ({interval}, p = {answer.p_values[answer.leader]:.2g})"


def _more(kind: str, answers: Sequence[Answer], baseline: str, subject: str) -> str:
    """What is worth saying where one sentence holds for all budgets."""
    if kind == "missing":
        return "the same command goes on with the cells that are missing"
    if kind == "too few seeds":
        return "set compare.seeds to 5 or more: what is finished is kept"
    (last,) = answers[-1:]
    others = [name for name in last.p_values if name != last.leader]
    if others:
        by: dict[str, list[str]] = {}
        for name in others:
            by.setdefault(last.findings[name], []).append(name)
        parts = [
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {_words(kind)}" for kind, names in by.items()
        ]
        plural = "searches" if subject == "search" else "methods"
        return f"of the other {plural}, {', and '.join(parts)}" + (f" at {last.budget}" if len(answers) > 1 else "")
    if kind != "identical" or subject != "search":
        return ""
    return f"of what it found, nothing was better than {baseline} on held-out data"


def _words(finding: str) -> str:
    return {"identical": "level with it", "too few seeds": "short of seeds"}.get(finding, finding)


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
