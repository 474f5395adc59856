"""``espalier agents train``: one agent for several networks and budgets, on rewards that cost little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from espalier.agents.common.log import Log
from espalier.agents.sampling.vectors import searched, values_of, vector_of
from espalier.agents.training.transfer import Task, pretrain, save_knowledge
from espalier.errors import ConfigError
from espalier.search.cluster.process_settings import computing
from espalier.search.config.loading import Config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Reporter
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import prepare
from espalier.search.samplers.agents import agent_problem
from espalier.search.samplers.surrogate import Surrogate, features
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space

Evaluate = Callable[[Candidate], float]


@computing()
def train_agent(
    configs: Sequence[tuple[str, Config]],
    out: Path,
    *,
    episodes: int,
    seed: int,
    reporter: Reporter,
    surrogate: int | None = None,
) -> Path:
    """Trains an agent and writes ``agent.safetensors``; goes on where a run in the same folder stopped.

    Args:
        configs: name and settings of every network and budget. Networks of one name share their ladder.
        out: folder for ladders, checkpoint, log and the agent.
        episodes: per network and budget.
        seed: of the agent.
        reporter: told the progress.
        surrogate: after so many evaluations of a task, a Gaussian process fitted to them scores its candidates.

    Returns:
        The file.

    Raises:
        ConfigError: two configs have the same name and other networks or data.
    """
    tasks = [task_of(name, config, out / name, reporter, surrogate) for name, config in configs]
    reporter.say(f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}: " + ", ".join(task.name for task in tasks))
    network = pretrain(tasks, episodes, seed=seed, log=Log(out / "log"), checkpoint=out / "agent.part.pt")
    path = out / "agent.safetensors"
    save_knowledge(path, network)
    return path


def task_of(name: str, config: Config, folder: Path, reporter: Reporter, surrogate: int | None = None) -> Task:
    """A network under the tightest budget of its config, scored on its held-out images by its proxy.

    Its strength is the one that a search would have.
    """
    experiment = Experiment(config, prepare(config), folder, reporter)
    if config.budget.front:
        raise ConfigError(f"{name} asks for a front of budgets; an agent is trained under one at a time")
    experiment.train_ladder()
    experiment.settle_execution(unrecorded)
    budget = experiment.prepared.budget
    space = experiment.choose_spaces([budget], unrecorded)[budget]
    evaluator = Evaluator(experiment.spec)

    def score(candidate: Candidate) -> float:
        return evaluator(candidate).value(experiment.measure)

    return Task(
        f"{name} at {config.budget.words()}",
        agent_problem(space),
        rewards(space, score if surrogate is None else Learned(space, score, surrogate)),
    )


def rewards(space: Space, score: Evaluate) -> Callable[[Tensor], tuple[Tensor, float]]:
    """From a vector in [-1, 1] to what is carried out of it, and its score; each candidate is scored once."""
    numbers, fixed = searched(space.distributions()), space.greedy_params()[0]
    known: dict[Candidate, float] = {}

    def evaluate(vector: Tensor) -> tuple[Tensor, float]:
        params = fixed | values_of(numbers, vector)
        candidate = space.decode(params)
        if candidate not in known:
            known[candidate] = score(candidate)
        return vector_of(numbers, params), known[candidate]

    return evaluate


class Learned:
    """Scores by a Gaussian process once enough candidates were evaluated, in units of their normal scores.

    Args:
        space: of the candidates.
        score: evaluates one.
        after: evaluations, those on record counted.
        recorded: keys of candidates that were scored before, and their scores.
    """

    def __init__(
        self, space: Space, score: Evaluate, after: int, recorded: Mapping[str, float] | None = None
    ) -> None:
        self._space, self._score, self._after = space, score, after
        self._scored: dict[str, float] = dict(recorded or {})
        self._surrogate: Surrogate | None = None

    def __call__(self, candidate: Candidate) -> float:
        """The score, evaluated or predicted."""
        if len(self._scored) < self._after:
            self._scored[candidate.key] = self._score(candidate)
            return self._scored[candidate.key]
        if self._surrogate is None:
            values = np.array(list(self._scored.values()))
            self._surrogate = Surrogate(self._features(list(self._scored)), values)
        mean, _ = self._surrogate(self._features([candidate.key]))
        return float(mean[0])

    def _features(self, keys: list[str]) -> np.ndarray:
        return features(keys, self._space.graph.sizes, self._space.rungs)
