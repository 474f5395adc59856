"""The numbers behind the paper's figures: energies, damage and keep ratios."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from espalier.errors import ConfigError
from espalier.persistence import record_from
from espalier.pruning.graph.allocation import greedy, narrowest
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.graph.precision import ENDING
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.pruning.slimming.surgery import slim
from espalier.search.config.loading import Config
from espalier.search.config.recipes import Recipes
from espalier.search.progress.reporter import Reporter
from espalier.search.run.prepare import prepare
from espalier.search.study.pareto_front import Point
from espalier.search.tasks.task import Task
from espalier.search.training.ladder import climb, train_dense

REMOVED = tuple(round(0.05 * n, 2) for n in range(0, 18))
"""Shares of the MACs removed that `damage` goes through."""


@dataclass(frozen=True)
class Trained:
    """Networks of one structure, by what they were trained with.

    Attributes:
        graph: their channel graph.
        networks: title -> network.
        task: what they are for.
    """

    graph: ChannelGraph
    networks: dict[str, nn.Module]
    task: Task


def train(
    config: Config, wanted: Sequence[str] | None, folder: Path, reporter: Reporter, group: str | None = None
) -> Trained:
    """One network per regulariser, each trained on from the same dense one; what is in the folder is not trained.

    Args:
        config: checked settings.
        wanted: names of regularisers, or NAME=STRENGTH; by default the config's own, at each of its strengths.
        folder: a run folder; its ladder is used and added to.
        reporter: told the progress.
        group: a channel group that is wanted later; what there is not is not trained for.

    Raises:
        ConfigError: an unknown regulariser or group, or a strength that is no number from 0.
    """
    section = config.regularizer
    strengths = section.fixed_strengths()
    chosen = [_parsed(text, strengths[-1]) for text in wanted or ()]
    chosen = chosen or [(section.name, strength) for strength in strengths]
    prepared, recipes = prepare(config), Recipes.of(config)
    _number_of(prepared.graph, group)
    ladder = folder / "ladder"
    dense = train_dense(
        prepared.model, prepared.task, config.training.epochs, config.seed, ladder, prepared.origin, reporter
    )
    networks = {"dense": dense.model}
    for name, strength in chosen:
        (rung,) = climb(
            dense,
            prepared.graph,
            prepared.task,
            section.epochs,
            replace(
                recipes.penalty,
                name=name,
                kwargs=config.regularizer.kwargs if name == config.regularizer.name else {},
            ),
            [strength],
            config.seed,
            ladder,
            reporter,
        )
        networks[f"{name} {strength:g}"] = rung.model
    return Trained(prepared.graph, networks, prepared.task)


def _parsed(text: str, default: float) -> tuple[str, float]:
    name, given, number = text.partition("=")
    if ":" not in name and name not in REGULARIZERS:
        raise ConfigError(f"--regularizer must be one of {', '.join(REGULARIZERS)}, got {name!r}")
    try:
        strength = float(number) if given else default
    except ValueError:
        strength = math.nan
    if not 0 <= strength < math.inf:
        raise ConfigError(f"--regularizer {name} takes a strength from 0 as in {name}=0.01, got {number!r}")
    return name, strength


def energies(trained: Trained, group: str | None = None) -> tuple[str, dict[str, Floats]]:
    """The name of a group and its energies by network, falling: title -> (size,).

    Raises:
        ConfigError: there is no such group.
    """
    graph = trained.graph
    number = _number_of(graph, group)
    start, end = graph.offsets[number], graph.offsets[number + 1]
    found = {title: channel_energies(net, graph).double().numpy() for title, net in trained.networks.items()}
    return graph.groups[number].name, {title: np.sort(values[start:end])[::-1] for title, values in found.items()}


def _number_of(graph: ChannelGraph, group: str | None) -> int:
    """Of a group, by its name; of the largest for None."""
    names = [one.name for one in graph.groups]
    if group is not None and group not in names:
        raise ConfigError(f"there is no channel group {group!r}; the network has {', '.join(names)}")
    return int(np.argmax(graph.sizes)) if group is None else names.index(group)


def damage(trained: Trained) -> dict[str, list[tuple[float, float]]]:
    """Title -> (share of the MACs removed, held-out metric before retraining), by raw channel energy."""
    graph = trained.graph
    dense, smallest = int(graph.macs(graph.sizes)), int(graph.macs(narrowest(graph)))
    found: dict[str, list[tuple[float, float]]] = {}
    for title, network in trained.networks.items():
        scores = channel_energies(network, graph).double().numpy()
        found[title] = []
        for removed in REMOVED:
            budget = int((1 - removed) * dense)
            if budget < smallest:
                break
            widths = greedy(graph, scores, budget)
            cut = slim(network, graph, graph.keep_best(scores, widths), verify=False).eval()
            share = 1 - int(graph.macs(widths)) / dense
            found[title].append((share, trained.task.evaluate(cut, "held_out").value))
    return found


def front(folder: Path) -> list[Point]:
    """The points of a search between budgets.

    Raises:
        ConfigError: the folder holds no result of one.
    """
    path = folder / "result.json"
    points = json.loads(path.read_text())["front"] if path.is_file() else []
    if not points:
        raise ConfigError(f"{folder} holds no result.json of a search with budget.front")
    return [record_from(Point, point) for point in points]


def ratios(folder: Path) -> dict[str, dict[str, float]]:
    """Title -> group -> share of its channels that is kept, of a finished search or loop.

    Raises:
        ConfigError: the folder holds neither.
    """
    for file in ("result.json", "prune.json"):
        path = folder / file
        if not path.is_file():
            continue
        content = json.loads(path.read_text())
        if file == "result.json":
            widths = {name: content[name]["widths"] for name in ("dense", "greedy", "searched")}
            dense = widths.pop("dense")
        else:
            rounds = {f"round {done['number']}": done["widths"] for done in content["rounds"]}
            widths, dense = rounds, content["dense_widths"]
        channels = {group: size for group, size in dense.items() if not group.endswith(ENDING)}  # no bits of layers
        return {
            title: {g: w / channels[g] for g, w in own.items() if g in channels} for title, own in widths.items()
        }
    raise ConfigError(f"{folder} holds neither result.json of a search nor prune.json of a loop")
