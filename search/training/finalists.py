"""From the record of a search to its finalists: dearer proxies on unseen images, and widths that differ."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from espalier.pruning.graph.costs import Ints
from espalier.search.cluster.jobs import Workers
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import score_all
from espalier.search.evaluation.multi_fidelity import Promotion, Values, eligible, order, promote
from espalier.search.progress.reporter import Meter, Reporter
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.metric import Metric
from espalier.search.study.keys import PREFIX
from espalier.search.study.ledger import Record
from espalier.search.study.storage import once

APART = 0.02
"""Share of a group's channels, mean over groups, by which finalists differ where the search found such."""


@dataclass(frozen=True)
class Finals:
    """Of the record of a search, what is fine-tuned, and how it rose.

    Attributes:
        greedy: trials of greedy pruning.
        finalists: of the best candidates that lie apart, the best first.
        rises: a rise per proxy.
        anew: whether they are narrower than those that the search scored.
    """

    greedy: Sequence[Record]
    finalists: Sequence[Record]
    rises: Sequence[Promotion]
    anew: bool = False


@dataclass(frozen=True)
class Rejudging:
    """Judges the best of a search again, on examples that it has not scored on.

    Scores are kept in the study: what was judged before it was interrupted is not judged again.

    Attributes:
        study: where scores are kept.
        spec: with the unseen examples.
        proxies: by which it is judged, from the cheapest.
        measure: that is compared.
        share: of the candidates of each proxy, the most that rise to the next.
        workers: where candidates are judged.
        parts: into how many jobs a block is cut.
        reporter: told the progress.
    """

    study: optuna.Study
    spec: EvaluationSpec
    proxies: Sequence[str]
    measure: Metric
    share: float
    workers: Workers
    parts: int
    reporter: Reporter

    def finals(self, records: Sequence[Record], greedy: Iterable[Candidate], wanted: int) -> Finals:
        """The best of a search.

        Args:
            records: finished trials, one per candidate, the best first.
            greedy: greedy prunings; those that the search has scored are judged again in any case.
            wanted: finalists, at most; 0 for the best one by the last proxy.
        """
        known = set(greedy)
        tried = [record for record in records if record.candidate in known]
        always, enough = [record.candidate for record in tried], max(wanted, len(tried)) if wanted else 1
        rises = self.rise(records, always, enough)
        by_candidate = {record.candidate: record for record in records}
        ranked = order([{record.candidate: record.value for record in records}, *(risen.values for risen in rises)])
        best = diverse(ranked, self.spec.graph.sizes, wanted or 1)
        return Finals(tried, [by_candidate[candidate] for candidate in best], rises)

    def rise(self, records: Sequence[Record], always: Sequence[Candidate], wanted: int) -> list[Promotion]:
        """Lets the best rise to one proxy after another.

        Args:
            records: finished trials, one per candidate.
            always: candidates that are judged whatever the search thinks of them.
            wanted: how many will be chosen in the end.

        Returns:
            A rise per proxy.
        """
        below: Values = {record.candidate: record.value for record in records}
        rises: list[Promotion] = []
        for proxy in self.proxies:
            most = len(eligible(below, self.share, wanted, always))
            with self.reporter.meter(f"again by {proxy}", most, "candidates") as meter:
                judge = _Judge(self, proxy, meter)
                risen = promote(below, judge, proxy=proxy, share=self.share, wanted=wanted, always=always)
            ended = "" if len(risen.values) == most else ", as no other is likely to be among the best"
            known = math.isfinite(risen.agreement)
            agreement = f"; rank correlation with the scores before {risen.agreement:+.2f}" if known else ""
            self.reporter.say(f"{proxy}: {len(risen.values)} of {most} judged again{ended}{agreement}")
            rises.append(risen)
            below = risen.values
        return rises


class _Judge:
    """Values candidates by one proxy; scores are kept in the study."""

    def __init__(self, rejudging: Rejudging, proxy: str, meter: Meter) -> None:
        self._of, self._proxy, self._meter = rejudging, proxy, meter
        self._tag, self._done = _tag(rejudging.spec), 0

    def __call__(self, block: Sequence[Candidate]) -> Values:
        study = self._of.study
        known = study.user_attrs
        scores = {c: Score.from_json(known[self._key(c)]) for c in block if self._key(c) in known}
        missing = [candidate for candidate in block if candidate not in scores]
        size = max(1, math.ceil(len(missing) / self._of.parts))
        jobs = [[(self._proxy, c) for c in missing[at : at + size]] for at in range(0, len(missing), size)]
        for job, given in self._of.workers.map(score_all, self._of.spec, jobs):
            for (_, candidate), score in zip(job, given, strict=True):
                name = self._key(candidate).removeprefix(PREFIX)
                scores[candidate] = Score.from_json(once(study, name, score.to_json))
        self._done += len(block)
        self._meter.update(self._done)
        values = {candidate: scores[candidate].value(self._of.measure) for candidate in block}
        return {candidate: -math.inf if math.isnan(value) else value for candidate, value in values.items()}

    def _key(self, candidate: Candidate) -> str:
        name = hashlib.sha256(candidate.key.encode()).hexdigest()[:16]
        return f"{PREFIX}promoted:{self._proxy}:{self._tag}:{name}"


def _tag(spec: EvaluationSpec) -> str:
    """Names what a score depends on beside the candidate."""
    state = hashlib.sha256()
    for part in spec.scoring.key(spec.execution):
        state.update(part)
    return state.hexdigest()[:8]


def distinct(records: Sequence[Record]) -> list[Record]:
    """By falling value, the first trial of each candidate only."""
    ranked = sorted(records, key=lambda record: (-record.value, record.number))
    found: dict[str, Record] = {}
    for record in ranked:
        found.setdefault(record.candidate.key, record)
    return list(found.values())


def diverse(candidates: Sequence[Candidate], sizes: Ints, wanted: int) -> list[Candidate]:
    """The best candidates that lie apart; neighbours only where there are not enough others.

    Args:
        candidates: from the best to the worst.
        sizes: (G,) widths of the dense network.
        wanted: how many, at most.
    """
    chosen: list[Candidate] = []
    for candidate in candidates:
        if len(chosen) < wanted and all(_distance(candidate, other, sizes) >= APART for other in chosen):
            chosen.append(candidate)
    neighbours = [candidate for candidate in candidates if candidate not in chosen]
    return (chosen + neighbours)[:wanted]


def _distance(one: Candidate, other: Candidate, sizes: Ints) -> float:
    return float((np.abs(np.array(one.widths) - np.array(other.widths)) / sizes).mean())
