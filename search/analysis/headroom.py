"""What a search could win over greedy pruning, before it is run: `espalier headroom`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from espalier.errors import ConfigError, EspalierError
from espalier.search.analysis.kept_file import KeptFile
from espalier.search.cluster.jobs import Share
from espalier.search.cluster.process_settings import computing
from espalier.search.cluster.ray_cluster import join
from espalier.search.config.loading import Config
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Reporter
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare
from espalier.search.run.share_of_headroom import FILE, what_it_depends_on
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.sampling import draw_policies
from espalier.search.statistics.headroom import Headroom, headroom
from espalier.search.statistics.seeds import selection_seeds
from espalier.search.study.run_folder import make_folder
from espalier.search.training.contest import best_greedy
from espalier.search.training.finetune import Finetuned

AGAIN = 3
"""Policies, the best ones, that are fine-tuned with other seeds too."""
FEWEST = 8
"""Policies."""


@dataclass(frozen=True)
class HeadroomStudy:
    """What was found.

    Attributes:
        metric: what networks are worth, on held-out examples.
        headroom: by it; greater is better.
        policies: that were fine-tuned.
        seeds: with which the best of them, and greedy pruning, were fine-tuned again.
        greedy: what greedy pruning is worth, mean.
        runs: fine-tunings in all.
        seconds: of one, mean.
        budget: in words.
    """

    metric: Metric
    headroom: Headroom
    policies: int
    seeds: int
    greedy: float
    runs: int
    seconds: float
    budget: str

    def words(self) -> list[str]:
        """What it says and what to do, a paragraph each."""
        found, metric = self.headroom, self.metric
        unit = f" {metric.unit_of_differences}".rstrip()
        chance, spread, least = (metric.text(each) for each in (found.chance, found.spread, found.noticed))
        said = [
            f"Greedy pruning: held-out {metric.words(self.greedy)} after fine-tuning, mean of {self.seeds} seeds. "
            f"A seed moves it by {chance}{unit} (standard deviation), and good policies differ by {spread}.",
            f"The best of {found.trials} policies would be {metric.gain(found.expected)} than greedy "
            f"(95 % interval: {metric.gain(found.low)} to {metric.gain(found.high)}). The best of the "
            f"{self.policies} that were tried is {metric.gain(found.found)} ({metric.gain(found.found_low)} to "
            f"{metric.gain(found.found_high)}).",
        ]
        settle = (
            "To be sure, try more policies (--policies) or more seeds: the final comparison tells "
            f"{least}{unit} from chance."
        )
        advice = {
            "greedy": "Greedy pruning is enough: what there is to win is less than what the final comparison tells "
            f"from chance, {least}{unit}. Another budget or strength, or longer fine-tuning, matters more.",
            "doubtful": "Greedy pruning is probably enough: the best policies are not expected to be better. "
            f"{settle}",
            "search": "A search is worth it.",
            "open": f"A search may be worth it. {settle}",
        }
        return [*said, advice[found.advice]]


@computing()
def study_headroom(
    config: Config, out: Path, reporter: Reporter, *, policies: int = 24, seeds: int = 2
) -> HeadroomStudy:
    """Fine-tunes policies near greedy pruning and far from it, and says what the best of many would win.

    Writes ``headroom.json``; searches and comparisons in that folder say what share of it they took. Rungs and
    fine-tuned networks that the folder holds are not made again.

    Args:
        config: checked settings; under its tightest budget.
        out: run folder.
        reporter: told the progress.
        policies: how many.
        seeds: with which the best ones, and greedy, are fine-tuned again.

    Raises:
        ConfigError: there are too few policies or seeds, or the task cannot train.
        EspalierError: of the kinds of `prepare`.
    """
    if policies < FEWEST or seeds < 2:
        raise ConfigError(f"headroom takes {FEWEST} policies and 2 seeds or more, got {policies} and {seeds}")
    prepared = prepare(config)
    if "training" not in prepared.task.offers or not config.finetune.epochs:
        raise ConfigError("headroom is of networks that are fine-tuned: this config has finetune.epochs of 0")
    make_folder(out)
    with ExitStack() as stack:
        section = config.cluster
        share = Share(section.cpus_per_worker, section.gpus_per_worker)
        workers = join(config.workers, stack, address=section.address, share=share, folder=out, say=reporter.say)
        experiment = Experiment(config, prepared, out, reporter, workers)
        reporter.say(
            f"headroom: beside the ladder and the choice of its strength, some {policies + seeds * (AGAIN + 1)} "
            f"fine-tunings of {config.finetune.epochs:g} epoch{'s' if config.finetune.epochs != 1 else ''}"
        )
        found = _fine_tuned(experiment, policies, seeds)
    metric, judged = prepared.task.metric, dict[Candidate, list[float]]()
    for run in found.again:
        judged.setdefault(run.candidate, []).append(metric.value(run.judged))
    if len(found.values) < FEWEST or any(len(judged.get(c, ())) < seeds for c in (*found.best, found.greedy)):
        raise EspalierError(
            "too many fine-tunings failed to tell; what is finished is kept, and the same command tries them again"
        )
    estimate = headroom(
        np.array([found.values[candidate] for candidate in found.drawn if candidate in found.values]),
        np.array([judged[candidate] for candidate in found.best]),
        np.array(judged[found.greedy]),
        trials=config.search.trials,
        seeds=config.finetune.seeds,
        seed=config.seed,
        bounds=metric.bounds,
    )
    study = HeadroomStudy(
        metric=metric,
        headroom=estimate,
        policies=len(found.drawn),
        seeds=seeds,
        greedy=float(np.mean([run.judged for run in found.again if run.candidate == found.greedy])),
        runs=len(found.once) + len(found.again),
        seconds=float(np.mean([run.seconds for run in (*found.once, *found.again)])),
        budget=str(prepared.budget),
    )
    values = {
        "widths": [candidate.key for candidate in found.drawn],
        "values": [found.values.get(candidate) for candidate in found.drawn],
        "made": what_it_depends_on(config, experiment.digests),
    }
    write_json(out / FILE, asdict(study) | values)
    return study


@dataclass(frozen=True)
class _FineTuned:
    """The runs of a study.

    Attributes:
        drawn: policies.
        greedy: greedy pruning.
        once: runs of these with the seed that chooses.
        values: of `once`, by the task's metric; greater is better.
        best: of the policies, by `values`.
        again: runs of `best` and `greedy` with other seeds.
    """

    drawn: Sequence[Candidate]
    greedy: Candidate
    once: Sequence[Finetuned]
    values: Mapping[Candidate, float]
    best: Sequence[Candidate]
    again: Sequence[Finetuned]


def _fine_tuned(experiment: Experiment, policies: int, seeds: int) -> _FineTuned:
    """Policies and greedy pruning with one seed, then the best of the policies, and greedy, with others."""
    config, budget, metric = experiment.config, experiment.prepared.budget, experiment.task.metric
    experiment.train_ladder()
    inputs = {"rungs": experiment.digests, "config": config.fingerprint()}
    kept = KeptFile(experiment.out / "headroom_kept.json", inputs)
    experiment.settle_execution(kept.once)
    space = experiment.choose_spaces([budget], kept.once)[budget]
    drawn = draw_policies(space, policies, config.seed)
    (choosing,), others = selection_seeds(config.seed), [config.seed + number for number in range(seeds)]
    finetuner = experiment.finetuner.titled("fine-tuning policies")
    greedy = best_greedy(finetuner, space.greedy_candidates(), config.finetune.halvings, choosing).winner
    once = finetuner.finished(list(dict.fromkeys((*drawn, greedy))), [choosing])
    values = {run.candidate: metric.value(run.judged) for run in once}
    best = sorted((c for c in drawn if c in values and c != greedy), key=values.__getitem__, reverse=True)[:AGAIN]
    again = finetuner.titled("fine-tuning the best again").finished([*best, greedy], others)
    return _FineTuned(drawn, greedy, once, values, best, again)
