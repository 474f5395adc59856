"""The loop of the OICSR paper: train with the regulariser, rank globally, remove a share, retrain, again.

Every round trains the network as it stands with the regulariser, ranks the channels of all groups together, and
removes the lowest until the round's share of the MACs is gone, at most half of any group. The last round meets the
budget; what is left is retrained once more (Li et al., CVPR 2019, arXiv 1905.11664). How, is a choice:

    finetune    the weights that are left, by the recipe of fine-tuning
    rewind      the weights that are left, by the whole schedule of the dense training (Renda et al., ICLR 2020,
                arXiv 2003.02389)
    scratch     new weights in the pruned structure, by that schedule: the control (Liu et al., ICLR 2019,
                arXiv 1810.05270)

In place of rounds, every other schedule (`espalier.search.training.schedules`) trains with the regulariser in its
own way, and ends in one cut and the last retraining.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from espalier.errors import BudgetInfeasible, ConfigError
from espalier.persistence import record_from
from espalier.pruning.graph.allocation import greedy, narrowest
from espalier.pruning.graph.budget import UNITS, Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.importance.criterion import Criterion
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.networks import build
from espalier.pruning.seeding import seeded
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.cluster.process_settings import computing
from espalier.search.config.loading import Config
from espalier.search.config.recipes import Recipes
from espalier.search.config.search_sections import PruneConfig
from espalier.search.evaluation.importance import channel_scores, check_offered, code_of_criterion, criterion_of
from espalier.search.evaluation.reconstruction import reconstruct_cut
from espalier.search.files import network_file as artefact
from espalier.search.files.json_files import json_digest, write_json
from espalier.search.files.tensor_files import load_tensors, save_tensors, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import Reporter
from espalier.search.pruning_loop.result import PruneResult, Round, round_of
from espalier.search.run.exporting import example_note
from espalier.search.run.prepare import Prepared, least_widths, prepare
from espalier.search.tasks.code_digests import code_of
from espalier.search.tasks.device import device_here
from espalier.search.tasks.task import NEEDS, Part, Stage
from espalier.search.training.ladder import train_dense
from espalier.search.training.schedule import Ranking, Schedule, Site, check_schedule, remove_files, run_schedule
from espalier.search.training.schedules import schedule_of
from espalier.search.training.soft import PARTIAL_HISTORY, SoftEpoch

Kept = dict[str, list[int]]
"""Group name -> channels kept of the network that the round began with."""


@computing()
def prune(config: Config, out: Path, reporter: Reporter) -> PruneResult:
    """Runs the loop, from wherever it stands: rounds that are in the folder are not run again.

    Args:
        config: checked settings; `config.prune` says how.
        out: folder for the checkpoints of every round, ``prune.json`` and ``pruned.espalier``.
        reporter: told the progress.

    Raises:
        EspalierError: of the kinds of `prepare`; BudgetInfeasible where so few rounds cannot reach the budget.
    """
    if len(config.budget.keeps) > 1:
        raise ConfigError(f"the loop prunes to one budget, got budget.keep {list(config.budget.keeps)}: choose one")
    for key in ("depth", "bits"):
        if getattr(config.budget, key):
            raise ConfigError(f"budget.{key}: searches and comparisons take it, and the pruning loop does not")
    prepared = prepare(config)
    criterion = criterion_of(config.prune.criterion)
    check_offered("prune.criterion", criterion, prepared.task)
    Recipes.of(config).penalty.on(prepared.graph, 0.0)  # arguments out of their range are told of now
    if config.prune.reconstruct and "batches" not in prepared.task.offers:
        raise ConfigError(f"prune.reconstruct needs {NEEDS['batches']}, which this task does not offer")
    schedule = None
    if config.prune.schedule == "rounds":
        _check_reach(config, prepared)
    else:
        schedule = schedule_of(config.prune.schedule)
        check_schedule(f"prune.schedule: {config.prune.schedule}", schedule, prepared.task, prepared.graph)
    dense = train_dense(
        prepared.model,
        prepared.task,
        config.training.epochs,
        config.seed,
        out / "ladder",
        prepared.origin,
        reporter,
    )
    loop = _Loop(config, prepared, criterion, out, reporter)
    network, chain, rounds = dense.model.cpu(), list[Kept](), list[Round]()
    epochs: tuple[SoftEpoch, ...] = ()
    if schedule is not None:
        network, kept, done, epochs = loop.scheduled(schedule, dense.digest, network, prepared.budget)
        chain, rounds = [kept], [done]
    else:
        for number in range(1, config.prune.rounds + 1):
            budget = prepared.budget
            if number < config.prune.rounds:
                budget = budget.on_the_way(prepared.graph, number / config.prune.rounds)
            network, kept, done = loop.round(dense.digest, network, chain, number, budget)
            chain.append(kept)
            rounds.append(done)
    return loop.conclude(dense.model, prepared.dense_macs, network, chain, rounds, epochs)


def _check_reach(config: Config, prepared: Prepared) -> None:
    """Raises BudgetInfeasible where even rounds that remove the most end above the budget."""
    graph, section = prepared.graph, config.prune
    widths = graph.sizes
    for _ in range(section.rounds):
        widths = np.maximum(prepared.floor, np.ceil(widths * (1 - section.most)).astype(np.int64))
    narrow = narrowest(graph, widths, prepared.round_to)
    if not prepared.budget.fits(graph, narrow):
        raise _beyond_reach(section, prepared.budget, graph, narrow)


def _beyond_reach(section: PruneConfig, budget: Budget, graph: ChannelGraph, narrow: Ints) -> BudgetInfeasible:
    metric = budget.binding(graph, narrow)
    rounds = "1 round that removes" if section.rounds == 1 else f"{section.rounds} rounds that remove"
    return BudgetInfeasible(
        f"{rounds} at most {section.most:g} of a group cannot reach the budget: they get to "
        f"{int(getattr(graph, metric)(narrow)):,} {UNITS[metric]}, where {budget.limits[metric]:,} are left; "
        "raise prune.rounds or prune.most"
    )


class _Loop:
    def __init__(
        self, config: Config, prepared: Prepared, criterion: Criterion, out: Path, reporter: Reporter
    ) -> None:
        self.config, self.task, self.criterion = config, prepared.task, criterion
        self.round_to, task = prepared.round_to, prepared.task
        self.device = device_here(task.home)
        self.out, self.rounds, self.reporter = out, out / "rounds", reporter
        self.penalty = Recipes.of(config).penalty
        self.dense_stage = Stage("dense", config.training.epochs)
        self.regularized_stage = Stage("regularized", config.regularizer.epochs)
        self.finetune_stage = Stage("finetune", config.finetune.epochs)
        given = config.prune.strength
        self.strength = config.regularizer.fixed_strengths()[-1] if given is None else given

    def scheduled(
        self, schedule: Schedule, origin: str, dense: nn.Module, budget: Budget
    ) -> tuple[nn.Module, Kept, Round, tuple[SoftEpoch, ...]]:
        """What a schedule does, and one cut."""
        name = self.config.prune.schedule
        path = self.rounds / f"{name.rpartition(':')[2]}-{self._key(origin, [], 1, budget)}.safetensors"
        graph = trace(dense, self.task.example_inputs)
        if path.is_file():
            small, header = _read(path, dense, graph)
            epochs = tuple(record_from(SoftEpoch, epoch) for epoch in header["epochs"])
            return small, header["kept"], record_from(Round, header["round"]), epochs
        trained = copy.deepcopy(dense).to(self.device)
        path.parent.mkdir(parents=True, exist_ok=True)  # a schedule may have files of its own
        title = f"{name} pruning"

        def train(name: str, **hooks: Any) -> None:
            words = f"{title}: {self._penalised}" + ("" if name == "trained" else f", {name}")
            self._regularize(trained, graph, 1, words, self._beside(path, f"{name}{PARTIAL}"), **hooks)

        ranking = Ranking(
            graph, budget, least_widths(self.config.budget, graph), self.round_to, self._scores_on(graph)
        )
        site = Site(
            trained,
            graph,
            ranking,
            self.task,
            self.config.seed,
            self.regularized_stage,
            train,
            lambda ending: self._beside(path, ending),
        )
        pruned = run_schedule(name, schedule, site)
        trained.cpu().eval()
        small = self._cut(trained, graph, pruned.keep)
        cut, kept = self._held_out(small), graph.kept_indices(pruned.keep)
        worth = self._held_out(trained) if pruned.trained is None else pruned.trained
        done = round_of(1, graph, pruned.keep, trained=worth, cut=cut, retrained=cut)
        self._keep(path, small, kept, done, pruned.epochs)
        self.reporter.say(f"{title}: {done.macs:,} MACs, held-out {self.task.metric.words(cut)} as cut")
        return small, kept, done, pruned.epochs

    @staticmethod
    def _beside(path: Path, ending: str) -> Path:
        """A file that is kept until a result is in its own."""
        return path.with_name(f"{path.stem}-{ending}")

    def round(
        self, origin: str, network: nn.Module, chain: Sequence[Kept], number: int, budget: Budget
    ) -> tuple[nn.Module, Kept, Round]:
        path = self.rounds / f"round{number}-{self._key(origin, chain, number, budget)}.safetensors"
        graph = trace(network, self.task.example_inputs)
        if path.is_file():
            small, header = _read(path, network, graph)
            return small, header["kept"], record_from(Round, header["round"])
        trained = copy.deepcopy(network)
        partial = self._beside(path, f"trained{PARTIAL}")
        self._regularize(trained, graph, number, f"round {number}: {self._penalised}", partial)
        keep = self._rank(trained, graph, budget, self.config.prune.most)
        small = self._cut(trained, graph, keep)
        figures = {"trained": self._held_out(trained), "cut": self._held_out(small)}
        retrained = self._beside(path, f"retrained{PARTIAL}")
        self._train(small, self.finetune_stage, self.config.seed + number, f"round {number}: retraining", retrained)
        done = round_of(number, graph, keep, **figures, retrained=self._held_out(small))
        kept = graph.kept_indices(keep)
        self._keep(path, small, kept, done)
        metric = self.task.metric
        self.reporter.say(
            f"round {number}: {done.macs:,} MACs, held-out {metric.heading} {metric.text(done.trained)} trained, "
            f"{metric.text(done.cut)} cut, {metric.text(done.retrained)} retrained"
        )
        return small, kept, done

    def _cut(self, network: nn.Module, graph: ChannelGraph, keep: Tensor) -> nn.Module:
        """The network without some of its channels, reconstructed where that is asked for."""
        small = slim(network, graph, keep)
        if self.config.prune.reconstruct:
            reconstruct_cut(small, network, graph, keep, self.task)
        return small

    def _regularize(
        self, network: nn.Module, graph: ChannelGraph, number: int, title: str, partial: Path, **hook: Any
    ) -> None:
        """Trains with the penalty."""
        self._train(
            network,
            self.regularized_stage,
            self.config.seed + number,
            title,
            partial,
            regularization=self.penalty.on(graph, self.strength),
            **hook,
        )

    def _keep(
        self, path: Path, small: nn.Module, kept: Kept, done: Round, epochs: Sequence[SoftEpoch] = ()
    ) -> None:
        header = {"kept": kept, "round": asdict(done), "epochs": [asdict(epoch) for epoch in epochs]}
        save_tensors(path, tensors_of(small), header)
        remove_files(path.parent, f"{path.stem}-*")

    @property
    def _penalised(self) -> str:
        return f"{self.penalty.name} {self.strength:g}"

    def _scores_on(self, graph: ChannelGraph) -> Callable[[nn.Module], Floats]:
        """Network -> what its channels are worth, (n_channels,)."""
        how, seed = self.config.prune.normalization, self.config.seed
        return lambda network: normalize(
            channel_scores(self.criterion, network, graph, self.task, seed), graph, how
        )

    def _rank(self, network: nn.Module, graph: ChannelGraph, budget: Budget, most: float) -> Tensor:
        """What the budget has room for, bool (n_channels,), if at most that share of a group may go."""
        section = self.config.prune
        scores = self._scores_on(graph)(network)
        floor = np.maximum(
            least_widths(self.config.budget, graph),
            np.ceil(graph.sizes * (1 - most)).astype(np.int64),
        )
        narrow = narrowest(graph, floor, self.round_to)
        if not budget.fits(graph, narrow):
            raise _beyond_reach(section, budget, graph, narrow)
        return graph.keep_best(scores, greedy(graph, scores, budget, floor, self.round_to))

    def conclude(
        self,
        dense: nn.Module,
        dense_macs: int,
        network: nn.Module,
        chain: Sequence[Kept],
        rounds: Sequence[Round],
        epochs: tuple[SoftEpoch, ...],
    ) -> PruneResult:
        how = self.config.prune.retrain
        stage = self.finetune_stage if how == "finetune" else self.dense_stage
        finished: list[tuple[float, float, nn.Module]] = []
        for seed in range(self.config.finetune.seeds):
            final = self._from_scratch(chain, seed) if how == "scratch" else copy.deepcopy(network)
            partial = self.rounds / f"final-{how}-seed{seed}{PARTIAL}"
            self._train(final, stage, self.config.seed + seed, f"final {how}, seed {seed}", partial)
            finished.append((self._held_out(final), self._test(final), final))
        best = max(finished, key=lambda run: self.task.metric.order(run[0]))[2]
        path = self.out / "pruned.espalier"
        model, graph = self.config.model, trace(best, self.task.example_inputs)
        notes = {"rounds": len(rounds), "macs": int(graph.macs(graph.sizes)), "retrain": how}
        notes = self.task.notes() | notes | example_note(self.task.example_inputs)
        artefact.save(best, path, name=model.name, kwargs=model.kwargs, notes=notes)
        result = PruneResult(
            dense_macs,
            self._test(dense),
            {group.name: group.size for group in trace(dense, self.task.example_inputs).groups},
            tuple(rounds),
            epochs,
            how,
            self._test(network),
            tuple(test for _, test, _ in finished),
            str(path),
            self.task.metric,
        )
        write_json(self.out / "prune.json", asdict(result))
        for end in (PARTIAL, PARTIAL_HISTORY):
            remove_files(self.rounds, f"final-*{end}")
        return result

    def _from_scratch(self, chain: Sequence[Kept], seed: int) -> nn.Module:
        with seeded(self.config.seed + seed):
            network = build(self.config.model.name, **self.config.model.kwargs)
        for kept in chain:
            network = slim(network, trace(network, self.task.example_inputs), kept, verify=False)
        return network

    def _train(
        self,
        network: nn.Module,
        stage: Stage,
        seed: int,
        title: str,
        partial: Path,
        on_step: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        steps = self.task.steps(stage)
        if not steps:
            network.eval()
            return
        with self.reporter.meter(title, steps, self.task.counts) as meter:

            def told(step: int, loss: float) -> None:
                if on_step is not None:
                    on_step(step)
                meter.update(step, f"loss {loss:.3f}")

            network.to(self.device)
            self.task.train(
                network,
                stage,
                seed=seed,
                on_step=told,
                checkpoint=partial,
                **options,
            )
            network.cpu()

    def _held_out(self, network: nn.Module) -> float:
        return self._read(network, "held_out")

    def _test(self, network: nn.Module) -> float:
        return self._read(network, "test")

    def _read(self, network: nn.Module, part: Part) -> float:
        value = self.task.evaluate(network.to(self.device).eval(), part).value
        network.cpu()
        return value

    def _key(self, origin: str, chain: Sequence[Kept], number: int, budget: Budget) -> str:
        inputs = {
            "origin": origin,
            "chain": list(chain),
            "number": number,
            "budget": self.config.budget.model_dump(mode="json"),
            "limits": asdict(budget),
            "recipes": [self.task.recipe(stage) for stage in (self.regularized_stage, self.finetune_stage)],
            "penalty": [self.penalty.to_json(), self.strength],
            "ranking": [self.config.prune.criterion, self.config.prune.normalization, self.config.prune.most],
            "data": self.task.digest(),
            "seed": self.config.seed,
            "schedule": self.config.prune.schedule,
        }
        if self.config.prune.reconstruct:
            inputs["reconstruct"] = True
        if ":" in (name := self.config.prune.schedule):
            inputs["code"] = code_of(name, "prune.schedule")
        inputs |= code_of_criterion(self.config.prune.criterion)
        return json_digest(inputs)


def _read(path: Path, network: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, dict[str, Any]]:
    """The cut network that a file keeps, of the one that it was cut from, and the file's header."""
    tensors, header = load_tensors(path)
    small = slim(network, graph, header["kept"], verify=False)
    small.load_state_dict({name: tensor for name, tensor in tensors.items() if name in small.state_dict()})
    return small.eval(), header
