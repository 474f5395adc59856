"""What is to be compared, in the words of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from espalier.pruning.graph.budget import text_of_macs
from espalier.search.config.fields import CLASSIFICATION, GIVEN
from espalier.search.config.loading import Config
from espalier.search.evaluation.proxies import PROXIES, Signal
from espalier.search.files.network_file import class_of
from espalier.search.methods import CONTROLS, DENSE, methods_named
from espalier.search.run.latency_budget import device_of
from espalier.search.run.prepare import Prepared
from espalier.search.spaces.metric import Metric


@dataclass(frozen=True)
class ComparisonSettings:
    """What was to be compared.

    Attributes:
        name: of the comparison.
        network: its name.
        data: name of the data set.
        images: how many to train on, to score on, to judge on, and to test on.
        metric: what networks are measured by.
        budgets: name -> in words, the widest first.
        methods: in the order of the table.
        baseline: the method that others are measured by.
        seeds: of search and fine-tuning.
        trials: evaluations of a search.
        tested: whether networks are read on a test split; else by the score that chose them.
        finalists: of a search, among which fine-tuning chooses; 0 in comparisons where the proxy alone does.
        supernet: what shared weights are used for; empty where there are none.
        proxy: by which candidates are scored.
        measure: of the scores.
        epochs: of fine-tuning.
        scratch_epochs: of training from new weights.
        latency_batch: images per timed pass.
        command: that does it all again.
        runtimes: that networks are timed in, the first of which is the table's.
        batches: examples of timed passes, likewise.
        threads: of a timed pass.
        latency_limits: budget -> share of the dense network's latency that it allows.
        limited: key of the timing that these are of; empty where it is not among those that are made.
    """

    name: str
    network: str
    data: str
    images: Mapping[str, int]
    metric: Metric
    budgets: Mapping[str, str]
    methods: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    trials: int
    proxy: str
    measure: Metric
    epochs: float
    scratch_epochs: float
    latency_batch: int
    command: str
    runtimes: tuple[str, ...] = ("eager",)
    batches: tuple[int, ...] = (1,)
    threads: int = 1
    tested: bool = True
    finalists: int = 0
    supernet: str = ""
    latency_limits: Mapping[str, float] = field(default_factory=dict)
    limited: str = ""

    @property
    def searches(self) -> list[str]:
        """The methods that search."""
        return [name for name, method in methods_named(self.methods).items() if method.searches]

    @property
    def judged(self) -> list[str]:
        """What the verdict is about: the searches, or all methods but the baseline where none searches."""
        others = [name for name in self.methods if name not in (self.baseline, *CONTROLS)]
        return self.searches or others

    @property
    def reading(self) -> str:
        """What stands before the metric's name in labels."""
        return "test " if self.tested else ""

    @property
    def expected(self) -> int:
        """Cells of the whole table, the dense network's left out."""
        return len(self.budgets) * len(self.seeds) * len([name for name in self.methods if name != DENSE])


def settings_of(
    config: Config,
    prepared: Prepared,
    *,
    name: str,
    seeds: Sequence[int],
    scratch_epochs: float,
    by_proxy: bool,
    command: str,
) -> ComparisonSettings:
    """Of a config.

    Args:
        config: checked settings.
        prepared: network and task.
        name: of the comparison.
        seeds: all of its.
        scratch_epochs: of training from new weights.
        by_proxy: whether the proxy alone chooses what a search found.
        command: that does it again.
    """
    task, asked, proxy, measure = prepared.task, config.compare, config.search.proxy, prepared.measure
    sizes, signal = task.sizes(), isinstance(PROXIES[proxy], Signal)
    several = [f"{100 * keep:g} %" for keep in config.budget.keeps]
    words = [f"{each} of the MACs" for each in several] or [str(budget) for budget in prepared.budgets]
    limited = _limited(config)
    return ComparisonSettings(
        name=name,
        network=class_of(prepared.model) if config.model.name == GIVEN else config.model.name,
        data=_data(config, prepared),
        images={
            "training": sizes.get("training", 0),
            "scoring": task.size("scoring"),
            "judging": task.size("judging"),
            "test": task.size("test"),
        },
        metric=task.metric,
        budgets={budget.key: each for budget, each in zip(prepared.budgets, words, strict=True)},
        methods=asked.methods,
        baseline=asked.baseline,
        seeds=tuple(seeds),
        trials=asked.trials or config.search.trials,
        tested=task.has_test,
        finalists=0 if by_proxy else config.search.finalists,
        proxy=proxy if signal else f"{proxy} ({measure.title})",
        measure=Metric(proxy, proxy) if signal else measure,
        epochs=config.finetune.epochs,
        scratch_epochs=scratch_epochs,
        latency_batch=asked.batches[0],
        runtimes=asked.latency.runtimes,
        batches=asked.batches,
        threads=asked.latency.threads,
        command=command,
        supernet=config.supernet.words,
        latency_limits=_latency_limits(prepared) if limited else {},
        limited=limited,
    )


def headline(asked: ComparisonSettings, prepared: Prepared) -> str:
    """The first line that a comparison prints."""
    many = "s" if asked.finalists > 1 else ""
    finalists = f" and {asked.finalists} finalist{many}" if asked.finalists else ""
    macs, title = text_of_macs(prepared.dense_macs, prepared.dense_macs)
    return (
        f"{asked.name}: {asked.network}, {macs} {title} in {len(prepared.graph.groups)} "
        f"groups; {', '.join(asked.methods)} at {', '.join(asked.budgets.values())}; {len(asked.seeds)} seeds, "
        f"{asked.trials} evaluations{finalists} a search"
    )


def _limited(config: Config) -> str:
    """Key of the timing that a limit on latency is of; empty where it is not among those that are made."""
    device, timed = device_of(config.budget), config.compare
    made = (device.runtime in timed.latency.runtimes) and device.batch in timed.batches
    return f"{device.runtime}-{device.batch}" if made and device.threads == timed.latency.threads else ""


def _latency_limits(prepared: Prepared) -> dict[str, float]:
    """Budget -> share of the dense network's latency, of those that limit it."""
    graph, limits = prepared.graph, {budget.key: budget.limits for budget in prepared.budgets}
    return {name: own["latency"] / graph.dense_cost("latency") for name, own in limits.items() if "latency" in own}


def _data(config: Config, prepared: Prepared) -> str:
    """What the networks are for, by name."""
    names = {CLASSIFICATION: config.data.name, GIVEN: type(prepared.task).__name__}
    return names.get(config.task.name, config.task.name)
