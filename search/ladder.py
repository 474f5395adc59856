"""The ladder of regularisation strengths: one network per strength, each trained on from the one before.

A search then chooses the strength like any other variable, and trains nothing. Rungs are kept in the run folder
under a key of everything they depend on, so none is trained twice.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from espalier.pruning.graph import ChannelGraph
from espalier.pruning.regularizers import REGULARIZERS, Regularizer, Weighting
from espalier.pruning.surgery import assign
from espalier.search.checkpoint import digest, load_tensors, save_tensors, tensors_of
from espalier.search.data import Splits
from espalier.search.partial import PARTIAL
from espalier.search.progress import Reporter
from espalier.search.training import Recipe, top1, train


@dataclass(frozen=True)
class Rung:
    """One trained network of the ladder.

    Attributes:
        strength: of the regularisation it was trained with.
        model: the network, in eval mode.
        digest: of its tensors.
        top1: percent right on the held-out search images.
    """

    strength: float
    model: nn.Module
    digest: str
    top1: float


def train_dense(
    model: nn.Module, splits: Splits, recipe: Recipe, seed: int, folder: Path, origin: str, reporter: Reporter
) -> Rung:
    """The network that the ladder starts from, trained without regularisation.

    Args:
        model: untrained, or with weights loaded; `recipe.epochs` may then be 0. Left as it is.
        splits: images.
        recipe: of the training.
        seed: of the training.
        folder: where the checkpoint is kept.
        origin: names where the model's present weights come from.
        reporter: told the progress.
    """
    inputs = {"origin": origin, "data": splits.digest(), "recipe": asdict(recipe), "seed": seed}
    stem = folder / f"dense-{_key(inputs)}"
    return _rung(model, splits, recipe, seed, 0.0, partial(train, strength=0.0), stem, "dense training", reporter)


@dataclass(frozen=True)
class Penalty:
    """A regulariser, and how it is applied.

    Attributes:
        name: of the regulariser.
        weighting: weights of the channels' norms.
        with_norms: whether scale and shift of norms belong to a channel.
        proximal: proximal steps in place of subgradients.
        ramp: share of a rung's steps over which the strength rises.
    """

    name: str
    weighting: Weighting = "none"
    with_norms: bool = False
    proximal: bool = False
    ramp: float = 0.0

    def on(self, graph: ChannelGraph) -> Regularizer:
        """The regulariser of a graph's groups."""
        return REGULARIZERS[self.name](graph, self.weighting, self.with_norms)


def climb(
    dense: Rung,
    graph: ChannelGraph,
    splits: Splits,
    recipe: Recipe,
    penalty: Penalty,
    strengths: Sequence[float],
    seed: int,
    folder: Path,
    reporter: Reporter,
) -> list[Rung]:
    """Trains the rungs in rising order of strength.

    Args:
        dense: where the first one starts, and the rung of strength 0 itself.
        graph: the groups to regularise.
        splits: images.
        recipe: of each rung.
        penalty: the regulariser.
        strengths: rising.
        seed: of the training.
        folder: where the checkpoints are kept.
        reporter: told the progress.
    """
    regularizer = penalty.on(graph)
    rungs: list[Rung] = []
    below = dense
    for number, strength in enumerate(strengths):
        if strength > 0:
            inputs = {"below": below.digest, "data": splits.digest(), "recipe": asdict(recipe), "seed": seed}
            inputs |= {"regularizer": asdict(penalty), "strength": strength, "graph": graph.digest}
            stem = folder / f"rung{number}-{_key(inputs)}"
            title = f"{penalty.name} {strength:g}"
            trainer = partial(
                train, regularizer=regularizer, strength=strength, proximal=penalty.proximal, ramp=penalty.ramp
            )
            below = _rung(below.model, splits, recipe, seed + number, strength, trainer, stem, title, reporter)
        rungs.append(below)
    return rungs


def _rung(
    start: nn.Module,
    splits: Splits,
    recipe: Recipe,
    seed: int,
    strength: float,
    trainer: Callable[..., None],
    stem: Path,
    title: str,
    reporter: Reporter,
) -> Rung:
    path, partial = (stem.with_name(stem.name + end) for end in (".safetensors", PARTIAL))
    model = copy.deepcopy(start)
    if path.is_file():
        tensors, header = load_tensors(path)
        assign(model, tensors, {})
        return Rung(strength, model.eval(), header["digest"], header["top1"])
    steps = recipe.steps(len(splits.train))
    if steps:
        with reporter.meter(title, steps, "steps") as meter:
            trainer(
                model,
                splits.train,
                splits.mean,
                splits.std,
                recipe,
                seed=seed,
                on_step=lambda step, loss: meter.update(step, f"loss {loss:.3f}"),
                checkpoint=partial,
            )
    accuracy = top1(model, splits.search, splits.mean, splits.std)
    tensors = tensors_of(model.eval())
    rung = Rung(strength, model, digest(tensors), accuracy)
    save_tensors(path, tensors, {"digest": rung.digest, "top1": accuracy, "strength": strength})
    partial.unlink(missing_ok=True)
    reporter.say(f"{title}: top-1 {accuracy:.2f} % on {len(splits.search)} held-out images")
    return rung


def _key(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
