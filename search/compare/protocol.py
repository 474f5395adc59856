"""The protocol: every method gets the same networks, budget, evaluations, fine-tuning and seeds.

ShrinkBench (Blalock et al., MLSys 2020, arXiv 2003.03033) and "Rethinking the Value of Network Pruning" (Liu et
al., ICLR 2019, arXiv 1810.05270) say what to hold equal. All choices are made on images held out of the training
split; each network is read on the test split once, when it is finished. One ladder serves all, so seeds vary the
search and the fine-tuning, not the training of the dense network.

Each stage keeps what it has finished in the run folder, so that a comparison that was killed goes on, and a method,
a seed or a budget that is added later runs alone.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.errors import ConfigError, EspalierError, StudyMismatch
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.costs import Floats
from espalier.pruning.latency.measuring import IN_8_BITS
from espalier.pruning.runtimes.examples import DYNAMIC, repeated
from espalier.pruning.runtimes.runtime import Batch
from espalier.pruning.runtimes.runtime_table import runtime_named
from espalier.pruning.runtimes.timing import check_threads
from espalier.search.cluster.jobs import Share, Workers, check_sent
from espalier.search.cluster.process_settings import computing
from espalier.search.cluster.ray_cluster import join
from espalier.search.compare.cells import ASKED, Cell, Measured, Store
from espalier.search.compare.choosing import Choosing
from espalier.search.compare.comparison import Comparison
from espalier.search.compare.finishing import Finishing
from espalier.search.compare.settings import headline, settings_of
from espalier.search.config.budget_sections import REPLACES
from espalier.search.config.fields import GIVEN
from espalier.search.config.loading import Config, comparable
from espalier.search.config.search_sections import LatencyConfig
from espalier.search.evaluation.candidate_networks import numpy_state
from espalier.search.evaluation.importance import channel_scores, code_of_criterion, criterion_of
from espalier.search.files.json_files import write_json
from espalier.search.methods import (
    DENSE,
    ENERGY,
    SCRATCH,
    Material,
    methods_named,
)
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.run.experiment import Experiment
from espalier.search.run.final_evaluation import timed, versions
from espalier.search.run.latency_budget import Settled, device_of, settle_latency, with_latency
from espalier.search.run.prepare import Given, Prepared, check_dense_score, prepare
from espalier.search.run.search_run import default_storage
from espalier.search.run.share_of_headroom import known_headroom
from espalier.search.samplers.agents import knowledge_at
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space
from espalier.search.statistics.differences import FEWEST
from espalier.search.statistics.seeds import selection_seeds
from espalier.search.study.keys import COMPARISON, DENSE_SCORE, EXECUTION, LATENCY, STRENGTH
from espalier.search.study.run_folder import make_folder
from espalier.search.study.storage import absolute, open_storage
from espalier.search.tasks.code_digests import code_of, digest_of
from espalier.search.tasks.task import Stage
from espalier.search.training.contest import best_greedy

BUDGETS = tuple(REPLACES)
"""Keys of `budget` that a cell's name holds: others can be added later."""


BASELINE = "greedy:"
"""Of the plan, followed by a budget's key: the greedy pruning that fine-tuning prefers under it."""


@dataclass(frozen=True)
class Compared:
    """A comparison, and what pictures of it need.

    Attributes:
        comparison: the numbers.
        prepared: network, graph and images.
        energies: (n_channels,) per rung, by which the space ranks channels.
        folder: of the comparison.
    """

    comparison: Comparison
    prepared: Prepared
    energies: Sequence[Floats]
    folder: Path


@computing()
def compare(
    config: Config,
    *,
    name: str,
    out: Path,
    command: str,
    storage: str | None = None,
    address: str | None = None,
    reporter: Reporter | None = None,
    given: Given | None = None,
) -> Compared:
    """Compares methods, from wherever the run folder stands, and writes the numbers.

    Args:
        config: checked settings.
        name: of the comparison, and what the names of its studies begin with.
        out: run folder, as of a search; the comparison's own is ``compare`` in it.
        command: that does it again, for the record.
        storage: Optuna URL that the workers can reach; by default SQLite in `out`.
        address: a Ray cluster to join.
        reporter: told the progress.
        given: network and task, where the config does not name them.

    Raises:
        EspalierError: of the kinds of `prepare`, or StorageError, or StudyMismatch.
    """
    url = absolute(storage or default_storage(out))
    config = config.model_copy(update={"budget": config.budget.model_copy(update={"front": False})})
    with ExitStack() as stack:
        cluster, told = config.cluster, reporter or Silent()
        workers = join(
            config.workers,
            stack,
            address=address or cluster.address,
            share=Share(cluster.cpus_per_worker, cluster.gpus_per_worker),
            folder=out,
            say=told.say,
        )
        return _Run(config, name, out, command, url, told, given).go(workers)


class _Run:
    def __init__(
        self,
        config: Config,
        name: str,
        out: Path,
        command: str,
        url: str,
        reporter: Reporter,
        given: Given | None,
    ) -> None:
        self.config, self.name, self.out, self.command, self.url = config, name, out, command, url
        self.given = given
        self.reporter, self.seconds = reporter, dict[str, float]()
        self.failures: Mapping[str, str] = {}

    def go(self, workers: Workers) -> Compared:
        self.workers = workers
        with timed(self.seconds, "prepare"):
            self._prepare()
        self.asked = settings_of(
            self.config,
            self.prepared,
            name=self.name,
            seeds=self.seeds,
            scratch_epochs=self._scratch_epochs,
            by_proxy=self.by_proxy,
            command=self.command,
        )
        for line in (headline(self.asked, self.prepared), *self.prepared.notes):
            self.reporter.say(line)
        self._write_asked()
        with timed(self.seconds, "ladder"):
            self._train_ladder()
        with timed(self.seconds, "energies"):
            scores: dict[str, Sequence[Floats] | str] = {
                ENERGY: self.experiment.energies,
                **self._other_scores(),
            }
            self.experiment.settle_execution(self.store.once)
        with timed(self.seconds, "strength"):
            spaces = self.experiment.choose_spaces(self.budgets.values(), self.store.once)
            baselines = {b.key: self._baseline(b, space) for b, space in spaces.items()}
        self.material = self._material(scores, {b.key: space for b, space in spaces.items()}, baselines)
        cells = [
            Cell(budget, method, seed)
            for budget in self.budgets
            for seed in self.seeds
            for method in self.asked.methods
            if method != DENSE
        ]
        choosing = Choosing(
            self.experiment,
            self.material,
            self.methods,
            store=self.store,
            seeds=self.seeds,
            budgets=self.asked.budgets,
        )
        with timed(self.seconds, "choosing widths"):
            choices, failures = choosing([cell for cell in cells if self.store.measured(cell) is None])
        finishing = Finishing(
            self.experiment,
            self.material,
            store=self.store,
            seeds=self.seeds,
            scratch_epochs=self._scratch_epochs,
            latency=self.config.compare.latency,
            batches=self.config.compare.batches,
        )
        self.failures = failures | finishing(choices, self.seconds)
        with timed(self.seconds, "latency"):
            dense = finishing.dense()
        return self._compared(cells, dense)

    # -- before anything is chosen

    def _prepare(self) -> None:
        """Loads and checks everything, before anything is trained."""
        self.knowledge = knowledge_at(self.config.search.agent.pretrained)
        self.prepared = prepare(self.config, self.given, takes_latency=True)
        if self.given is not None and SCRATCH in self.config.compare.methods:
            raise ConfigError(f"{SCRATCH} trains new weights: it needs a network that a config names")
        if self.config.workers and (sent := self.prepared.task.parts_to_send()):
            check_sent(sent)
        self._check_runtimes()
        self.methods = methods_named(self.config.compare.methods)
        for name, method in self.methods.items():
            method.check()
            if method.own_network and self.config.budget.bits:
                raise ConfigError(f"{name} cuts a network of its own, and chooses no bits: omit budget.bits")
            method.check_on(self.prepared.task, self.prepared.graph)
        self.store = Store(self.out / "compare")
        self.seeds = [self.config.seed + offset for offset in range(self.config.compare.seeds)]
        self._agree()
        if self.config.budget.limits_latency:
            device = device_of(self.config.budget)
            decided = self.store.once(
                f"{LATENCY}:{device.runtime}:{device.batch}:{device.threads}",
                lambda: settle_latency(self.config, self.prepared, self.reporter).to_json(),
            )
            self.prepared = with_latency(self.config, self.prepared, Settled.from_json(decided))
        self.experiment = Experiment(self.config, self.prepared, self.out, self.reporter, self.workers)
        self.budgets = {budget.key: budget for budget in self.prepared.budgets}
        make_folder(self.out)
        open_storage(self.url, create=True)

    def _agree(self) -> None:
        """Holds what finished cells depend on: other methods, seeds and budgets may be asked for, nothing else."""
        config = self.config
        fingerprint = config.fingerprint()
        budgets = () if config.supernet.epochs else (*BUDGETS, "front")  # of which shared weights depend on all
        for key in (*(f"budget.{key}" for key in budgets), "search.sampler"):
            fingerprint.pop(key, None)
        fingerprint |= {f"finetune.{key}": value for key, value in config.finetune.model_dump(mode="json").items()}
        del fingerprint["finetune.seeds"]
        if not config.finetune.reconstruct:
            del fingerprint["finetune.reconstruct"]  # as where nobody knew of it
        fingerprint |= {f"search.{key}": getattr(config.search, key) for key in ("finalists", "promote")}
        fingerprint["search.ladder"] = list(config.search.ladder)
        fingerprint |= {"trials": self._trials, "latency_batch": config.compare.batches[0]}
        timed, usual = config.compare, LatencyConfig()
        if len(timed.batches) > 1:
            fingerprint["latency.batches"] = list(timed.batches)
        for key in ("runtimes", "threads"):
            if (value := getattr(timed.latency, key)) != getattr(usual, key):
                fingerprint[f"latency.{key}"] = list(value) if isinstance(value, tuple) else value
        fingerprint |= {
            "weights": self.prepared.origin,
            "graph": self.prepared.graph.digest,
            **self.prepared.task.fingerprint(),
        }
        if self.prepared.criterion is not None:
            fingerprint["search.criterion"] = f"{GIVEN} {digest_of(self.prepared.criterion.function)}"
        made = self.store.plan.get("fingerprint", fingerprint)
        self.by_proxy = "search.finalists" not in made
        if self.by_proxy:
            del fingerprint["search.finalists"]
            self.reporter.say(
                "this comparison was begun when the proxy alone chose what a search found, and goes on so; in "
                "another --out fine-tuning chooses among finalists, as in `espalier search`"
            )
        self.store.agree("fingerprint", comparable(fingerprint, made))
        if DENSE_SCORE in self.store.plan:
            self._check_dense_score()
        if code := code_of_criterion(config.search.criterion):
            self.store.agree("code of the criterion", {f"the code of {config.search.criterion}": code["criterion"]})
        own = [*self.methods, config.regularizer.name]
        for name in (each for each in own if ":" in each):  # other methods may be asked for later
            self.store.agree(f"code of {name}", {f"the code of {name}": code_of(name, "code of the user's own")})
        self._check_seeds()
        if SCRATCH in config.compare.methods:
            self.store.agree(
                "scratch",
                {
                    "compare.scratch_epochs": self._scratch_epochs,
                    "the search whose widths scratch takes": self._searches[0],
                },
            )

    def _check_dense_score(self) -> None:
        check_dense_score(self.prepared.task, self.store.once, f"the comparison in {self.store.folder}")

    def _check_runtimes(self) -> None:
        """Refuses runtimes that are not there, or cannot take the network, before anything is trained.

        Raises:
            MissingPackage: a runtime is not installed.
            ExportError: it cannot take the dense network.
            ConfigError: there are fewer cores than threads.
        """
        asked = self.config.compare
        check_threads(asked.latency.threads)
        for name in asked.latency.runtimes:
            runtime = runtime_named(name)
            if self.config.budget.bits and name not in IN_8_BITS:
                self.reporter.say(
                    f"compare.latency: {name} rounds in float32, so that fewer bits take longer there"
                )
            if name not in ("eager", "compiled"):  # which take every network
                batch: Batch = DYNAMIC if len(asked.batches) > 1 else asked.batches[0]
                inputs = repeated(self.prepared.task.example_inputs, asked.batches[0])
                runtime.prepare(self.prepared.model, inputs, batch=batch)

    def _check_seeds(self) -> None:
        """Refuses another number of seeds once numbers were seen: intervals hold for a number fixed before."""
        fixed, wanted = self.store.plan.get("seeds", 0), len(self.seeds)
        if fixed >= FEWEST and fixed != wanted and self.store.begun:
            raise StudyMismatch(
                f"the comparison in {self.store.folder} has {fixed} seeds, got compare.seeds = {wanted}: seeds "
                "that are added once numbers were seen make intervals claim more than they hold; choose another "
                "--out to compare over others"
            )
        self.store.plan["seeds"] = wanted

    @property
    def _trials(self) -> int:
        return self.config.compare.trials or self.config.search.trials

    @property
    def _searches(self) -> list[str]:
        return [name for name, method in self.methods.items() if method.searches]

    @property
    def _scratch_epochs(self) -> float:
        """As many as a searched network has seen, from the dense training on, along the whole ladder."""
        section = self.config.regularizer
        if self.config.compare.scratch_epochs is not None:
            return self.config.compare.scratch_epochs
        rungs = 1 if section.start == "dense" else section.trainings
        shared = self.config.supernet.epochs
        return self.config.training.epochs + rungs * section.epochs + shared + self.config.finetune.epochs

    def _write_asked(self) -> None:
        """Says what is compared, for whoever looks at the folder meanwhile."""
        asked = self.asked
        told = {name: getattr(asked, name) for name in ("name", "network", "data", "budgets", "command")}
        methods = [method for method in asked.methods if method != DENSE]
        write_json(self.store.folder / ASKED, told | {"methods": methods, "seeds": list(asked.seeds)})

    def _train_ladder(self) -> None:
        self.experiment.train_ladder()
        digests = [self.experiment.dense.digest, *self.experiment.digests]
        self.store.settle()
        self._check_dense_score()
        if self.store.once("checkpoints", lambda: digests) != digests:
            raise StudyMismatch(
                f"the comparison in {self.store.folder} was made with other checkpoints than {self.out / 'ladder'} "
                "gives: training repeats bit for bit only on the same machine and versions, so bring the ladder/ "
                "folder of the first run, or choose another --out"
            )

    def _other_scores(self) -> dict[str, Sequence[Floats] | str]:
        """Scores by every other criterion that is asked for, or why it does not apply."""
        criteria = {method.criterion for method in self.methods.values() if not method.own_network} - {ENERGY}
        graph, task, seed = self.prepared.graph, self.prepared.task, self.config.seed
        networks = [rung.model for rung in self.experiment.rungs]
        scores: dict[str, Sequence[Floats] | str] = {}
        for name in sorted(criteria):
            try:
                criterion = criterion_of(name)
                scores[name] = [channel_scores(criterion, each, graph, task, seed) for each in networks]
            except EspalierError as error:  # it does not apply to this network; the other methods do
                scores[name] = str(error)
        return scores

    def _baseline(self, budget: Budget, space: Space) -> tuple[Candidate, float]:
        """The greedy pruning that fine-tuning prefers under a budget, found once, and the seconds that took."""

        def found() -> dict[str, Any]:
            (seed,), own = selection_seeds(self.config.seed), self.experiment
            contest = best_greedy(own.finetuner, space.greedy_candidates(), self.config.finetune.halvings, seed)
            return {"candidate": contest.winner.key, "seconds": contest.seconds}

        kept = self.store.once(BASELINE + budget.key, found)
        return Candidate.from_key(kept["candidate"]), kept.get("seconds", 0.0)  # older ones have none

    def _material(
        self,
        scores: Mapping[str, Sequence[Floats] | str],
        spaces: Mapping[str, Space],
        baselines: Mapping[str, tuple[Candidate, float]],
    ) -> Material:
        """What all methods work with."""
        section, plan, methods = self.config.search, self.store.plan, self.methods.values()
        task, stage = self.experiment.task, Stage("regularized", self.config.regularizer.epochs)
        training = task.only("held_out", training=True), stage
        attributes = {
            "fingerprint": plan["fingerprint"],
            "versions": versions(),
            "network": {
                "macs": self.prepared.dense_macs,
                "groups": [[group.name, group.size] for group in self.prepared.graph.groups],
            },
            "checkpoints": self.experiment.digests,
            COMPARISON: self.name,
            **{name: made for name, made in plan.items() if name == EXECUTION or name.startswith(STRENGTH)},
        }
        return Material(
            spec=self.experiment.spec,
            unseen=self.experiment.unseen,
            spaces=spaces,
            baselines={budget: candidate for budget, (candidate, _) in baselines.items()},
            baseline_seconds={budget: seconds for budget, (_, seconds) in baselines.items()},
            channel_scores=scores,
            trials=self.asked.trials,
            measure=self.experiment.measure,
            proxies=self.experiment.promoting,
            share=section.promote,
            wanted=self.asked.finalists,
            storage=self.url,
            study=self.name,
            out=self.out.resolve(),
            configs=self._configs(),
            attributes=attributes,
            max_failures=self.config.cluster.max_failures,
            knowledge=self.knowledge,
            dense=numpy_state(self.experiment.dense.model) if any(own.own_network for own in methods) else {},
            training=training if any(own.trains for own in methods) else None,
        )

    def _configs(self) -> dict[str, dict[str, object]]:
        """Of every budget, the config as a study keeps it."""
        content = self.config.model_dump(mode="json")
        keeps = self.config.budget.keeps or (None,)
        return {
            name: content | {"budget": content["budget"] | {"keep": keep}}
            for name, keep in zip(self.budgets, keeps, strict=True)
        }

    # -- at the end

    def _compared(self, cells: Sequence[Cell], dense: Measured) -> Compared:
        """Writes what all cells that are finished say."""
        spent = self.store.plan["seconds"]
        self.store.plan["seconds"] = {
            stage: round(seconds + spent.get(stage, 0.0), 2) for stage, seconds in self.seconds.items()
        }
        self.store.write_plan()
        comparison = Comparison(
            asked=self.asked,
            dense=dense,
            cells=tuple(found for cell in cells if (found := self.store.measured(cell)) is not None),
            failures=self.failures,
            seconds=self.store.plan["seconds"],
            versions=versions(),
            machine=f"{platform.machine()}, {platform.system()} {platform.release()}",
            execution=self.experiment.words_of_execution,
            headrooms={
                key: known
                for key, budget in self.budgets.items()
                if (known := known_headroom(self.out, budget, self.config, self.experiment.digests)) is not None
            },
        )
        comparison.write(self.store.folder)
        return Compared(comparison, self.prepared, self.material.scores_by(ENERGY), self.store.folder)
