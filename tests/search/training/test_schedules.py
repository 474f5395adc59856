"""Every schedule: within the budget, in one cut, the same after an interruption; and what each is for."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, EspalierError
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.slimming.surgery import silence, slim
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import Config, parse_config
from espalier.search.files.tensor_files import tensors_of
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.prepare import prepare
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.functions import FunctionTask
from espalier.search.tasks.task import Stage
from espalier.search.training.half_space import Going, HalfSpace
from espalier.search.training.lottery import Lottery, Refill
from espalier.search.training.regrow import Regrow, moved, slopes
from espalier.search.training.schedule import HeldPruning, Pruned, Ranking, Schedule, Site, run_schedule
from espalier.search.training.schedules import SCHEDULES, Hesso, LearningCompression, schedule_of
from espalier.search.training.soft import PARTIAL_HISTORY, ZEROED_ROLES
from tests.search.watched import SeveralProcesses, hasten

EPOCHS = 5.0
HELD = ["gradual", "set", "rigl", "sparse_momentum", "hesso", "oto", "learning_compression"]


def settings(tiny: dict[str, Any], schedule: str, **changes: Any) -> Any:
    sections = {"regularizer": tiny["regularizer"] | {"epochs": EPOCHS}, "prune": {"schedule": schedule} | changes}
    return parse_config(tiny | sections | {"budget": {"keep": 0.4}}, "mine")


@pytest.fixture
def site(tiny: dict[str, Any], tmp_path: Path) -> Callable[..., Site]:
    """Of the small network on the digits, trained by the task itself."""
    prepared = prepare(settings(tiny, "soft"))
    graph = prepared.graph

    def scores(network: nn.Module) -> Any:
        return channel_energies(network, graph).double().numpy()

    def made(where: str = "here", told: Callable[[int], None] = lambda step: None) -> Site:
        network, stage = copy.deepcopy(prepared.model), Stage("regularized", EPOCHS)
        ranking = Ranking(graph, Budget.of(Budget(macs=0.4), graph), np.ones_like(graph.sizes), 1, scores)

        def train(name: str, *, on_epoch: Any = None, on_step: Any = None) -> None:
            def step(number: int, _: float) -> None:
                if on_step is not None:
                    on_step(number)
                told(number)

            file = tmp_path / where / f"{name}.partial.safetensors"
            prepared.task.train(network, stage, seed=1, on_epoch=on_epoch, on_step=step, checkpoint=file)

        (tmp_path / where).mkdir(exist_ok=True)
        return Site(
            network, graph, ranking, prepared.task, 0, stage, train, lambda ending: tmp_path / where / ending
        )

    return made


def silent(network: nn.Module, graph: ChannelGraph, keep: Tensor) -> bool:
    """Whether all that is not kept writes nothing."""
    zeroed = copy.deepcopy(network)
    silence(zeroed, graph, keep, ZEROED_ROLES)
    return all(
        torch.equal(one, other) for one, other in zip(network.parameters(), zeroed.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_ends_within_the_budget_in_one_cut(name: str, site: Callable[..., Site]) -> None:
    at = site()
    before = copy.deepcopy(tensors_of(at.network))
    found = SCHEDULES[name].run(at)
    widths = at.graph.widths(found.keep)
    assert at.ranking.budget.fits(at.graph, widths) and (widths >= 1).all()
    cost = int(at.graph.macs(widths))
    assert cost > 0.85 * at.ranking.budget.limits["macs"], "and fills it"
    assert any(not torch.equal(before[key], tensor) for key, tensor in tensors_of(at.network).items())
    slim(at.network.eval(), at.graph, found.keep)  # verified
    assert SCHEDULES[name].paper is not None
    if name in HELD:
        assert silent(at.network, at.graph, found.keep)
        assert [epoch.epoch for epoch in found.epochs] == [1, 2, 3, 4, 5]
        assert found.epochs[-1].zeroed == int((~found.keep).sum())


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_goes_where_the_budget_has_room_for_all(name: str, site: Callable[..., Site]) -> None:
    at = site()
    everything = Budget.of(Budget(macs=1.0), at.graph)
    found = SCHEDULES[name].run(replace(at, ranking=replace(at.ranking, budget=everything)))
    assert bool(found.keep.all())


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_interrupted_one_ends_alike(
    name: str, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, wherever it is interrupted; checkpoints older than the histories, too."""
    hasten(monkeypatch, every=3)
    whole = site("whole")
    expected = SCHEDULES[name].run(whole)
    made = 0

    def killing(_: int) -> None:
        nonlocal made
        made += 1
        if made in (5, 14, 27, 36, 50):
            raise KeyboardInterrupt

    found, at, died = None, whole, 0
    while found is None:
        at = site("killed", killing)
        try:
            found = SCHEDULES[name].run(at)
        except KeyboardInterrupt:
            died += 1
    assert died >= 3
    assert torch.equal(found.keep, expected.keep) and found.epochs == expected.epochs
    for key, tensor in tensors_of(whole.network).items():
        assert torch.equal(tensor, tensors_of(at.network)[key]), key


@pytest.mark.parametrize("name", ["soft", *HELD])
def test_an_average_of_weights_brings_nothing_back(name: str, site: Callable[..., Site]) -> None:
    at = site()
    assert isinstance(at.task, ClassificationTask)
    at.task.recipes["regularized"] = replace(at.task.recipes["regularized"], ema=0.9)
    found = SCHEDULES[name].run(at)
    assert silent(at.network, at.graph, found.keep) and not found.keep.all()


def test_frozen_layers_have_slopes(site: Callable[..., Site]) -> None:
    found = {}
    for frozen in (False, True):
        at = site(f"frozen{frozen}")
        keep = torch.arange(at.graph.n_channels) % 3 > 0
        silence(at.network, at.graph, keep, ZEROED_ROLES)
        at.network.requires_grad_(not frozen)
        found[frozen] = slopes(at, site("start").network, ~keep, 1)
        assert all(each.requires_grad != frozen for each in at.network.parameters())
    assert (found[True] > 0).any() and np.array_equal(found[True], found[False])


def masks_of(name: str, at: Site) -> list[Tensor]:
    """What each epoch kept."""
    SCHEDULES[name].run(at)
    history = HeldPruning(at, lambda *_: torch.empty(0))
    return [history.kept_after(epoch) for epoch in range(1, at.last + 1)]


@pytest.mark.parametrize("name", ["gradual", "hesso"])
def test_masks_only_grow(name: str, site: Callable[..., Site]) -> None:
    at = site()
    kept = masks_of(name, at)
    assert all(bool((later <= earlier).all()) for earlier, later in itertools.pairwise(kept))
    costs = [int(at.graph.macs(at.graph.widths(keep))) for keep in kept]
    assert costs[0] > costs[1] > costs[-1] and costs[-1] <= at.ranking.budget.limits["macs"]


def test_gradual_follows_the_cubic_curve(site: Callable[..., Site]) -> None:
    at = site()
    dense, limit = int(at.graph.macs(at.graph.sizes)), at.ranking.budget.limits["macs"]
    for epoch, keep in enumerate(masks_of("gradual", at), 1):
        wanted = dense - (dense - limit) * (1 - (1 - min(1.0, epoch / (0.75 * EPOCHS))) ** 3)
        assert 0.85 * wanted < int(at.graph.macs(at.graph.widths(keep))) <= wanted + 1


@pytest.mark.parametrize("name", HELD)
def test_a_last_part_of_an_epoch_that_has_no_step_is_none(
    name: str, tiny: dict[str, Any], site: Callable[..., Site]
) -> None:
    """2.05 epochs of 8 steps are 16 steps."""
    at = site()
    stage, folder = Stage("regularized", 2.05), at.file("x").parent
    assert at.task.steps(stage) == 16

    def train(name: str, *, on_epoch: Any = None, on_step: Any = None) -> None:
        at.task.train(
            at.network,
            stage,
            seed=1,
            on_epoch=on_epoch,
            on_step=lambda step, _: on_step and on_step(step),
            checkpoint=folder / f"{name}.partial.safetensors",
        )

    short = replace(at, stage=stage, train=train)
    assert short.last == 2 and replace(at, stage=Stage("regularized", 2.2)).last == 3
    found = SCHEDULES[name].run(short)
    assert at.ranking.budget.fits(at.graph, at.graph.widths(found.keep))
    assert silent(at.network, at.graph, found.keep)


def test_regrowth_falls_by_a_cosine_and_ends(site: Callable[..., Site]) -> None:
    at = site()
    kept = masks_of("set", at)
    exchanged = [int((later & ~earlier).sum()) for earlier, later in itertools.pairwise(kept)]
    assert exchanged[0] > exchanged[1] and exchanged[-1] == 0  # after three quarters of the epochs


@pytest.mark.parametrize("kind", [Lottery, Refill])
def test_tickets_shrink_round_by_round(kind: Any, site: Callable[..., Site]) -> None:
    at, zeros = site(), []

    def train(name: str, *, on_epoch: Any = None, on_step: Any = None) -> None:
        at.train(name, on_epoch=on_epoch, on_step=on_step)
        weights = [each for each in at.network.parameters() if each.dim() > 1]
        zeros.append(sum(int((weight == 0).sum()) for weight in weights))

    kind(rounds=3).run(replace(at, train=train))
    assert zeros[0] < zeros[1] < zeros[2]


@pytest.mark.parametrize("name", ["set", "rigl", "sparse_momentum"])
def test_channels_return_and_compute_again(name: str, site: Callable[..., Site]) -> None:
    at = site()
    kept = masks_of(name, at)
    assert all(at.ranking.budget.fits(at.graph, at.graph.widths(keep)) for keep in kept)
    assert any(bool((later & ~earlier).any()) for earlier, later in itertools.pairwise(kept)), "some return"
    assert any(bool((earlier & ~later).any()) for earlier, later in itertools.pairwise(kept)), "for others"
    alive = sum(size_of(at.network, at.graph, torch.arange(len(kept[-1])) == c) > 0 for c in range(len(kept[-1])))
    assert alive == int(kept[-1].sum()), "what returned is there"


def test_three_ways_to_return_differ(site: Callable[..., Site]) -> None:
    found = [Regrow(by).run(site(by)).keep for by in ("random", "gradient", "momentum")]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_the_slope_of_a_gate_is_a_difference_of_losses(site: Callable[..., Site]) -> None:
    """Of channels switched on by a little, one by one, with everything else as it is."""
    at = site()
    start = copy.deepcopy(at.network).double()
    at = replace(at, network=at.network.double(), task=_Doubled())
    keep = torch.arange(at.graph.n_channels) % 3 > 0
    silence(at.network, at.graph, keep, ZEROED_ROLES)
    found = slopes(at, start, ~keep, 1)
    assert (found[~keep.numpy()] > 0).all(), "a ReLU at zero hides none"

    def loss(channel: int, z: float) -> float:
        probe = copy.deepcopy(at.network).train()
        for slot in at.graph.slots:
            if slot.role in ZEROED_ROLES:
                tensor, before = probe.get_parameter(slot.tensor).data, start.get_parameter(slot.tensor).data
                for column in slot.channels.T:
                    for other in (~keep).nonzero()[:, 0].tolist():
                        factor = (z if other == channel else 1e-3) if slot.role in ("norm", "shift") else 1.0
                        rows = (column == other).nonzero()[:, 0]
                        tensor.index_copy_(slot.dim, rows, factor * before.index_select(slot.dim, rows))
        return float(at.task.loss(probe).detach())

    for channel in (~keep).nonzero()[:, 0].tolist():
        slope = (loss(channel, 1e-3 + 1e-7) - loss(channel, 1e-3 - 1e-7)) / 2e-7
        assert found[channel] == pytest.approx(abs(slope), rel=0.02, abs=1e-6)


class _Doubled(ClassificationTask):
    def __init__(self) -> None: ...

    def loss(self, network: nn.Module) -> Tensor:
        images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return nn.functional.cross_entropy(network(images), torch.arange(32) % 10)


def test_momentum_is_of_the_groups_that_move_most(site: Callable[..., Site]) -> None:
    at = site()
    there = torch.arange(at.graph.n_channels) % 2 == 0
    optimizer = torch.optim.SGD(at.network.parameters(), lr=0.1, momentum=0.9)
    at.task.loss(at.network.train()).backward()
    optimizer.step()
    found = moved(at, [optimizer], there)
    for number in range(len(at.graph.groups)):
        inside = at.graph.group_of == number
        norms = []
        for channel in np.flatnonzero(inside & there.numpy()).tolist():
            squares = 0.0
            for slot in at.graph.slots:
                gradient = at.network.get_parameter(slot.tensor).grad if slot.role in ZEROED_ROLES else None
                if gradient is not None:
                    rows = (slot.channels == channel).any(1)
                    squares += float(gradient.movedim(slot.dim, 0)[rows].square().sum())
            norms.append(math.sqrt(squares))
        np.testing.assert_allclose(found[inside], sum(norms) / len(norms), rtol=1e-4)


def test_hesso_shrinks_along_a_line(site: Callable[..., Site]) -> None:
    """The filters that are to go lose their size step by step, and are zero at the next epoch's end."""
    at = site()
    norms: list[float] = []
    gone: list[Tensor] = []

    def watch(step: int) -> None:
        history = HeldPruning(at, lambda *_: torch.empty(0))
        if not gone and not history.kept_after(1).all():
            gone.append(~history.kept_after(1))
        if gone:
            norms.append(size_of(at.network, at.graph, gone[0]))

    at = replace(at, train=_watched(at, watch))
    Hesso().run(at)
    per_epoch = at.task.steps(at.stage) // int(EPOCHS)
    assert norms[0] > 0 and norms[per_epoch] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(norms[: per_epoch + 1]))
    assert norms[per_epoch // 2] == pytest.approx(norms[0] / 2, rel=0.5)


def test_oto_takes_channels_to_zero_along_a_line(site: Callable[..., Site]) -> None:
    """Without a gradient; channels are chosen after the first of five epochs, and zero at three quarters."""
    at = site()
    at.task.recipes["regularized"] = replace(at.task.recipes["regularized"], lr=0.0)  # type: ignore[attr-defined]
    norms: list[float] = []

    def watch(step: int) -> None:
        norms.append(size_of(at.network, at.graph, ~HeldPruning(at, lambda *_: torch.empty(0)).kept_after(1)))

    HalfSpace().run(replace(at, train=_watched(at, watch)))
    per_epoch = at.task.steps(at.stage) // int(EPOCHS)
    end = round(0.75 * EPOCHS * per_epoch)
    falling = np.array(norms[per_epoch - 1 : end])
    np.testing.assert_allclose(falling / falling[0], np.linspace(1, 0, len(falling)), atol=1e-5)
    assert falling[0] > 0 and not any(norms[end:])


def test_oto_projects_what_leaves_its_half_space(site: Callable[..., Site]) -> None:
    """Channels of one network that each moved in another way, with a quarter of the way to go."""
    at, moved = site(), {0: 1.0, 1: 1.5, 2: 0.5, 3: 0.2, -2: -0.5, -1: 0.3}
    expected = {0: 0.75, 1: 0.75, 2: 0.25, 3: 0.0, -2: 0.0, -1: 0.05}
    count = at.graph.n_channels
    own = {channel % count: number for channel, number in moved.items()}
    keep = torch.tensor([channel not in own for channel in range(count)])
    parameters = dict(at.network.named_parameters())
    written = [slot for slot in at.graph.slots if slot.role in ZEROED_ROLES and slot.tensor in parameters]
    with torch.no_grad():
        for slot in written:
            parameters[slot.tensor].fill_(1.0)
        going = Going(at.network, at.graph, keep)
        before = going.weights()
        for slot in written:
            rows = parameters[slot.tensor].movedim(slot.dim, 0)
            for row, channels in enumerate(slot.channels.tolist()):
                rows[row] = own.get(channels[0], 2.0)
        going.step(before, 0.25)
    seen = set()
    for slot in written:
        rows = parameters[slot.tensor].detach().movedim(slot.dim, 0)
        for row, channels in zip(rows, slot.channels.tolist(), strict=True):
            channel = next((each for each in expected if each % count == channels[0]), None)
            assert row.sub(2.0 if channel is None else expected[channel]).abs().max() < 1e-6
            seen.add(channel)
    assert seen >= {*expected}


@pytest.mark.parametrize("told", [1, 3])
def test_oto_ends_in_time_whatever_a_step_is(told: int, site: Callable[..., Site]) -> None:
    """Loops may tell of several steps for one of the optimiser, as when gradients accumulate."""
    at = site()
    at.task.recipes["regularized"] = replace(at.task.recipes["regularized"], lr=0.0)  # type: ignore[attr-defined]
    norms: list[float] = []

    def train(name: str, *, on_epoch: Any = None, on_step: Any = None) -> None:
        def more(step: int) -> None:
            for number in range(told * (step - 1) + 1, told * step + 1):
                on_step(number)
            norms.append(size_of(at.network, at.graph, ~HeldPruning(at, lambda *_: torch.empty(0)).kept_after(1)))

        site_train(name, on_epoch=on_epoch, on_step=more)

    site_train = at.train
    HalfSpace().run(replace(at, train=train))
    per_epoch = at.task.steps(at.stage) // int(EPOCHS)
    end = round(0.75 * EPOCHS * per_epoch)
    falling = np.array(norms[per_epoch:end])
    assert falling[0] > 0 and max(-np.diff(falling) / falling[0]) < 2.5 / (end - per_epoch)
    assert not any(norms[end:])


def test_learning_compression_pulls_harder_after_every_epoch(site: Callable[..., Site]) -> None:
    """Without a gradient, what an epoch left out loses all but exp(-mu) in the next; the rest stays as it was."""
    at = site()
    at.task.recipes["regularized"] = replace(at.task.recipes["regularized"], lr=0.0)  # type: ignore[attr-defined]
    norms: list[tuple[float, float]] = []

    def watch(step: int) -> None:
        keep = HeldPruning(at, lambda *_: torch.empty(0)).kept_after(1)
        norms.append((size_of(at.network, at.graph, ~keep), size_of(at.network, at.graph, keep)))

    LearningCompression(first=0.2, last=1.6).run(replace(at, train=_watched(at, watch)))
    per_epoch = at.task.steps(at.stage) // int(EPOCHS)
    out, kept = np.array(norms)[per_epoch - 1 :: per_epoch].T
    np.testing.assert_allclose(out[1:4] / out[:3], np.exp([-0.2, -0.4, -0.8]), rtol=1e-4)
    np.testing.assert_allclose(kept, kept[0])
    assert silent(at.network, at.graph, HeldPruning(at, lambda *_: torch.empty(0)).kept_after(5))


def test_learning_compression_may_change_its_mind(site: Callable[..., Site]) -> None:
    at = site()
    back: list[int] = []

    def grow(step: int) -> None:
        gone = (~HeldPruning(at, lambda *_: torch.empty(0)).kept_after(1)).nonzero()[:, 0]
        if len(gone) and not back:
            back.append(int(gone[0]))
            for slot in at.graph.slots:
                if slot.role in ZEROED_ROLES:
                    rows = (slot.channels == back[0]).any(1).nonzero()[:, 0]
                    at.network.get_parameter(slot.tensor).data.index_fill_(slot.dim, rows, 10.0)

    LearningCompression().run(replace(at, train=_watched(at, grow)))
    history = HeldPruning(at, lambda *_: torch.empty(0))
    assert not history.kept_after(1)[back[0]] and history.kept_after(2)[back[0]]


def _watched(at: Site, watch: Callable[[int], None]) -> Any:
    def train(name: str, *, on_epoch: Any = None, on_step: Any = None) -> None:
        def both(step: int) -> None:
            on_step(step)
            watch(step)

        at.train(name, on_epoch=on_epoch, on_step=both)

    return train


def size_of(network: nn.Module, graph: ChannelGraph, channels: Tensor) -> float:
    """The norm of what writes channels."""
    total = 0.0
    for slot in graph.slots:
        if slot.role in ZEROED_ROLES:
            rows = ~graph.kept(slot.channels, ~channels)
            total += float(network.get_parameter(slot.tensor).detach().movedim(slot.dim, 0)[rows].square().sum())
    return math.sqrt(total)


@pytest.mark.parametrize("early", [0, 2])
def test_a_ticket_is_the_early_network(early: int, site: Callable[..., Site]) -> None:
    at = site()
    start = {name: tensor.clone() for name, tensor in tensors_of(at.network).items()}
    seen: dict[int, dict[str, Tensor]] = {0: start}

    def train(name: str, *, on_epoch: Any = None, on_step: Any = None) -> None:
        def ended(epoch: int) -> None:
            if name == "round1":
                seen[epoch] = {key: tensor.clone() for key, tensor in tensors_of(at.network).items()}
            if on_epoch is not None:
                on_epoch(epoch)

        at.train(name, on_epoch=ended, on_step=on_step)

    Lottery(rounds=2, early=early).run(replace(at, train=train))
    assert all(torch.equal(tensor, seen[early][name]) for name, tensor in tensors_of(at.network).items())
    assert not all(torch.equal(tensor, seen[5][name]) for name, tensor in seen[early].items())


@pytest.mark.parametrize("schedule", [Lottery(rounds=2), Refill(rounds=2)])
def test_a_ticket_is_worth_what_it_was_before_it_was_rewound(schedule: Schedule, site: Callable[..., Site]) -> None:
    at, worth = site(), list[float]()

    def train(name: str, **hooks: Any) -> None:
        at.train(name, **hooks)
        worth.append(at.task.evaluate(at.network.eval(), "held_out").value)

    found = schedule.run(replace(at, train=train))
    rewound = at.task.evaluate(at.network.eval(), "held_out").value
    assert found.trained == worth[-1] != rewound and len(worth) == 2


def test_the_command_tells_what_a_ticket_was_worth(tiny: dict[str, Any], tmp_path: Path) -> None:
    class Told(Lottery):
        def run(self, site: Site) -> Pruned:
            return replace(super().run(site), trained=12.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEDULES, "lottery", Told(rounds=1))
        assert prune(settings(tiny, "lottery"), tmp_path, Silent()).rounds[0].trained == 12.5


@pytest.mark.parametrize("kind", [Lottery, Refill])
@pytest.mark.parametrize("early", [-1, 6])
def test_weights_are_rewound_to_an_epoch_that_there_is(
    kind: type[Lottery | Refill], early: int, site: Callable[..., Site]
) -> None:
    with pytest.raises(ConfigError, match=rf"^early must be one of the 5 epochs of a training, or 0, got {early}$"):
        kind(early=early).run(site())


class KeepsFiles(Schedule):
    """Of somebody else's: a file of its own, and no training."""

    def run(self, site: Site) -> Pruned:
        """Says which."""
        site.file("note.txt").write_text("a note")
        assert len(list(site.file("note.txt").parent.glob("*note.txt"))) == 1
        return Pruned(site.ranking.best(site.scores()))


def test_files_of_ones_own_go_once_a_result_is_kept(tiny: dict[str, Any], tmp_path: Path) -> None:
    prune(settings(tiny, f"{__name__}:KeepsFiles"), tmp_path, Silent())
    assert [file.suffix for file in (tmp_path / "rounds").iterdir()] == [".safetensors"]


class KeepsTheFirst(Schedule):
    """Of somebody else's: no training, and the first channels."""

    def run(self, site: Site) -> Pruned:
        """Says which."""
        site.train("trained")
        return Pruned(site.ranking.best(-np.arange(site.graph.n_channels, dtype=float) + site.graph.n_channels))


def test_a_schedule_of_ones_own(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = settings(tiny, f"{__name__}:KeepsTheFirst")
    result = prune(config, tmp_path, Silent())
    assert len(result.rounds) == 1 and result.rounds[0].macs <= 0.4 * result.dense_macs
    assert result.rounds[0].widths["conv1"] == result.dense_widths["conv1"]
    assert prune(config, tmp_path, Silent()) == result


def edited(folder: Path, text: str) -> str:
    """A module of the user's own, as it is imported in a process of its own."""
    (folder / "edited_by_hand.py").write_text(text)
    sys.modules.pop("edited_by_hand", None)
    importlib.invalidate_caches()
    return "edited_by_hand"


SCHEDULE = """
import numpy as np
from espalier.search.training.schedule import Pruned, Schedule

class Own(Schedule):
    def run(self, site):
        return Pruned(site.ranking.best(np.arange({0}, dtype=float)[::{1}].copy()))
"""


def test_results_of_an_edited_schedule_are_not_taken(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    channels, found = prepare(settings(tiny, "soft")).graph.n_channels, []
    for order in (1, -1, 1):
        config = settings(tiny, f"{edited(tmp_path, SCHEDULE.format(channels, order))}:Own")
        found.append(prune(config, tmp_path / "out", Silent()).rounds[0].widths)
    assert found[0] == found[2] != found[1]
    assert len(list((tmp_path / "out" / "rounds").glob("Own-*"))) == 2


class Returns(Schedule):
    """Something of somebody else's."""

    def __init__(self, make: Callable[[Site], Any]) -> None:
        self._make = make

    def run(self, site: Site) -> Pruned:
        """That thing."""
        return self._make(site)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            Returns(lambda site: Pruned(torch.ones(site.graph.n_channels, dtype=torch.bool))),
            r"^own keeps [\d,]+ MACs, where the budget has room for [\d,]+ MACs: let site\.ranking\.best choose",
        ),
        (Lottery(rounds=0), r"^own keeps [\d,]+ MACs, where the budget has room"),
        (Returns(lambda site: torch.ones(3)), r"^own must return a Pruned, got Tensor$"),
        (
            Returns(lambda site: Pruned(torch.ones(3))),
            r"^own must keep channels by a tensor of torch\.bool of shape \(\d+,\), got torch\.float32 of shape",
        ),
        (Returns(lambda site: Pruned([True])), r", got list$"),  # type: ignore[arg-type]
        (Returns(lambda site: 1 / 0), r"^own failed: ZeroDivisionError: division by zero at .*test_schedules"),
    ],
)
def test_what_a_schedule_ends_with_is_checked(schedule: Schedule, message: str, site: Callable[..., Site]) -> None:
    with pytest.raises(EspalierError, match=message):
        run_schedule("own", schedule, site())


class KeepsAll(Schedule):
    """Of somebody else's: more than the budget."""

    def run(self, site: Site) -> Pruned:
        """Everything."""
        return Pruned(torch.ones(site.graph.n_channels, dtype=torch.bool))


def test_the_command_cuts_nothing_that_is_beyond_the_budget(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EspalierError, match=r":KeepsAll keeps [\d,]+ MACs"):
        prune(settings(tiny, f"{__name__}:KeepsAll"), tmp_path, Silent())
    assert not list(tmp_path.rglob("KeepsAll*"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_command_prunes_by_it(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    result = prune(settings(tiny, name), tmp_path, Silent())
    assert result.rounds[0].macs <= 0.4 * result.dense_macs
    assert not list(tmp_path.rglob("*partial*"))
    assert prune(settings(tiny, name), tmp_path, Silent()) == result


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_package:Own",
            r"prune\.schedule must be package\.module:name, got 'no_such_package:Own' \(No module",
        ),
        (
            f"{__name__}:Returns",
            r"^prune\.schedule: .*:Returns\(\) raised TypeError: .*'make'.*made without arguments$",
        ),
        (f"{__name__}:Schedule", r"^prune\.schedule: .*:Schedule\(\) raised TypeError: .* abstract"),
        ("torch:nn", r"prune\.schedule: torch:nn must be a Schedule of .*, got <module"),
    ],
)
def test_what_is_no_schedule_is_told(name: str, message: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prune(settings(tiny, name), tmp_path, Silent())
    assert schedule_of("gradual") is SCHEDULES["gradual"]


def untrained() -> FunctionTask:
    """Of functions, which tell of no epochs."""

    def train(network: nn.Module, *, epochs: float, seed: int) -> None:
        raise AssertionError("nothing is to be trained")

    images = torch.zeros(4, 1, 8, 8)
    return FunctionTask(lambda network: 0.0, [images], train, example_inputs=images)


def of_functions(tiny: dict[str, Any], **sections: Any) -> Config:
    keys = ("model", "training", "regularizer", "finetune", "workers")
    given = {key: value for key, value in tiny.items() if key in keys}
    sections |= {"task": {"name": f"{__name__}:untrained"}, "budget": {"keep": 0.5}, "search": {"trials": 2}}
    given["training"] = {"epochs": 1}
    given["regularizer"] = {"strengths": [0.01], "epochs": 1}
    given["finetune"] = {"epochs": 1, "seeds": 1}
    return parse_config(given | sections, "mine")


def weight_normed() -> nn.Module:
    convolutions = [nn.utils.parametrizations.weight_norm(nn.Conv2d(size, 8, 3, padding=1)) for size in (1, 8)]
    layers = (convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 10))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", SCHEDULES)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    name: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    told = rf"{name} needs (a loss|the end of every epoch, which this task's training does not tell)"
    with pytest.raises(ConfigError, match=rf"^prune\.schedule: {told}"):
        prune(of_functions(tiny, prune={"schedule": name}), tmp_path, Silent())
    with pytest.raises(ConfigError, match=rf"^{told}"):
        methods = {"methods": ["greedy", name], "baseline": "greedy", "seeds": 1}
        compare(of_functions(tiny, compare=methods), name="c", out=tmp_path, command="")
    normed = tiny | {"model": {"name": f"{__name__}:weight_normed"}}
    with pytest.raises(ConfigError, match=r"a weight norm would divide by the norm of 0\.parametrizations\."):
        prune(settings(normed, name), tmp_path, Silent())


def test_an_unknown_name_is_told(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"prune\.schedule: unknown name 'gradul', did you mean 'gradual'\?"):
        settings(tiny, "gradul")


def test_several_processes_are_refused(site: Callable[..., Site]) -> None:
    at = site()
    assert isinstance(at.task, ClassificationTask)
    at = replace(at, task=SeveralProcesses(at.task.splits, at.task.recipes, 0))
    with pytest.raises(ConfigError, match=r"in one process: set training\.processes to 1$"):
        SCHEDULES["gradual"].run(at)
    assert not list(at.file("x").parent.glob(f"*{PARTIAL_HISTORY}"))
