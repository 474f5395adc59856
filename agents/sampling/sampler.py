"""An agent as an Optuna sampler: usable in anybody's study.

One trial is one episode. The study's trials are the truth: an agent learns from those that are COMPLETE, in the
order in which they finished, with draws that depend on the seed and on how many there were. So a resumed study
rebuilds the agent that an uninterrupted one would have, and a checkpoint beside the storage only saves time.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import Axis
from espalier.agents.algorithms.kinds import Kind, make_agent
from espalier.agents.common.buffers import Episode
from espalier.agents.common.log import Log
from espalier.agents.graph.network_graph import NetworkData
from espalier.agents.sampling.vectors import Ranges, problem_of, searched, values_of, vector_of
from espalier.agents.training.training import save
from espalier.optuna_private import FIXED, id_of_trial, storage_of

ACTION = "espalier:agent"
"""System attribute of a trial that an agent proposed: action, log-probabilities, and the trial that it began at."""

EVERY = 20
"""Episodes between checkpoints."""


class AgentSampler(BaseSampler):
    """Rolls out in `sample_relative`, learns in `after_trial` and from what other processes have told meanwhile.

    What an agent learns from is what was carried out: the trial's own parameters, clipped and rounded. An agent
    begins at the best of the trials that were COMPLETE when it made its first proposal, such as enqueued ones; a
    trained one too, so that what it took for best on other networks counts as far as it was.
    On-policy agents learn nothing else from what others proposed, off-policy agents do. Trials that failed or were
    pruned are passed over.

    Args:
        data: of `network_graph`; its first nodes are the groups.
        groups: their names, which are the names of the parameters that they set.
        agent: a name in `espalier.agents.algorithms.kinds.AGENTS`.
        seed: of the agent's start and of its draws.
        axes: parameter -> what it moves, where that is not the group of its name.
        space: parameter -> range, where a study's first trial is to be the agent's already; otherwise what all
            trials have in common, the first of which is drawn at random.
        pretrained: what a trained agent knows, of `espalier.agents.training.transfer.load_knowledge`; for
            one-shot agents.
        start: parameters that a trained agent takes its proposals to be about.
        checkpoint: file for the agent's state.
        log: told of every update.
    """

    def __init__(
        self,
        data: NetworkData,
        groups: Sequence[str],
        *,
        agent: str = "ppo",
        seed: int,
        axes: Mapping[str, Axis] | None = None,
        space: Ranges | None = None,
        pretrained: Mapping[str, Tensor] | None = None,
        start: Mapping[str, Any] | None = None,
        checkpoint: Path | None = None,
        log: Log | None = None,
    ) -> None:
        self._data, self._kind, self._seed = data, agent, seed
        self._axes = {name: Axis((node,), "scale") for node, name in enumerate(groups)} | dict(axes or {})
        self._given = None if space is None else searched(space)
        self._intersection = IntersectionSearchSpace()
        self._pretrained, self._start = pretrained, start
        self._checkpoint, self._log = checkpoint, log
        self._lock = threading.RLock()
        self._space: Ranges = {}
        self._begun: int | None = None  # number of the trial that the agent began at
        self._learned: list[int] = []  # numbers of the trials learned from
        self._fitting: dict[int, bool] = {}  # id of a trial -> whether it has the space's numbers
        self._made: Kind | None = None
        self._study = ""  # name of the one that the agent learns from

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    # -- what Optuna calls

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The numbers that are searched; what is categorical is drawn at random."""
        found = self._given if self._given is not None else searched(self._intersection.calculate(study))
        return dict(found)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A whole vector; nothing for a trial that was enqueued with one."""
        if not search_space or search_space.keys() <= trial.system_attrs.get(FIXED, {}).keys():
            return {}
        with self._lock:
            space = searched(search_space)
            drawn = trial.system_attrs.get(ACTION)
            if drawn is not None and len(drawn["action"]) == len(space):  # by a driver that has died
                return values_of(space, torch.tensor(drawn["action"]))
            made = self._follow(study, space)
            vector, log_probs = self._rollout(made, space, np.random.default_rng([self._seed, trial.number]))
            note = {"action": vector.tolist(), "log_probs": log_probs, "begun": self._begun}
            storage_of(study).set_trial_system_attr(id_of_trial(trial), ACTION, note)
            return values_of(space, vector)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random: what is not searched by the agent, and the first trial where the space is not given."""
        stream = np.random.SeedSequence([self._seed, trial.number, zlib.crc32(param_name.encode())])
        sampler = RandomSampler(seed=int(stream.generate_state(1)[0]))  # each trial its own stream
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Learns from the trial, and from what else has finished."""
        with self._lock:
            if self._made is not None and state is TrialState.COMPLETE and values:
                self._follow(study, self._space, (trial, float(values[0])))

    def proposal(self, study: optuna.Study) -> dict[str, Any]:
        """What the agent thinks best after all trials that have finished: its own parameters, without exploring."""
        with self._lock:
            space = self._given if self._given is not None else searched(self._intersection.calculate(study))
            return values_of(space, self._rollout(self._follow(study, space), space, None)[0])

    # -- the agent

    def _rollout(
        self, made: Kind, space: Ranges, rng: np.random.Generator | None
    ) -> tuple[Tensor, list[float] | None]:
        """A vector as it will be carried out, (d,) in [-1, 1], and log-likelihoods of the episode's actions."""
        agent, walk = made
        actions: list[Tensor] = []
        for _ in range(walk.steps):
            actions.append(agent.act(walk.observations(actions), rng))
        vector = vector_of(space, values_of(space, torch.cat(actions)))
        found = agent.log_probs(*walk.episode(vector))
        return vector, None if found is None else found.tolist()

    def _follow(self, study: optuna.Study, space: Ranges, told: tuple[FrozenTrial, float] | None = None) -> Kind:
        """The agent after all that has finished, and after a trial that finishes now."""
        trials = study.get_trials(deepcopy=False)
        if list(space.items()) != list(self._space.items()):
            self._space, self._made, self._fitting = dict(space), None, {}
        finished = [trial for trial in trials if trial.state is TrialState.COMPLETE and self._is_of(trial)]
        finished.sort(key=_moment)
        numbers = [trial.number for trial in finished]
        if told is not None and self._is_of(told[0]):
            numbers.append(told[0].number)
        if self._made is None or numbers[: len(self._learned)] != self._learned:
            self._begin(study, trials, finished, numbers)
        assert self._made is not None
        sign = 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0
        known = {trial.number: trial for trial in finished}
        for number in numbers[len(self._learned) :]:
            own = told is not None and number == told[0].number
            trial, value = told if own and told is not None else (known[number], known[number].value)
            self._learn(trial, sign * float(value or 0.0))
        return self._made

    def _is_of(self, trial: FrozenTrial) -> bool:
        """Whether a trial that is all drawn has all numbers of the space, from these ranges."""
        if id_of_trial(trial) not in self._fitting:
            found = trial.distributions
            self._fitting[id_of_trial(trial)] = all(found.get(name) == known for name, known in self._space.items())
        return self._fitting[id_of_trial(trial)]

    def _learn(self, trial: FrozenTrial, reward: float) -> None:
        assert self._made is not None
        if not math.isfinite(reward):  # an overflow says nothing of how much worse it is
            self._learned.append(trial.number)
            return
        agent, walk = self._made
        vector = vector_of(self._space, trial.params)
        observations, actions = walk.episode(vector)
        note = trial.system_attrs.get(ACTION)
        drawn = (
            note is not None and np.allclose(note["action"], vector, atol=1e-4) and note["log_probs"] is not None
        )
        log_probs = torch.tensor(note["log_probs"]) if note is not None and drawn else None
        rewards = torch.zeros(walk.steps)
        rewards[-1] = reward
        rng = np.random.default_rng([self._seed, len(self._learned), 1])
        logged = agent.learn(Episode(observations, actions, rewards, log_probs), rng)
        self._learned.append(trial.number)
        if logged and self._log is not None:
            self._log.write(len(self._learned), logged | {"reward": reward})
        if self._checkpoint is not None and len(self._learned) % EVERY == 0:
            self._save(self._checkpoint)

    def _begin(
        self,
        study: optuna.Study,
        trials: Sequence[FrozenTrial],
        finished: Sequence[FrozenTrial],
        numbers: Sequence[int],
    ) -> None:
        """Makes the agent where it began when it began; from a checkpoint if that is of this study's past."""
        earlier = next(
            (trial.system_attrs[ACTION]["begun"] for trial in trials if ACTION in trial.system_attrs), -1
        )
        known = {trial.number: trial for trial in trials}
        if earlier is None or (earlier in known and self._is_of(known[earlier])):
            self._begun = earlier
        else:
            sign = 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0
            best = max(finished, key=lambda trial: (sign * float(trial.value or 0.0), -trial.number), default=None)
            self._begun = None if best is None else best.number
        begun = None if self._begun is None else known[self._begun].params
        self._learned, self._study = [], study.study_name
        problem = problem_of(self._data, self._axes, self._space, self._start or begun)
        vector = None if begun is None else vector_of(self._space, begun)
        self._made = make_agent(self._kind, problem, self._seed, self._pretrained, vector)
        if self._checkpoint is not None and self._checkpoint.is_file():
            self._load(self._checkpoint, numbers)

    # -- checkpoints

    def _key(self) -> list[Any]:
        begun = [self._begun, repr(self._start), self._pretrained is not None]
        return [self._study, self._kind, self._seed, *begun, *self._space]

    def _save(self, path: Path) -> None:
        assert self._made is not None
        save(path, {"key": self._key(), "learned": self._learned, "agent": self._made.agent.state_dict()})

    def _load(self, path: Path, numbers: Sequence[int]) -> None:
        assert self._made is not None
        state = torch.load(path, weights_only=True)
        if state["key"] == self._key() and list(numbers[: len(state["learned"])]) == state["learned"]:
            self._made.agent.load_state_dict(state["agent"])
            self._learned = state["learned"]


def _moment(trial: FrozenTrial) -> tuple[float, int]:
    """When a trial finished, in seconds since 1970: moments are local, and one hour of autumn comes twice."""
    moment = trial.datetime_complete or trial.datetime_start
    return (0.0 if moment is None else moment.timestamp(), trial.number)
