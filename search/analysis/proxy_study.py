"""Which proxy tells what a candidate is worth after fine-tuning, and what does it cost?

Some policies of those that a search could propose are judged by every proxy and then fine-tuned, with a few seeds
each. The report says how well each proxy ranks them as fine-tuning does, how well one seed of fine-tuning ranks
them as another does (no proxy can be expected to do better), what each costs, and which ladder ranks best for a
tenth of the cost. Where strengths are searched, it says of each proxy how well it ranks policies of one strength,
and how often it is right about two of different ones.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats, Ints
from espalier.search.analysis.kept_file import KeptFile
from espalier.search.cluster.jobs import Share, Workers
from espalier.search.cluster.process_settings import computing
from espalier.search.cluster.ray_cluster import join
from espalier.search.config.loading import Config
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import score_all
from espalier.search.evaluation.multi_fidelity import agreement, order
from espalier.search.evaluation.proxies import PROXIES, Signal
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.sampling import draw_policies
from espalier.search.study.run_folder import make_folder
from espalier.search.tasks.task import missing

SHARES = (0.1, 0.2, 0.3, 0.5)
"""Shares of the candidates that a ladder may promote."""
AFFORDABLE = 0.1
"""Of a fine-tuning, what a candidate may cost on average."""
HALVES = 50
"""Random halves of the policies, on one of which a ladder is chosen, to be tried on the other."""


@dataclass(frozen=True)
class Rated:
    """How well one proxy ranks.

    Attributes:
        proxy: its name.
        measure: what was compared; any, for a signal.
        rho: Spearman's correlation with the mean score after fine-tuning.
        low: lower end of its 95 % interval over policies, by `spearman_interval`.
        high: upper end.
        seconds: of the processor per candidate, mean: unlike time on the clock, the same on a busy machine.
        within: Spearman's correlation among policies of one strength, mean over strengths by their policies; None
            where one strength is open or no correlation is defined.
        across: of the pairs of policies of different strengths, the share that it ranks as fine-tuning does;
            likewise.
    """

    proxy: str
    measure: str
    rho: float
    low: float
    high: float
    seconds: float
    within: float | None = None
    across: float | None = None


@dataclass(frozen=True)
class Recommended:
    """A ladder of proxies.

    Attributes:
        proxies: from the cheapest; one or two.
        share: of the candidates that rise to the second.
        measure: that is compared.
        rho: of the ladder's final order with the score after fine-tuning, on the policies it was chosen by.
        rho_elsewhere: the same on policies it was not chosen by: mean over random halves.
        seconds: per candidate, on average.
    """

    proxies: tuple[str, ...]
    share: float
    measure: str
    rho: float
    rho_elsewhere: float
    seconds: float

    def settings(self) -> dict[str, Any]:
        """The ladder as keys of a config's section `search`."""
        found: dict[str, Any] = {"proxy": self.proxies[0], "measure": self.measure}
        if len(self.proxies) > 1:
            found |= {"ladder": list(self.proxies[1:]), "promote": self.share}
        return found


@dataclass(frozen=True)
class ProxyStudy:
    """What was found.

    Attributes:
        policies: number of candidates.
        seeds: of fine-tuning, each.
        ceiling: Spearman's correlation between the scores of two seeds, mean over pairs.
        finetune_seconds: of one fine-tuning.
        spread: worst and best mean score after fine-tuning.
        metric: that scores are by.
        rated: every proxy and measure, the best first; those left out that score all policies alike.
        recommended: the ladder that ranks best for `AFFORDABLE` of a fine-tuning.
        alike: proxy -> those that score every policy as it does, as some do where there are no batch norms, and are
            not rated.
    """

    policies: int
    seeds: int
    ceiling: float
    finetune_seconds: float
    spread: tuple[float, float]
    metric: Metric
    rated: tuple[Rated, ...]
    recommended: Recommended
    alike: Mapping[str, Sequence[str]] = field(default_factory=dict)


@computing()
def study_proxies(
    config: Config, out: Path, reporter: Reporter | None = None, *, policies: int = 24, seeds: int = 2
) -> ProxyStudy:
    """Judges policies by every proxy, fine-tunes them and compares; writes ``proxy_study.json``.

    Rungs, fine-tuned networks and scores that the folder holds already are not made again.

    Args:
        config: checked settings; proxy, measure and ladder do not matter.
        out: run folder.
        reporter: told the progress.
        policies: how many.
        seeds: fine-tunings of each.

    Raises:
        EspalierError: of the kinds of `prepare`.
    """
    reporter = reporter or Silent()
    prepared = prepare(config)
    make_folder(out)
    with ExitStack() as stack:
        section = config.cluster
        share = Share(section.cpus_per_worker, section.gpus_per_worker)
        workers = join(config.workers, stack, address=section.address, share=share, folder=out, say=reporter.say)
        offered = [name for name, proxy in PROXIES.items() if not missing(prepared.task.offers, proxy.needs)]
        experiment = Experiment(config, prepared, out, reporter, workers, proxies=offered)
        experiment.train_ladder()
        inputs = {
            "rungs": experiment.digests,
            "config": config.fingerprint(),
            "finetune": config.finetune.model_dump(mode="json"),
        }
        kept = KeptFile(out / "proxy_scores.json", inputs)
        scores = _Scores(kept)
        experiment.settle_execution(kept.once)
        spec, budget = experiment.spec, prepared.budget
        names = [name for name in offered if spec.scoring.has_head or "labels" not in PROXIES[name].needs]
        space = experiment.choose_spaces([budget], kept.once)[budget]
        chosen = draw_policies(space, policies, config.seed)
        scores.fill(spec, names, chosen, workers, max(1, config.workers), reporter)
        runs = experiment.finetuner.finished(chosen, [config.seed + offset for offset in range(seeds)])
    metric = prepared.task.metric
    judged = [[metric.value(run.judged) for run in runs if run.candidate == candidate] for candidate in chosen]
    study = analyse(
        {name: [scores.of(name, candidate) for candidate in chosen] for name in names},
        np.array(judged),
        metric,
        list(prepared.task.measures.values()),
        statistics.mean(run.seconds for run in runs),
        config.seed,
        [candidate.rung for candidate in chosen],
    )
    written = asdict(study) | {"widths": [candidate.key for candidate in chosen], "top1": judged}
    write_json(out / "proxy_study.json", written)
    return study


class _Scores:
    """Scores by proxy and candidate, kept as they come."""

    def __init__(self, file: KeptFile) -> None:
        self._file, self._scores = file, file.part("scores")

    def of(self, proxy: str, candidate: Candidate) -> Score:
        return Score.from_json(self._scores[f"{proxy} {candidate.key}"])

    def fill(
        self,
        spec: EvaluationSpec,
        proxies: Sequence[str],
        candidates: Sequence[Candidate],
        workers: Workers,
        parts: int,
        reporter: Reporter,
    ) -> None:
        """Scores what is missing."""
        wanted = [(p, c) for p in proxies for c in candidates if f"{p} {c.key}" not in self._scores]
        size = max(1, math.ceil(len(wanted) / (8 * parts)))
        jobs = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        if not jobs:
            return
        with reporter.meter("proxies", len(wanted), "scores") as meter:
            done = 0
            for job, scores in workers.map(score_all, spec, jobs):
                for (proxy, candidate), score in zip(job, scores, strict=True):
                    self._scores[f"{proxy} {candidate.key}"] = score.to_json()
                self._file.write()
                done += len(job)
                meter.update(done)


def analyse(
    scores: Mapping[str, Sequence[Score]],
    finetuned: Floats,
    metric: Metric,
    measures: Sequence[Metric],
    finetune_seconds: float,
    seed: int,
    rungs: Sequence[int] | None = None,
) -> ProxyStudy:
    """Compares the scores of policies with what they are worth after fine-tuning.

    Args:
        scores: of every policy, by proxy.
        finetuned: (n_policies, n_seeds) what they are worth after fine-tuning; greater is better.
        metric: of these.
        measures: by which candidates can be compared.
        finetune_seconds: of one fine-tuning.
        seed: of the halves on which ladders are tried.
        rungs: of every policy; by default the same.
    """
    alike = _alike(scores)
    scores = {proxy: scores[proxy] for proxy in alike}
    rung_of = np.array([0] * len(finetuned) if rungs is None else rungs)
    generator = np.random.default_rng(seed)
    truth = finetuned.mean(1)
    pairs = list(itertools.combinations(range(finetuned.shape[1]), 2))
    ceiling = statistics.mean(agreement(finetuned[:, a], finetuned[:, b]) for a, b in pairs) if pairs else math.nan
    by_key = {measure.key: measure for measure in measures}
    values = {
        (proxy, key): np.array([score.value(by_key[key]) for score in scores[proxy]])
        for proxy in scores
        for key in list(by_key)[: 1 if isinstance(PROXIES[proxy], Signal) else None]
    }
    seconds = {proxy: statistics.mean(score.seconds for score in found) for proxy, found in scores.items()}
    rated = []
    for (proxy, measure), given in values.items():
        rho = agreement(given, truth)
        if math.isnan(rho):
            continue
        both = _by_strength(given, truth, rung_of) if len(set(rung_of)) > 1 else (None, None)
        rated.append(Rated(proxy, measure, rho, *spearman_interval(rho, len(truth)), seconds[proxy], *both))
    rated.sort(key=lambda each: -each.rho)
    recommended = _recommend(values, truth, seconds, AFFORDABLE * finetune_seconds, generator)
    return ProxyStudy(
        policies=len(truth),
        seeds=finetuned.shape[1],
        ceiling=ceiling,
        finetune_seconds=finetune_seconds,
        spread=(metric.value(float(truth.min())), metric.value(float(truth.max()))),
        metric=metric,
        rated=tuple(rated),
        recommended=recommended,
        alike={proxy: others for proxy, others in alike.items() if others},
    )


def _alike(scores: Mapping[str, Sequence[Score]]) -> dict[str, list[str]]:
    """Each proxy that differs from those before it -> the later ones that give every policy its score."""
    found: dict[str, list[str]] = {}
    said = {proxy: [replace(score, seconds=0.0).to_json() for score in own] for proxy, own in scores.items()}
    for proxy, own in said.items():
        first = next((other for other in found if said[other] == own), None)
        if first is None:
            found[proxy] = []
        else:
            found[first].append(proxy)
    return found


def spearman_interval(rho: float, count: int) -> tuple[float, float]:
    """The 95 % interval of Spearman's correlation, by Fisher's z.

    Its standard error is that of Bonett and Wright, Psychometrika 65(1), 2000, doi:10.1007/BF02294183:
    sqrt((1 + rho^2 / 2) / (n - 3)).

    Args:
        rho: correlation of n pairs.
        count: n; below 4 nothing is known.
    """
    if count < 4:
        return -1.0, 1.0
    nearly = 1 - 6 / (count * (count**2 - 1))  # an order that is the same to the last pair may be so by chance
    z = math.atanh(min(max(rho, -nearly), nearly))
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (count - 3))
    return math.tanh(z - half), math.tanh(z + half)


def _by_strength(given: Floats, truth: Floats, rung_of: Ints) -> tuple[float | None, float | None]:
    """`Rated.within` and `Rated.across`."""
    rungs, counts = np.unique(rung_of, return_counts=True)
    rhos = np.array([agreement(given[rung_of == rung], truth[rung_of == rung]) for rung in rungs])
    defined = np.isfinite(rhos)
    within = float(np.average(rhos[defined], weights=counts[defined])) if defined.any() else None
    one, other = np.triu_indices(len(truth), 1)
    pairs = (rung_of[one] != rung_of[other]) & (truth[one] != truth[other])
    signs = np.sign(given[one] - given[other]) * np.sign(truth[one] - truth[other])
    return within, float((signs[pairs] + 1).mean() / 2) if pairs.any() else None


_Key = tuple[str, str]
"""A proxy, and the key of a measure."""


def _recommend(
    values: Mapping[_Key, Floats],
    truth: Floats,
    seconds: Mapping[str, float],
    most: float,
    generator: np.random.Generator,
) -> Recommended:
    """The ladder of greatest correlation among those of at most `most` seconds, or the cheapest proxy there is."""
    ladders: list[tuple[tuple[str, ...], float, str]] = []
    for measure in dict.fromkeys(own for _, own in values):
        names = [proxy for proxy, own in values if own == measure]
        ladders += [((name,), 0.0, measure) for name in names]
        dearer = [(a, b) for a in names for b in names if seconds[a] < seconds[b]]
        ladders += [(pair, share, measure) for pair in dearer for share in SHARES]

    def cost(ladder: tuple[tuple[str, ...], float, str]) -> float:
        (first, *others), share, _ = ladder
        return seconds[first] + share * sum(seconds[name] for name in others)

    affordable = [ladder for ladder in ladders if cost(ladder) <= most] or [min(ladders, key=cost)]

    def rho(ladder: tuple[tuple[str, ...], float, str], chosen: Ints) -> float:
        names, share, measure = ladder
        rungs = [{number: float(values[names[0], measure][number]) for number in chosen.tolist()}]
        if len(names) > 1:
            best = sorted(rungs[0], key=lambda number: -rungs[0][number])[: math.ceil(share * len(chosen))]
            rungs.append({number: float(values[names[1], measure][number]) for number in best})
        ranked = order(rungs)
        found = agreement([-ranked.index(number) for number in chosen.tolist()], truth[chosen])
        return found if found == found else -1.0

    everyone = np.arange(len(truth))
    best = max(affordable, key=lambda ladder: (rho(ladder, everyone), -cost(ladder)))
    elsewhere = []
    for _ in range(HALVES):
        shuffled = generator.permutation(len(truth))
        here, there = np.sort(shuffled[: len(truth) // 2]), np.sort(shuffled[len(truth) // 2 :])
        elsewhere.append(rho(max(affordable, key=lambda ladder: rho(ladder, here)), there))
    return Recommended(best[0], best[1], best[2], rho(best, everyone), statistics.mean(elsewhere), cost(best))
