"""A search by a sampler, as a method."""

from __future__ import annotations

import optuna

from espalier.search.cluster.in_process import search_in_process
from espalier.search.cluster.jobs import InProcess
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.methods.method import ENERGY, Choice, Material, Method
from espalier.search.progress.reporter import Silent
from espalier.search.samplers import begin
from espalier.search.samplers.agents import PRETRAINED
from espalier.search.study.active_runs import Heartbeat
from espalier.search.study.ledger import Ledger
from espalier.search.study.run_folder import settle
from espalier.search.study.storage import create_study, find_study, open_storage
from espalier.search.study.storage_retry import with_retries
from espalier.search.training.finalists import Rejudging, distinct


class Search(Method):
    """A sampler's search, kept as a study of its own; fine-tuning chooses among its best on unseen images."""

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
        with Heartbeat(study, Silent()) as reporter:
            with ledger, reporter.meter("search", material.trials, "candidates") as meter:
                ledger.enqueue(first)
                search_in_process(ledger, Evaluator(material.spec), meter)
            records = ledger.records()
            best = distinct(records)
            again = Rejudging(
                study,
                material.unseen,
                material.proxies,
                measure=material.measure,
                share=material.share,
                workers=InProcess(),
                parts=1,
                reporter=reporter,
            )
            judged = again.finals(best, space.greedy_candidates(), material.wanted)
        scores = {record.candidate: record.score for record in best}
        own = [record.candidate for record in judged.finalists]
        finalists = [(c, scores[c]) for c in dict.fromkeys((*own, material.baselines[budget])) if c in scores]
        (chosen, score), history = finalists[0], tuple(record.value for record in records)
        return Choice(
            chosen,
            ENERGY,
            score,
            len(records),
            before,
            history,
            _importance(study),
            finalists=tuple(finalists) if material.wanted and len(finalists) > 1 else (),
        )


def _study(material: Material, name: str, budget: str, sampler: str) -> optuna.Study:
    storage = with_retries(open_storage(material.storage, create=False))
    found = find_study(storage, name, material.storage)
    if found is not None:
        return found
    config = material.configs[budget]
    section = config["search"] | {"sampler": sampler, "trials": material.trials}
    if sampler not in PRETRAINED:
        section |= {"agent": section["agent"] | {"pretrained": None}}
    made = create_study(storage, name, {**material.attributes, "config": config | {"search": section}})
    settle(made, material.out, root=config["data"]["root"], weights=config["model"]["weights"])
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
