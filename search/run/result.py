"""What a run found: ``result.json``, the table on the terminal, and the verdict in a sentence."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from espalier.errors import ArtefactError
from espalier.search.files.json_files import read_json, write_json
from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import FEWEST, Paired
from espalier.search.study.pareto_front import Point
from espalier.search.study.run_folder import is_shared


@dataclass(frozen=True)
class Outcome:
    """One network: dense, greedy or searched.

    Attributes:
        macs: per example.
        params: number of parameters.
        held_out: by the task's metric on the scoring examples, before fine-tuning; NaN where the proxy is silent.
        before: likewise on the test split.
        after: likewise on it after fine-tuning, mean over seeds; the dense network is not fine-tuned.
        after_seeds: the same per seed.
        widths: group name -> channels kept.
        strength: regularisation strength of the rung it was cut from.
        bits: layer -> bits that it computes in, of those in fewer than float32.
    """

    macs: int
    params: int
    held_out: float
    before: float
    after: float
    after_seeds: tuple[float, ...]
    widths: dict[str, int]
    strength: float
    bits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        metric: what networks are measured by.
        tested: whether they were measured on a test split; else on what the search scored on.
        finetuned: whether there was fine-tuning.
        dense: the unpruned network.
        greedy: the best greedy global pruning, by held-out examples once fine-tuned with the first seed.
        searched: the winner of the search.
        budget: metric -> limit, that neither exceeds.
        binding: the metric of which the searched network uses the greatest share of its limit.
        verdict: whether the search was worth it, in a sentence.
        trials: finished candidates.
        promotion: per proxy that judged the best candidates again: how many, and the rank correlation of the two.
        seeds: of the study and of the fine-tuning.
        execution: how candidates were run: batch size, memory format, precision.
        seconds: per stage of the run that ended.
        versions: of what computed it.
        study: name of the study.
        artefact: path of the pruned network.
        front: of a search between budgets, its `front.Point`s.
        others: results under the other budgets, where several were asked for, the widest first.
        latency: where it is limited: the device, the limit, and what each network takes, measured and modelled.
        headroom: what the search took of it, where `espalier headroom` found some in the same folder.
        supernet: what shared weights were used for; empty where there were none.
        remark: what makes the verdict worth little, if anything.
    """

    metric: Metric
    tested: bool
    finetuned: bool
    dense: Outcome
    greedy: Outcome
    searched: Outcome
    budget: dict[str, int]
    binding: str
    verdict: str
    trials: int
    promotion: list[dict[str, Any]]
    seeds: dict[str, Any]
    execution: dict[str, Any]
    seconds: dict[str, float]
    versions: dict[str, str]
    study: str
    artefact: str
    front: tuple[Point, ...] = ()
    others: tuple[Result, ...] = ()
    latency: dict[str, Any] | None = None
    headroom: str = ""
    supernet: str = ""
    remark: str = ""

    def summary(self) -> dict[str, Any]:
        """What a study remembers of it: all but the widths of every group, which its trials hold."""
        outcomes = {}
        for name in ("dense", "greedy", "searched"):
            outcome = asdict(getattr(self, name))
            del outcome["widths"]
            outcomes[name] = outcome
        kept = ("budget", "binding", "verdict", "trials", "artefact")
        others = [other.summary() for other in self.others]
        return (
            {"metric": asdict(self.metric)}
            | outcomes
            | {name: getattr(self, name) for name in kept}
            | ({"others": others} if others else {})
        )

    def write(self, path: Path) -> None:
        """Writes ``result.json``."""
        write_json(path, asdict(self))


def ending_of(folder: Path, study: str) -> str:
    """What the names of a study's result and networks end in: its name, where another study's result is there."""
    if not is_shared(folder):  # a study may have another name by now
        return ""
    try:
        there: Any = read_json(folder / "result.json")
    except ArtefactError:  # damaged, and written anew
        return ""
    if not isinstance(there, dict) or there.get("study", study) == study:
        return ""
    return "-" + re.sub(r"[^\w.-]", "_", study)


def words_of(metric: Metric, tested: bool, finetuned: bool) -> str:
    """What networks are compared by, such as ``test top-1 after fine-tuning``."""
    return ("test " if tested else "") + metric.title + (" after fine-tuning" if finetuned else "")


def spoiled(network: str, runs: Iterable[tuple[float, float]], metric: Metric) -> str:
    """A sentence where fine-tuning made a network worse, beyond what seeds differ by; else nothing.

    Args:
        network: its name.
        runs: what it was worth before and after, per seed; one seed tells nothing.
        metric: of these.
    """
    lost = [metric.value(before) - metric.value(after) for before, after in runs]
    if len(lost) < 2 or min(lost) <= 0 or statistics.mean(lost) <= 2 * statistics.stdev(lost):
        return ""
    return f"Fine-tuning made {network} worse than it was right after the cut: check its settings."


def verdict(found: Paired, same: bool, metric: Metric, *, tested: bool = True, finetuned: bool = True) -> str:
    """Whether the searched network beats the greedy one.

    Args:
        found: their difference, searched minus greedy, greater is better, paired by seed.
        same: whether the two have the same widths and strength.
        metric: what they are measured by.
        tested: on the test split.
        finetuned: after fine-tuning.
    """
    if same:
        how = "was better once fine-tuned" if finetuned else "scored better"
        return f"The search keeps the widths of greedy global pruning: on held-out data no candidate {how}."
    what = words_of(metric, tested, finetuned)
    seeds = f"{found.seeds} paired seed" + ("s" if found.seeds > 1 else "")
    counted = metric.differences(what)
    points = f"{metric.change(found.mean)} {counted if counted != what else f'in {what}'}"
    if not finetuned:
        return f"Searched against greedy: {points}. Nothing was fine-tuned: there is no spread to judge it by."
    finding = found.finding()
    if finding == "too few seeds":
        return (
            f"Searched against greedy: {points} with {seeds}: too few to tell it from chance, which takes "
            f"finetune.seeds of {FEWEST} or more."
        )
    if finding == "identical":
        return f"Searched and greedy have the same {what} with every one of {seeds}."
    if found.constant:
        same_again = f"the same with each of {seeds}, which tells no chance"
        return f"Searched and greedy are not distinguishable: {points}, {same_again}."
    interval = f"95 % interval {metric.interval(found.low, found.high)}, {seeds}"
    if finding == "not distinguishable":
        why = "; the seeds agree, but the test examples are too few to tell" if found.hangs_on_images else ""
        return f"Searched and greedy are not distinguishable: {points} ({interval}){why}."
    return f"The searched network is {finding} than greedy global pruning: {points} ({interval})."
