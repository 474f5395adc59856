"""The search on Ray Tune.

Ours, and not Tune's own OptunaSearch, is the searcher: Optuna's storage alone says what was asked and told, and
a resumed search opens it with a fresh Tuner. A Tune trial is a *chunk* of candidates, so that Tune's cost per
trial is small beside the evaluations, and its actor is used again by the next one.
"""

from __future__ import annotations

import math
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig
from ray.tune.search import Searcher

from espalier.errors import EspalierError
from espalier.search.bench import EvaluationSpec
from espalier.search.candidate import Candidate, Score
from espalier.search.evaluation import Evaluator
from espalier.search.progress import Meter
from espalier.search.study import Ledger, Proposal

CHUNK_SECONDS = 2.0
"""Evaluation time that a chunk aims at: Tune spends about 0.1 s on each."""
MAX_CHUNK = 16


def search_on_ray(
    ledger: Ledger, spec: EvaluationSpec, workers: int, meter: Meter, *, cpus_per_worker: float = 1.0
) -> None:
    """Evaluates candidates on `workers` actors until the study has its trials.

    Args:
        ledger: signed in.
        spec: what the workers need; put into the object store once.
        workers: evaluations at a time.
        meter: told the finished trials and the best value.
        cpus_per_worker: that each actor reserves.

    Raises:
        EspalierError: Tune stopped before the study had its trials, or too many candidates failed.
        KeyboardInterrupt: passed on; what was told by then is kept.
    """
    if ledger.complete >= ledger.target:
        ledger.report(meter)
        return
    searcher = _LedgerSearcher(ledger, meter, workers)
    trainable = tune.with_resources(tune.with_parameters(_ChunkTrainable, spec=spec), {"cpu": cpus_per_worker})
    with tempfile.TemporaryDirectory(prefix="espalier-tune-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_name_creator=_short_name,
                trial_dirname_creator=_short_name,
            ),
            run_config=RunConfig(
                storage_path=folder,
                verbose=0,
                failure_config=FailureConfig(max_failures=1),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        with _remember_interrupt() as interrupted:
            tuner.fit()
    ledger.report(meter)
    if searcher.error is not None:
        raise searcher.error
    if ledger.complete < ledger.target:
        if interrupted():
            raise KeyboardInterrupt
        raise EspalierError(
            f"Ray Tune stopped after {ledger.complete} of {ledger.target} trials; resume the study to go on"
        )


def _short_name(trial: Any) -> str:
    return f"chunk-{trial.trial_id}"


@contextmanager
def _remember_interrupt() -> Iterator[Callable[[], bool]]:
    """Tune takes Ctrl-C for a wish to stop, and returns as if all were done: this remembers that it came."""
    import signal

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: Any) -> None:
        seen.set()
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield seen.is_set
    finally:
        if signal.getsignal(signal.SIGINT) is remember:
            seen.set()  # Tune had put its own handler in place of this one, and puts this one back on a signal
        signal.signal(signal.SIGINT, previous)


class _ChunkTrainable(tune.Trainable):
    """An actor that scores the candidates of one chunk after another."""

    def setup(self, config: dict[str, Any], spec: EvaluationSpec) -> None:  # type: ignore[override]
        torch.set_num_threads(1)
        self._evaluator = Evaluator(spec)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        results = []
        for number, key in self.config["chunk"]:
            try:
                score = self._evaluator(Candidate.from_key(key))
            except Exception as error:  # the candidate's failure, not the actor's
                results.append({"number": number, "error": f"{type(error).__name__}: {error}"})
            else:
                results.append({"number": number, "score": score.to_json()})
        return {"results": results, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep: the storage has it all."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""


class _LedgerSearcher(Searcher):
    """Hands chunks of proposals to Tune and tells their scores to the ledger."""

    def __init__(self, ledger: Ledger, meter: Meter, workers: int) -> None:
        super().__init__(metric=None, mode=None)
        self._ledger, self._meter, self._workers = ledger, meter, workers
        self._chunks: dict[str, dict[int, Proposal]] = {}
        self._seconds = math.inf  # per candidate; the first chunks hold one each
        self.error: EspalierError | None = None

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self.error is not None or self._ledger.complete >= self._ledger.target:
            return Searcher.FINISHED
        chunk: dict[int, Proposal] = {}
        while len(chunk) < self._chunk_size():
            try:
                proposal = self._ledger.ask()
            except EspalierError as error:
                self._give_up(error)
                return Searcher.FINISHED
            if proposal is None:
                break
            chunk[proposal.number] = proposal
        if not chunk:
            return Searcher.FINISHED if self._ledger.complete >= self._ledger.target else None
        self._chunks[trial_id] = chunk
        return {"chunk": [(number, proposal.candidate.key) for number, proposal in chunk.items()]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._tell(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False, **_: Any
    ) -> None:
        self._tell(trial_id, result or {})
        for proposal in self._chunks.pop(trial_id, {}).values():
            self._fail(proposal, "its worker died twice")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the storage has it all, and Tune, which pickles its searcher, must not write its URL down."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
        with open(checkpoint_path, "wb"):
            pass

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""

    def _tell(self, trial_id: str, result: dict[str, Any]) -> None:
        chunk = self._chunks.get(trial_id, {})
        for entry in result.get("results", ()):
            proposal = chunk.pop(entry["number"], None)
            if proposal is None:
                continue
            if "error" in entry:
                self._fail(proposal, entry["error"])
                continue
            score = Score.from_json(entry["score"])
            self._seconds = (
                score.seconds if self._seconds == math.inf else 0.9 * self._seconds + 0.1 * score.seconds
            )
            try:
                self._ledger.tell(proposal, score)
            except EspalierError as error:
                self._give_up(error)
        self._ledger.report(self._meter)

    def _fail(self, proposal: Proposal, reason: str) -> None:
        try:
            self._ledger.fail(proposal, reason)
        except EspalierError as error:
            self._give_up(error)

    def _give_up(self, error: EspalierError) -> None:
        self.error = self.error or error  # the first one: what is under way may fail too

    def _chunk_size(self) -> int:
        """As many candidates as fill a chunk's time, but no more than the workers' share of what is left."""
        share = math.ceil((self._ledger.target - self._ledger.complete) / (2 * self._workers))
        return max(1, min(int(CHUNK_SECONDS / self._seconds), MAX_CHUNK, share))
