"""``espalier search``, ``resume``, ``rescore`` and ``prune``."""

from __future__ import annotations

import math
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from espalier.cli.options import (
    AddressOption,
    CandidateTimeoutOption,
    ConfigArgument,
    CpusOption,
    GpusOption,
    MaxFailuresOption,
    MirrorOption,
    OutOption,
    OverrideArgument,
    StorageOption,
    StoredAt,
    StoredStudy,
    StudyOption,
    StudysOutOption,
    TimeBudgetOption,
    TrustOption,
    WorkersOption,
    console,
    interruptible,
    on_cluster,
    reporter,
    settings_of,
    shown_whole,
)
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.search.config.loading import Config
    from espalier.search.run.result import Result


def search(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    trials: Annotated[
        int | None, typer.Option(help="Candidates that are scored, as search.trials=N says.", min=1)
    ] = None,
    storage: StorageOption = None,
    study: StudyOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    cpus_per_worker: CpusOption = None,
    gpus_per_worker: GpusOption = None,
    time_budget: TimeBudgetOption = None,
    candidate_timeout: CandidateTimeoutOption = None,
    max_failures: MaxFailuresOption = None,
    out: OutOption = None,
    mirror: MirrorOption = None,
) -> None:
    """Search the widths of a network under a budget, and compare the result with greedy pruning."""
    from espalier.search.config.trust import needed
    from espalier.search.run.search_run import default_storage, run
    from espalier.search.study.run_folder import folder_of

    overrides = [*(overrides or []), *([] if trials is None else [f"search.trials={trials}"])]
    settings = settings_of(config, overrides, workers)
    settings = on_cluster(
        settings,
        address=address,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        time_budget=time_budget,
        candidate_timeout=candidate_timeout,
        max_failures=max_failures,
    )
    name = study or Path(config).stem
    folder = out or folder_of(name)
    url = storage or default_storage(folder)
    names = [settings.model.name, settings.data.name, settings.task.name, settings.search.criterion]
    names.append(settings.regularizer.name)
    with _resumable(url, name, mirror, needed(*names)):
        result = run(settings, study=name, out=folder, storage=url, reporter=reporter(), mirror=mirror)
    _show(result, url, str(config))


def prune(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/CONFIG-prune.")] = None,
) -> None:
    """Prune without a search: in rounds of training, ranking and cutting (OICSR), or by another schedule."""
    from espalier.search.pruning_loop.pruning_loop import prune as run

    folder = out or Path("runs") / f"{Path(config).stem}-prune"
    with interruptible(f"the same command goes on where {folder} stands"):
        result = run(settings_of(config, overrides), folder, reporter())
    metric = result.metric
    table = Table(
        "round", "MACs", "of dense", "params", "trained", "cut", "retrained", box=None, header_style="bold"
    )
    for column in table.columns:
        column.justify = "right"
    for done in result.rounds:
        share = f"{100 * done.macs / result.dense_macs:.1f} %"
        scores = map(metric.text, (done.trained, done.cut, done.retrained))
        table.add_row(str(done.number), f"{done.macs:,}", share, f"{done.params:,}", *scores)
    console.print(table)
    if result.epochs:
        last, returned = result.epochs[-1], sum(epoch.returned for epoch in result.epochs)
        console.print(
            f"zeroed after each of {len(result.epochs)} epochs, {last.zeroed} channels at last; {returned} "
            "times one that was zeroed was spared in the next epoch",
        )
    mean, sd = result.spread
    console.print(
        f"held-out {metric.heading} above; on test data dense {metric.text(result.dense)}, pruned "
        f"{metric.text(result.before)} before and {metric.text(mean)} ± {metric.text(sd)} after the final "
        f"retraining ({result.retrain}, {len(result.after)} seeds)",
    )
    console.print(f"network in {result.artefact}, figures in {folder / 'prune.json'}")


def resume(
    study: StoredStudy,
    storage: StoredAt = "",
    overrides: OverrideArgument = None,
    trials: Annotated[
        str | None, typer.Option(help="Trials wanted in all, or +N more than were asked for before.")
    ] = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    cpus_per_worker: CpusOption = None,
    gpus_per_worker: GpusOption = None,
    time_budget: TimeBudgetOption = None,
    candidate_timeout: CandidateTimeoutOption = None,
    max_failures: MaxFailuresOption = None,
    out: StudysOutOption = None,
    mirror: MirrorOption = None,
    trust: TrustOption = None,
) -> None:
    """Continue an interrupted or finished study on any machine. Its config is in the storage."""
    from espalier.search.run.search_run import resume as run

    def change(settings: Config) -> Config:
        section = settings.search
        wanted = section.trials if trials is None else _trials(trials, section.trials)
        update: dict[str, object] = {"search": section.model_copy(update={"trials": wanted})}
        if workers is not None:
            update["workers"] = workers
        return on_cluster(
            settings.model_copy(update=update),
            address=address,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            time_budget=time_budget,
            candidate_timeout=candidate_timeout,
            max_failures=max_failures,
        )

    with _resumable(storage, study, mirror, trust or []):
        result = run(
            storage,
            study,
            overrides=overrides or [],
            change=change,
            out=out,
            reporter=reporter(),
            mirror=mirror,
            trust=trust or [],
        )
    _show(result, storage)


def rescore(
    study: StoredStudy,
    trial: Annotated[int, typer.Option(help="Number of a finished trial.", min=0)],
    storage: StoredAt = "",
    out: StudysOutOption = None,
    trust: TrustOption = None,
) -> None:
    """Build a trial's network and score it again. Exits with 1 if the score differs."""
    from espalier.search.analysis.rescoring import rescore as run

    found = run(storage, study, trial, out, reporter(), trust=trust or [])
    metrics = found.measures.values()
    table = Table("", *(metric.heading for metric in metrics), "examples", box=None, header_style="bold")
    for name, score in (("recorded", found.recorded), ("now", found.now)):
        numbers = (score.measures.get(metric.key, math.nan) for metric in metrics)
        table.add_row(name, *(f"{number:.6f}" for number in numbers), str(score.images))
    console.print(f"trial {trial}: {found.candidate.key}, {found.macs:,} MACs", soft_wrap=True)
    console.print(table)
    console.print("the same" if found.same else "not the same")
    if not found.same:
        raise typer.Exit(1)


def _resumable(url: str, study: str, mirror: str | None, trust: list[str]) -> AbstractContextManager[None]:
    from espalier.search.study.storage import redact

    command = ["espalier", "resume", "--storage", redact(url), "--study", study]
    command += [] if mirror is None else ["--mirror", mirror]
    command += [word for name in trust for word in ("--trust", name)]
    return interruptible(f"go on with: {shlex.join(command)}")


def _show(result: Result, url: str, config: str = "CONFIG") -> None:
    from espalier.pruning.networks import is_built_in
    from espalier.search.files.tensor_files import load_tensors
    from espalier.search.run.result import ending_of
    from espalier.search.run.summary import summary
    from espalier.search.study.storage import redact

    out = Path(result.artefact).parent
    *parts, legend = summary(result)
    for part in parts:
        shown_whole(part)
    console.print(legend, style="dim")
    for each in (*result.others, result):
        console.print(f"network  {each.artefact}{_saved(each)}", soft_wrap=True)
    if result.front:
        unbeaten = [point.macs / 1e6 for point in result.front if not point.beaten]
        console.print(
            f"front    {len(unbeaten)} candidates from {min(unbeaten):.3f} to {max(unbeaten):.3f} M MACs; "
            f"espalier plot front {out} draws it",
            soft_wrap=True,
        )
    console.print(f"result   {out / f'result{ending_of(out, result.study)}.json'}", soft_wrap=True)
    console.print(f"study    {result.study} in {redact(url)}", soft_wrap=True)
    command = ["espalier", "export", str(result.artefact), str(out / "pruned.onnx")]
    if ":" in (network := str(load_tensors(Path(result.artefact))[1]["name"])) and not is_built_in(network):
        command += ["--network", network]
    if bits := set(result.searched.bits.values()):
        command += ["--int8", "--config", config]
    if bits - {8}:
        return  # no runtime computes so
    console.print(f"next     {shlex.join(command)}", soft_wrap=True)


def _saved(result: Result) -> str:
    """Which of several fine-tuned networks is in the file."""
    count = len(result.searched.after_seeds)
    return f" (of {count} fine-tuned ones the best on held-out data)" if count > 1 else ""


def _trials(text: str, before: int) -> int:
    try:
        wanted = before + int(text[1:]) if text.startswith("+") else int(text)
    except ValueError:
        wanted = 0
    if wanted < 1:
        raise ConfigError(f"--trials must be a whole number from 1, or +N, got {text!r}")
    return wanted
