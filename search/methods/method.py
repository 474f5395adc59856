"""The methods that are compared: how each chooses widths under a budget, and what that costs.

Every method knows the same networks, images and proxy, and cuts from the rungs that are open under a budget: one,
chosen by fine-tuning greedy and uniform pruning of each, or all of them where strengths are searched. Those that
search have so many evaluations; the others judge one candidate per rung; FastNAS judges widths of all groups.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.errors import EspalierError, raised
from espalier.persistence import record_from
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.slimming.surgery import assign, clone_structure
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.json_files import json_digest
from espalier.search.files.tensor_files import digest, load_tensors, save_tensors, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.space import Space
from espalier.search.study.ledger import MAX_FAILURES
from espalier.search.tasks.runner import tensor_of
from espalier.search.tasks.task import Array, Stage, Task

CHANNEL_SCORES = "espalier:worth"
"""In the file of a method's own network, beside its tensors: scores of its channels, (n_channels,)."""
ENERGY = "search.criterion"
"""The criterion that the search space ranks by, whatever the config says it is."""


@dataclass(frozen=True)
class Choice:
    """What a method chose.

    Attributes:
        candidate: rung and widths.
        criterion: that ranks channels inside their group, `ENERGY` or a name in `CRITERIA`.
        score: by the search's own proxy on the scoring images.
        evaluations: candidates scored.
        seconds: of the processor, that choosing took.
        history: value of each trial of a search, in order; the greater the better.
        importance: parameter of a search -> how far it decides what the best trials are, summing to 1.
        network: file in the run folder of the whole network that it cuts from, and of its channels' scores,
            where it trained one of its own; empty where it cuts from a rung.
        finalists: with their scores, the best first, and greedy pruning among or after them; of these fine-tuning
            will choose, and there are none once it has.
        tensors: what that file holds, until it is written.
    """

    candidate: Candidate
    criterion: str
    score: Score
    evaluations: int
    seconds: float
    history: tuple[float, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    network: str = ""
    finalists: tuple[tuple[Candidate, Score], ...] = ()
    tensors: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    def kept_in(self, out: Path) -> Self:
        """The same with its network in its file, in the driver's run folder."""
        if self.tensors is None:
            return self
        (out / self.network).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(out / self.network, dict(self.tensors), {})
        return replace(self, tensors=None)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; tensors are in the file."""
        return asdict(replace(self, tensors=None)) | {
            "candidate": self.candidate.key,
            "score": self.score.to_json(),
            "finalists": [[candidate.key, score.to_json()] for candidate, score in self.finalists],
        }

    def won_by(self, candidate: Candidate, seconds: float) -> Self:
        """The same once fine-tuning, which took so many seconds of the processor, has chosen a finalist."""
        score = dict(self.finalists)[candidate]
        return replace(self, candidate=candidate, score=score, seconds=self.seconds + seconds, finalists=())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        given = dict(content)
        given["candidate"] = Candidate.from_key(given["candidate"])
        given["score"] = Score.from_json(given["score"])
        given.pop("tensors", None)
        finalists = given.get("finalists", ())
        given["finalists"] = tuple((Candidate.from_key(key), Score.from_json(score)) for key, score in finalists)
        history = tuple(-math.inf if value is None else value for value in given["history"])
        return record_from(cls, given | {"history": history})


@dataclass(frozen=True)
class Material:
    """What all methods work with; sent to every worker once.

    Attributes:
        spec: networks, and the images that candidates are scored on.
        unseen: likewise, with held-out images that no search scores on.
        spaces: name of a budget -> what is searched under it.
        baselines: name of a budget -> the greedy pruning that is best under it once fine-tuned.
        baseline_seconds: likewise, of the processor, that choosing it took.
        channel_scores: criterion -> scores, (n_channels,) per rung; or why it does not apply here.
        trials: evaluations of a search.
        measure: of a score, that is compared.
        proxies: by which the best of a search are judged again on the unseen images.
        share: of the candidates of each rung of proxies, the most that rise.
        wanted: finalists of a search, at most; 0 where its proxy alone chooses, as in older comparisons.
        storage: Optuna URL where searches are kept, password and all: workers open it.
        study: what the names of their studies begin with.
        out: the run folder.
        configs: name of a budget -> the config, under that budget, as a study keeps it.
        attributes: of the studies, beside the config.
        max_failures: candidates that may fail in one search.
        knowledge: what a trained agent knows, for the agents that can begin with it.
        dense: tensors of the dense network, for methods that begin with it.
        training: task and stage of the ladder's trainings, for methods that train.
    """

    spec: EvaluationSpec
    unseen: EvaluationSpec
    spaces: Mapping[str, Space]
    baselines: Mapping[str, Candidate]
    baseline_seconds: Mapping[str, float]
    channel_scores: Mapping[str, Sequence[Floats] | str]
    trials: int
    measure: Metric
    proxies: Sequence[str]
    share: float
    wanted: int
    storage: str = field(repr=False)  # may hold a password
    study: str
    out: Path
    configs: Mapping[str, dict[str, Any]]
    attributes: Mapping[str, Any]
    max_failures: int = MAX_FAILURES
    knowledge: Mapping[str, Tensor] | None = None
    dense: Mapping[str, Array] = field(default_factory=dict)
    training: tuple[Task, Stage] | None = None

    def spec_of(self, choice: Choice) -> EvaluationSpec:
        """The spec by which what was chosen is cut."""
        if not choice.network:
            return self.ranked_by(choice.criterion)
        tensors = dict(choice.tensors or load_tensors(self.out / choice.network)[0])
        scores = tensors.pop(CHANNEL_SCORES).numpy()
        states = ({name: tensor.numpy() for name, tensor in tensors.items()},)
        return self.spec.of_networks(states, (self.spec.graph.ranks(scores),))

    def dense_network(self) -> nn.Module:
        """The dense network, a new one each time."""
        network = clone_structure(self.spec.skeleton)
        assign(network, {name: tensor_of(array).clone() for name, array in self.dense.items()}, {})
        return network.eval()

    def choice_of_own(self, name: str, network: nn.Module, keep: npt.NDArray[np.bool_], evaluations: int) -> Choice:
        """What a method chose that cuts a network of its own.

        Args:
            name: of what ranks channels inside their groups.
            network: the whole one.
            keep: bool (n_channels,), what it keeps of it.
            evaluations: candidates scored.
        """
        tensors = tensors_of(network) | {CHANNEL_SCORES: torch.from_numpy(keep).double()}
        file = f"peers/{digest(tensors)}.safetensors"
        candidate = Candidate(0, tuple(self.spec.graph.widths(torch.from_numpy(keep)).tolist()))
        chosen = Choice(candidate, name, Score({}, 0.0), evaluations, 0.0, network=file, tensors=tensors)
        return replace(chosen, score=Evaluator(self.spec_of(chosen))(candidate))

    def trained_once(
        self, what: str, depends_on: Sequence[Any], fails: str, train: Callable[[Path], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What a method's own training gives, kept in the run folder.

        Args:
            what: the file's name begins with.
            depends_on: all that the training depends on, as JSON.
            fails: the training's name in an error.
            train: file of a checkpoint -> tensors; what it keeps beside that file, by names that begin as its
                stem, goes with it.

        Raises:
            EspalierError: the training fails.
        """
        name = json_digest(depends_on, 16)
        path = self.out / "peers" / f"{what}-{name}.safetensors"
        if path.is_file():
            return load_tensors(path)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = path.with_suffix(PARTIAL)
        try:
            tensors = train(checkpoint)
        except (EspalierError, OSError):
            raise
        except Exception as error:  # whatever a user's training raises
            raise EspalierError(f"{fails} failed: {raised(error)}") from error
        save_tensors(path, tensors, {})
        for file in path.parent.glob(f"{checkpoint.stem}*"):
            file.unlink(missing_ok=True)
        return tensors

    def ranked_by(self, criterion: str) -> EvaluationSpec:
        """The spec whose candidates keep the channels that a criterion ranks first."""
        if criterion == ENERGY:
            return self.spec
        return replace(
            self.spec, ranks=tuple(self.spec.graph.ranks(scores) for scores in self.scores_by(criterion))
        )

    def scores_by(self, criterion: str) -> Sequence[Floats]:
        """Scores of channels by a criterion, (n_channels,) per rung.

        Raises:
            EspalierError: it does not apply to this network.
        """
        found = self.channel_scores[criterion]
        if isinstance(found, str):
            raise EspalierError(found)
        return found

    def best(self, candidates: Sequence[Candidate], criterion: str = ENERGY, spent: int = 0) -> Choice:
        """The candidate that scores best, the first among equals."""
        evaluator = Evaluator(self.ranked_by(criterion))
        scores = {candidate: evaluator(candidate) for candidate in dict.fromkeys(candidates)}
        values = {candidate: score.value(self.measure) for candidate, score in scores.items()}
        chosen = max(values, key=lambda candidate: (not math.isnan(values[candidate]), values[candidate]))
        return Choice(chosen, criterion, scores[chosen], spent + len(scores), 0.0)


class Method(ABC):
    """A way to choose widths."""

    words: str
    """What it does, for people."""
    searches = False
    """Whether it spends the evaluations of a search."""
    seeded = False
    """Whether its choice depends on the seed; otherwise one choice serves all seeds."""
    criterion: str = ENERGY
    """By which channels are ranked inside their groups."""
    own_network = False
    """Whether it cuts from a network of its own, and begins with the dense one."""
    trains = False
    """Whether it trains one."""

    def check(self) -> None:
        """Whether what it needs is installed.

        Raises:
            MissingPackage: something is not.
        """
        return None

    def check_on(self, task: Task, graph: ChannelGraph) -> None:
        """Whether it can be used on a task and a network.

        Raises:
            ConfigError: it cannot.
        """
        return None

    @abstractmethod
    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Chooses under one of the material's budgets."""


def filled(space: Space, rung: int, scores: Floats) -> Candidate:
    """The candidate that greedy fill gives for scores (n_channels,) of a rung."""
    return Candidate(rung, tuple(space.filled(scores).tolist()))
