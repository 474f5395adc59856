"""The methods that are compared: how each chooses widths under a budget, and what that costs.

Every method knows the same networks, images and proxy, and cuts from the rungs that are open under a budget: one,
chosen by fine-tuning greedy and uniform pruning of each, or all of them where strengths are searched. Those that
search have so many evaluations; the others judge one candidate per rung; FastNAS judges widths of all groups.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import optuna
from torch import Tensor

from espalier.errors import EspalierError, StorageError, StudyMismatch
from espalier.persistence import record_from
from espalier.pruning.allocation import greedy
from espalier.pruning.costs import Floats
from espalier.pruning.criteria import CRITERIA
from espalier.pruning.energy import Normalization, normalize
from espalier.search.cluster.in_process import search_in_process
from espalier.search.cluster.jobs import InProcess, device_here
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.multi_fidelity import order
from espalier.search.progress.reporter import Silent
from espalier.search.samplers import SAMPLERS, begin
from espalier.search.samplers.agents import PRETRAINED
from espalier.search.spaces.candidate import Candidate, Measure, Score
from espalier.search.spaces.space import Space
from espalier.search.study.heartbeat import Presence
from espalier.search.study.ledger import MAX_FAILURES, Ledger
from espalier.search.study.run_folder import settle
from espalier.search.study.storage import create_study, find_study, open_storage
from espalier.search.training.finalists import distinct, rise

ENERGY = "search.criterion"
"""The criterion that the search space ranks by, whatever the config says it is."""
LEAST_RATIO = 0.1
"""Of the widths that a random policy draws."""
MOST_WIDTHS = 16
"""Per group that FastNAS judges; those in between are interpolated."""


@dataclass(frozen=True)
class Choice:
    """What a method chose.

    Attributes:
        candidate: rung and widths.
        criterion: that ranks channels inside their group, `ENERGY` or a name in `CRITERIA`.
        score: by the search's own proxy on the scoring images.
        evaluations: candidates scored.
        seconds: of the processor, that choosing took.
        history: value of each trial of a search, in order; the greater the better.
        importance: parameter of a search -> how far it decides what the best trials are, summing to 1.
    """

    candidate: Candidate
    criterion: str
    score: Score
    evaluations: int
    seconds: float
    history: tuple[float, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self) | {"candidate": self.candidate.key, "score": self.score.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        given = dict(content)
        given["candidate"] = Candidate.from_key(given["candidate"])
        given["score"] = Score.from_json(given["score"])
        return record_from(cls, given | {"history": tuple(given["history"])})


@dataclass(frozen=True)
class Material:
    """What all methods work with; sent to every worker once.

    Attributes:
        spec: networks, and the images that candidates are scored on.
        unseen: likewise, with held-out images that no search scores on.
        spaces: name of a budget -> what is searched under it.
        baselines: name of a budget -> the greedy pruning that is best under it once fine-tuned.
        worths: criterion -> what channels are worth, (n_channels,) per rung; or why it does not apply here.
        trials: evaluations of a search.
        measure: of a score, that is compared.
        proxies: by which the best of a search are judged again on the unseen images.
        share: of the candidates of each rung of proxies, the most that rise.
        storage: Optuna URL where searches are kept, password and all: workers open it.
        study: what the names of their studies begin with.
        out: the run folder.
        configs: name of a budget -> the config, under that budget, as a study keeps it.
        attributes: of the studies, beside the config.
        max_failures: candidates that may fail in one search.
        knowledge: what a trained agent knows, for the agents that can begin with it.
    """

    spec: EvaluationSpec
    unseen: EvaluationSpec
    spaces: Mapping[str, Space]
    baselines: Mapping[str, Candidate]
    worths: Mapping[str, Sequence[Floats] | str]
    trials: int
    measure: Measure
    proxies: Sequence[str]
    share: float
    storage: str = field(repr=False)  # may hold a password
    study: str
    out: Path
    configs: Mapping[str, dict[str, Any]]
    attributes: Mapping[str, Any]
    max_failures: int = MAX_FAILURES
    knowledge: Mapping[str, Tensor] | None = None

    def ranked_by(self, criterion: str) -> EvaluationSpec:
        """The spec whose candidates keep the channels that a criterion ranks first."""
        if criterion == ENERGY:
            return self.spec
        return replace(self.spec, ranks=tuple(self.spec.graph.ranks(worth) for worth in self.worth(criterion)))

    def worth(self, criterion: str) -> Sequence[Floats]:
        """What channels are worth by a criterion, (n_channels,) per rung.

        Raises:
            EspalierError: it does not apply to this network.
        """
        found = self.worths[criterion]
        if isinstance(found, str):
            raise EspalierError(found)
        return found

    def best(self, candidates: Sequence[Candidate], criterion: str = ENERGY, spent: int = 0) -> Choice:
        """The candidate that scores best, the first among equals."""
        evaluator = Evaluator(self.ranked_by(criterion), device_here())
        scores = {candidate: evaluator(candidate) for candidate in dict.fromkeys(candidates)}
        values = {candidate: score.value(self.measure) for candidate, score in scores.items()}
        chosen = max(values, key=lambda candidate: (not math.isnan(values[candidate]), values[candidate]))
        return Choice(chosen, criterion, scores[chosen], spent + len(scores), 0.0)


class Method(ABC):
    """A way to choose widths."""

    words: str
    """What it does, for people."""
    searches = False
    """Whether it spends the evaluations of a search."""
    seeded = False
    """Whether its choice depends on the seed; otherwise one choice serves all seeds."""
    criterion: str = ENERGY
    """By which channels are ranked inside their groups."""

    @abstractmethod
    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Chooses under one of the material's budgets."""


class Greedy(Method):
    """Greedy global pruning as a search knows it: by energy, raw and normalised where it leaves that open."""

    words = (
        "one ranking of all channels by energy, raw or normalised by the group's mean, whichever is better on "
        "held-out images once fine-tuned"
    )

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """The baseline that a search has, too."""
        return material.best([material.baselines[budget]])


class Ranked(Method):
    """Greedy global pruning by one criterion, made comparable across groups in one way."""

    def __init__(self, criterion: str, normalization: Normalization) -> None:
        self.criterion, self._normalization = criterion, normalization
        how = "as it is" if normalization == "raw" else f"normalised: {normalization}"
        self.words = f"one ranking of all channels by {criterion}, {how}"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """One candidate per rung that is open."""
        space = material.spaces[budget]
        candidates = []
        worths = material.worth(self.criterion)
        for rung in space.rungs:
            scores = normalize(worths[rung], space.graph, self._normalization)
            candidates.append(_filled(space, rung, scores))
        return material.best(candidates, self.criterion)


class Uniform(Method):
    """The same share of every group."""

    words = "the same share of every group, the most energetic channels of each"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """One candidate per rung that is open."""
        space = material.spaces[budget]
        return material.best(space.uniform_candidates())


class RandomPolicy(Method):
    """One random policy: the control of those that do not search."""

    words = "one draw: shares of the groups at random, scaled to the budget"
    seeded = True

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """The same shares on every rung that is open."""
        space = material.spaces[budget]
        shares = np.random.default_rng([seed, 0]).uniform(LEAST_RATIO, 1.0, len(space.graph.groups))
        return material.best(
            [_filled(space, rung, shares[space.graph.group_of] * space.evenly(rung)) for rung in space.rungs]
        )


class FastNas(Method):
    """Sensitivity of every group alone, and one threshold on the damage for all, as in NVIDIA's Model Optimizer.

    A group is made narrower with all others whole, and its damage made monotone. Ranking a channel by the damage of
    the width that lacks it, globally, is then bisection of the worst damage, and fills the budget.
    """

    words = "every group narrowed alone, then one threshold on the damage for all (FastNAS)"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Judges some widths of every group on every rung that is open, interpolates, and fills the budget."""
        space, spec = material.spaces[budget], material.spec
        evaluator = Evaluator(spec, device_here())
        each = material.trials // (len(space.rungs) * max(1, len(space.free)))
        candidates, spent = [], 0
        for rung in space.rungs:
            whole = evaluator(Candidate(rung, tuple(space.graph.sizes.tolist()))).value(material.measure)
            damages = np.zeros(space.graph.n_channels)
            spent += 1
            for group in space.free.tolist():
                size = int(space.graph.sizes[group])
                widths = _spread(int(space.floor[group]), size - 1, min(max(2, each), MOST_WIDTHS))
                found = []
                for width in widths:
                    kept = space.graph.sizes.copy()
                    kept[group] = width
                    found.append(whole - evaluator(Candidate(rung, tuple(kept.tolist()))).value(material.measure))
                spent += len(widths)
                monotone = np.maximum.accumulate(np.maximum(found, 0.0)[::-1])[::-1]
                inside = space.graph.group_of == group
                damages[inside] = np.interp(spec.ranks[rung][inside], [*widths, size], [*monotone, 0.0])
            candidates.append(_filled(space, rung, damages))
        return material.best(candidates, spent=spent)


class Search(Method):
    """A sampler's search, kept as a study of its own; its best on unseen images is what it chose."""

    searches = seeded = True

    def __init__(self, sampler: str) -> None:
        self._sampler = sampler
        self.words = f"search by the sampler {sampler}, which begins with greedy pruning"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Searches from wherever the study stands."""
        space = material.spaces[budget]
        study = _study(material, f"{material.study}/{budget}/{self._sampler}/seed{seed}", budget, self._sampler)
        sampler, first = begin(self._sampler, space, seed, knowledge=material.knowledge)
        ledger = Ledger(
            study,
            space,
            sampler,
            measure=material.measure,
            target=material.trials,
            max_failures=material.max_failures,
        )
        before = sum(record.score.seconds for record in ledger.records())
        with Presence(study, Silent()) as reporter:
            with ledger, reporter.meter("search", material.trials, "candidates") as meter:
                ledger.enqueue(first)
                search_in_process(ledger, Evaluator(material.spec, device_here()), meter)
            records = ledger.records()
            best = distinct(records)
            known = {record.candidate for record in best}
            rises = rise(
                study,
                best,
                [candidate for candidate in space.greedy_candidates() if candidate in known],
                material.unseen,
                material.proxies,
                measure=material.measure,
                share=material.share,
                wanted=1,
                workers=InProcess(),
                parts=1,
                reporter=reporter,
            )
        chosen = order([{record.candidate: record.value for record in best}, *(risen.values for risen in rises)])[0]
        score = next(record.score for record in best if record.candidate == chosen)
        history = tuple(record.value for record in records)
        return Choice(chosen, ENERGY, score, len(records), before, history, _importance(study))


METHODS: dict[str, Method] = {
    "greedy": Greedy(),
    "uniform": Uniform(),
    "random_policy": RandomPolicy(),
    "fastnas": FastNas(),
    **{
        f"{criterion}_{how}": Ranked(criterion, how)
        for criterion in CRITERIA
        if criterion != "random"
        for how in get_args(Normalization)
    },
    **{name: Search(name) for name in SAMPLERS},
}
"""Name in a config -> method."""

SCRATCH, DENSE = "scratch", "dense"
CONTROLS = {
    SCRATCH: "the widths of the first search that is named, from new weights, for as many epochs as those had seen "
    "(Liu et al., ICLR 2019, arXiv 1810.05270)",
    DENSE: "the network before regularisation and pruning, not fine-tuned",
}
"""Name in a config -> what it is: networks to compare with, for which nothing has to be chosen."""


def choose(material: Material, job: tuple[str, str, int]) -> Choice | str:
    """What a method chooses under a budget with a seed, or why it failed; a job for `Workers`."""
    name, budget, seed = job
    start = time.process_time()
    try:
        found = METHODS[name].choose(material, budget, seed)
    except (StorageError, StudyMismatch):
        raise
    except EspalierError as error:  # one method's failure is not the others'
        return str(error)
    return replace(found, seconds=found.seconds + time.process_time() - start)


def _filled(space: Space, rung: int, scores: Floats) -> Candidate:
    widths = greedy(space.graph, scores, space.budget, space.floor, space.round_to)
    return Candidate(rung, tuple(widths.tolist()))


def _spread(low: int, high: int, count: int) -> list[int]:
    """Whole widths from low to high, evenly by ratio."""
    return sorted({round(width) for width in np.geomspace(max(low, 1), max(high, 1), count).tolist()})


def _study(material: Material, name: str, budget: str, sampler: str) -> optuna.Study:
    storage = open_storage(material.storage, create=False)
    found = find_study(storage, name, material.storage)
    if found is not None:
        return found
    config = material.configs[budget]
    section = config["search"] | {"sampler": sampler, "trials": material.trials}
    if sampler not in PRETRAINED:
        section |= {"agent": section["agent"] | {"pretrained": None}}
    checked = parse_config(config | {"search": section}, f"the config of study {name!r}")
    made = create_study(storage, name, {**material.attributes, "config": checked.model_dump(mode="json")})
    settle(made, checked, material.out)
    return made


def _importance(study: optuna.Study) -> dict[str, float]:
    """By PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255); none where there are too few trials to tell."""
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (RuntimeError, ValueError):
        return {}
    return {name: float(share) for name, share in found.items()}
