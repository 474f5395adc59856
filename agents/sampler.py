"""An agent as an Optuna sampler: usable in anybody's study.

One trial is one episode: the actor looks at the network graph and emits the whole vector. It learns from the
study's finished trials alone, so a resumed study rebuilds it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor
from torch_geometric.data import Data

from espalier.agents.actor import OneShotActor, ppo_update

ACTION, LOG_PROB = "espalier:agent:action", "espalier:agent:log_prob"

BATCH = 16
"""Finished trials per update."""


class AgentSampler(BaseSampler):
    """PPO with a GNN over the network graph, one number per group and trial.

    Every trial that the agent proposed carries its action and log-probability; when `BATCH` more of them are
    COMPLETE, in the order of their numbers, it learns from these. Trials that others proposed (enqueued points)
    are left out, as they were not drawn from the agent's distribution. Failed trials are passed over.

    Args:
        data: of `network_graph`; its first nodes are the groups.
        groups: their names, which are the names of the parameters that they set.
        seed: of the actor's start and of its draws.
        learning_rate: of Adam.
    """

    def __init__(self, data: Data, groups: Sequence[str], *, seed: int, learning_rate: float = 0.005) -> None:
        self._data, self._groups, self._seed, self._learning_rate = data, list(groups), seed, learning_rate
        self._space = IntersectionSearchSpace()
        self._learned: list[int] = []  # numbers of the trials learned from
        self._names: list[str] = []
        self._actor: OneShotActor | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Numbers; what is categorical is drawn at random."""
        space = self._space.calculate(study)
        return {
            n: d for n, d in space.items() if isinstance(d, FloatDistribution | IntDistribution) and not d.single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Learns from what has finished, then draws the whole vector."""
        if not search_space:
            return {}
        groups = [name for name in self._groups if name in search_space]
        if len(groups) != len(self._groups):
            return {}  # not the space that the graph describes
        self._names = groups + sorted(search_space.keys() - set(groups))
        self._learn(study)
        assert self._actor is not None
        with torch.no_grad():
            distribution = self._actor(self._data)
            noise = np.random.default_rng([self._seed, trial.number]).standard_normal(len(self._names))
            drawn = distribution.mean + distribution.stddev * torch.from_numpy(noise).float()
            action, values = self._execute(drawn, search_space)
            log_prob = distribution.log_prob(action).sum()
        storage = study._storage
        storage.set_trial_system_attr(trial._trial_id, ACTION, action.tolist())
        storage.set_trial_system_attr(trial._trial_id, LOG_PROB, float(log_prob))
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random: for the first trial of a study, and for categorical parameters."""
        stream = np.random.SeedSequence([self._seed, trial.number, zlib.crc32(param_name.encode())])
        sampler = RandomSampler(seed=int(stream.generate_state(1)[0]))  # each trial its own stream
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _execute(self, drawn: Tensor, space: Mapping[str, BaseDistribution]) -> tuple[Tensor, dict[str, Any]]:
        """The action as it is carried out, clipped and rounded, in [-1, 1]; and the values that it means."""
        action, values = [], {}
        for name, number in zip(self._names, drawn.clamp(-1, 1).tolist(), strict=True):
            distribution = space[name]
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            middle, half = (distribution.high + distribution.low) / 2, (distribution.high - distribution.low) / 2
            value = middle + half * number
            if isinstance(distribution, IntDistribution):
                value = int(np.clip(round(value), distribution.low, distribution.high))
            values[name] = value
            action.append((value - middle) / half)
        return torch.tensor(action), values

    def _learn(self, study: optuna.Study) -> None:
        sign = 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0
        finished = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(trial.system_attrs.get(ACTION, ())) == len(self._names)
        ]
        if self._actor is None or [t.number for t in finished[: len(self._learned)]] != self._learned:
            self._begin()  # a late result came in between: learn again, in the order that a resumed study would
        assert self._actor is not None and self._optimizer is not None
        while len(finished) >= len(self._learned) + BATCH:
            batch = finished[len(self._learned) : len(self._learned) + BATCH]
            ppo_update(
                self._actor,
                self._optimizer,
                self._data,
                torch.tensor([trial.system_attrs[ACTION] for trial in batch]),
                torch.tensor([trial.system_attrs[LOG_PROB] for trial in batch]),
                [sign * (trial.value or 0.0) for trial in batch],
            )
            self._learned += [trial.number for trial in batch]

    def _begin(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._actor = OneShotActor(len(self._groups), len(self._names) - len(self._groups))
        self._optimizer = torch.optim.Adam(self._actor.parameters(), lr=self._learning_rate)
        self._learned = []
