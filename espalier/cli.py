"""The command line. Heavy imports happen inside the commands."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from espalier.errors import ConfigError, EspalierError, MissingPackage

if TYPE_CHECKING:
    from espalier.search.config import Config
    from espalier.search.progress import Reporter
    from espalier.search.result import Outcome, Result

app = typer.Typer(
    name="espalier",
    help="Find how wide each layer of a neural network needs to be.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)
_options = {"debug": False}

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, or the name of a shipped config: digits.")]
OverrideArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that win over the file: budget.keep=0.5", metavar="[KEY=VALUE]..."),
]
StorageOption = Annotated[
    str | None, typer.Option(help="Any Optuna URL. Default: SQLite in the run folder.", envvar="OPTUNA_STORAGE")
]
StudyOption = Annotated[str | None, typer.Option(help="Name of the study. Default: the config's name.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: local, auto or HOST:PORT. Default: local.", envvar="RAY_ADDRESS")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Evaluations at a time; 0 runs in this process, without Ray.", min=0)
]
OutOption = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/STUDY.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.print(f"espalier {version('espalier')}", highlight=False)
        raise typer.Exit


@app.callback()
def _main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    _options["debug"] = debug


@app.command()
def search(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    storage: StorageOption = None,
    study: StudyOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    out: OutOption = None,
) -> None:
    """Search the widths of a network under a budget, and compare with greedy pruning."""
    from espalier.search.config import load_config

    settings = load_config(config, overrides or [])
    name = study or Path(config).stem
    _run(settings, name, out or Path("runs") / name, storage, address, workers)


@app.command()
def prune(config: ConfigArgument, overrides: OverrideArgument = None, out: OutOption = None) -> None:
    """Prune in rounds, as the OICSR paper does (train, rank, cut, retrain, again), or softly; no search."""
    from espalier.search.config import load_config
    from espalier.search.iterative import prune as run
    from espalier.search.progress import for_console

    folder = out or Path("runs") / f"{Path(config).stem}-prune"
    try:
        result = run(load_config(config, overrides or []), folder, for_console(console))
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on where {folder} stands")
        raise typer.Exit(130) from None
    table = Table(
        "round", "MACs", "of dense", "params", "trained", "cut", "retrained", box=None, header_style="bold"
    )
    for column in table.columns:
        column.justify = "right"
    for done in result.rounds:
        share = f"{100 * done.macs / result.dense_macs:.1f} %"
        tops = (f"{top:.2f}" for top in (done.trained, done.cut, done.retrained))
        table.add_row(str(done.number), f"{done.macs:,}", share, f"{done.params:,}", *tops)
    console.print(table)
    if result.epochs:
        last, returned = result.epochs[-1], sum(epoch.returned for epoch in result.epochs)
        console.print(
            f"zeroed softly after each of {len(result.epochs)} epochs, {last.zeroed} channels at last; {returned} "
            "times one that was zeroed was spared in the next epoch",
            highlight=False,
        )
    mean, sd = result.spread
    console.print(
        f"held-out top-1 in percent above; test split: dense {result.dense:.2f} %, pruned {result.before:.2f} % "
        f"before and {mean:.2f} ± {sd:.2f} % after the final retraining ({result.retrain}, "
        f"{len(result.after)} seeds)",
        highlight=False,
    )
    console.print(f"network in {result.artefact}, figures in {folder / 'prune.json'}", highlight=False)


plot_app = typer.Typer(no_args_is_help=True, help="Draw energies, keep ratios or damage as PNG or SVG.")
app.add_typer(plot_app, name="plot")

FileOption = Annotated[Path | None, typer.Option("--file", help="The picture, .png or .svg.", dir_okay=False)]
RegularizersOption = Annotated[
    list[str] | None,
    typer.Option("--regularizer", help="One to draw: NAME, at the config's last strength, or NAME=STRENGTH."),
]


@plot_app.command("energies")
def plot_energies(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    regularizer: RegularizersOption = None,
    group: Annotated[str | None, typer.Option(help="The channel group; by default the largest.")] = None,
    file: FileOption = None,
    out: OutOption = None,
) -> None:
    """Sorted channel energies of a layer after training with each regulariser."""
    from espalier import plots
    from espalier.search import curves

    found = curves.train(_plotted(config, overrides), regularizer, out or _ladder_folder(config), _reporter())
    plots.energies(curves.energies(found, group), file or Path("energies.png"))
    console.print(f"{file or 'energies.png'} written", highlight=False)


@plot_app.command("damage")
def plot_damage(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    regularizer: RegularizersOption = None,
    file: FileOption = None,
    out: OutOption = None,
) -> None:
    """Held-out top-1 before retraining against the MACs removed, a line for each regulariser."""
    from espalier import plots
    from espalier.search import curves

    found = curves.train(_plotted(config, overrides), regularizer, out or _ladder_folder(config), _reporter())
    plots.damage(curves.damage(found), file or Path("damage.png"))
    console.print(f"{file or 'damage.png'} written", highlight=False)


@plot_app.command("ratios")
def plot_ratios(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished search or prune.", file_okay=False)],
    file: FileOption = None,
) -> None:
    """Share of the channels that each group keeps."""
    from espalier import plots
    from espalier.search import curves

    plots.ratios(curves.ratios(folder), file or Path("ratios.png"))
    console.print(f"{file or 'ratios.png'} written", highlight=False)


@app.command("proxy-study")
def proxy_study(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    policies: Annotated[int, typer.Option(help="Pruned networks to judge and to fine-tune.", min=8)] = 24,
    seeds: Annotated[int, typer.Option(help="Fine-tunings of each.", min=1)] = 2,
    workers: WorkersOption = None,
    out: OutOption = None,
    file: FileOption = None,
) -> None:
    """Measure which proxy ranks candidates as fine-tuning does, and recommend a ladder of proxies."""
    import yaml

    from espalier import plots
    from espalier.search.config import load_config
    from espalier.search.proxies import PROXIES, Signal
    from espalier.search.proxy_study import AFFORDABLE, study_proxies

    settings = load_config(config, overrides or [])
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    folder = out or Path("runs") / f"{Path(config).stem}-proxies"
    try:
        found = study_proxies(settings, folder, _reporter(), policies=policies, seeds=seeds)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on with what is in {folder}")
        raise typer.Exit(130) from None
    table = Table("proxy", "measure", "rank correlation", "95 % interval", "seconds", box=None, header_style="bold")
    for rated in found.rated:
        interval = f"{rated.low:+.2f} to {rated.high:+.2f}"
        measure = "-" if isinstance(PROXIES[rated.proxy], Signal) else rated.measure
        table.add_row(rated.proxy, measure, f"{rated.rho:+.2f}", interval, f"{rated.seconds:.3f}")
    console.print(table)
    low, high = found.spread
    console.print(
        f"Spearman's correlation with held-out top-1 after fine-tuning, {found.policies} policies of {low:.2f} to "
        f"{high:.2f} %, {found.seeds} seeds each; two seeds agree to {found.ceiling:.2f}. A fine-tuning takes "
        f"{found.finetune_seconds:.1f} s; all seconds are the processor's.",
        highlight=False,
        style="dim",
    )
    best = found.recommended
    console.print(
        f"\nRecommended, of what costs at most {AFFORDABLE:g} of a fine-tuning: correlation {best.rho:+.2f} "
        f"({best.rho_elsewhere:+.2f} on policies that it was not chosen by) at {best.seconds:.2f} s, "
        f"{best.seconds / found.finetune_seconds:.1%} of a fine-tuning, a candidate:\n",
        highlight=False,
    )
    console.print(yaml.safe_dump({"search": best.settings()}, sort_keys=False).rstrip(), highlight=False)
    picture = file or folder / "proxies.png"
    try:
        plots.proxies(found, picture)
        drawn = f"{picture} written"
    except MissingPackage as error:
        drawn = str(error)
    console.print(f"\n{drawn}; figures in {folder / 'proxy_study.json'}", highlight=False, soft_wrap=True)


def _plotted(config: str, overrides: list[str] | None) -> Config:
    from espalier.search.config import load_config

    return load_config(config, overrides or [])


def _ladder_folder(config: str) -> Path:
    return Path("runs") / Path(config).stem


def _reporter() -> Reporter:
    from espalier.search.progress import for_console

    return for_console(console)


@app.command()
def resume(
    study: Annotated[str, typer.Option(help="Name of the study.")],
    storage: Annotated[str, typer.Option(help="Optuna URL of its storage.", envvar="OPTUNA_STORAGE")],
    trials: Annotated[
        str | None, typer.Option(help="Trials wanted in all, or +N more than were asked for before.")
    ] = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    out: OutOption = None,
) -> None:
    """Go on with an interrupted or finished study; its config lives in the storage."""
    from espalier.search.pipeline import config_of

    settings, folder = config_of(storage, study)
    if trials is not None:
        wanted = _trials(trials, settings.search.trials)
        settings = settings.model_copy(update={"search": settings.search.model_copy(update={"trials": wanted})})
    _run(settings, study, out or folder, storage, address, workers, must_exist=True)


@app.command()
def rescore(
    study: Annotated[str, typer.Option(help="Name of the study.")],
    storage: Annotated[str, typer.Option(help="Optuna URL of its storage.", envvar="OPTUNA_STORAGE")],
    trial: Annotated[int, typer.Option(help="Number of a finished trial.", min=0)],
    out: OutOption = None,
) -> None:
    """Rebuild a trial's network and score it again; exits 1 where it comes out otherwise."""
    from espalier.search.rescoring import rescore as run

    found = run(storage, study, trial, out, _reporter())
    table = Table("", "top-1 %", "cross-entropy", "distillation", "images", box=None, header_style="bold")
    for name, score in (("recorded", found.recorded), ("now", found.now)):
        losses = f"{score.cross_entropy:.6f}", f"{score.distillation:.6f}"
        table.add_row(name, f"{score.top1:.4f}", *losses, str(score.images))
    console.print(f"trial {trial}: {found.candidate.key}, {found.macs:,} MACs", highlight=False, soft_wrap=True)
    console.print(table)
    console.print("the same" if found.same else "not the same")
    if not found.same:
        raise typer.Exit(1)


@app.command()
def studies(
    storage: Annotated[str, typer.Option(help="Optuna URL of the storage.", envvar="OPTUNA_STORAGE")],
) -> None:
    """List the studies of a storage."""
    from espalier.search.study import open_storage, summaries

    table = Table("study", "trials", "of", "best value", "sampler", "budget", box=None, header_style="bold")
    for row in summaries(open_storage(storage, create=False)):
        table.add_row(*row)
    console.print(table if table.row_count else "no studies")


@app.command()
def inspect(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    keep: Annotated[
        float | None,
        typer.Option(help="Show beside it what a network with this fraction of the MACs costs, pruned evenly."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every operation, and all names in full.")] = False,
    depth: Annotated[
        int | None, typer.Option(help="Sum operations by module, so deep in the network.", min=0)
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write everything as JSON into FILE; - prints it alone.", metavar="FILE"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the network into FILE, .svg or .png.", metavar="FILE")
    ] = None,
) -> None:
    """Show the operations and what they cost, the groups of coupled channels, and what is frozen and why."""
    import torch

    from espalier.drawing import check_picture, draw
    from espalier.inspection import inspection, write_json
    from espalier.search.config import load_config
    from espalier.search.prepare import prepare
    from espalier.tables import show

    torch.set_num_threads(1)
    settings = load_config(config, overrides or [])
    if picture is not None:
        check_picture(picture)
    prepared = prepare(settings)
    graph = prepared.graph
    found = inspection(graph, settings.model.name, keep, prepared.floor)
    if json_file is not None:
        write_json(found, None if str(json_file) == "-" else json_file)
    if picture is not None:
        draw(found, picture)
    if str(json_file) == "-":
        return
    show(console, found, every, depth)
    console.print(
        f"{graph.n_channels} prunable channels in {len(graph.groups)} groups; budget {prepared.budget}",
        highlight=False,
    )
    for file in (json_file, picture):
        if file is not None:
            console.print(f"written: {file}", highlight=False, soft_wrap=True)


@app.command()
def validate(config: ConfigArgument, overrides: OverrideArgument = None) -> None:
    """Check a config and say what it asks for; loads no data and no network."""
    from espalier.search.config import load_config

    settings = load_config(config, overrides or [])
    console.print(
        f"valid: {settings.model.name} on {settings.data.name}, {settings.budget.words()}, "
        f"{settings.search.trials} trials of {settings.search.sampler}, strengths "
        f"{', '.join(f'{s:g}' for s in settings.regularizer.strengths)}",
        highlight=False,
    )


def _run(
    settings: Config,
    study: str,
    out: Path,
    storage: str | None,
    address: str | None,
    workers: int | None,
    must_exist: bool = False,
) -> None:
    from espalier.search.pipeline import default_storage, run
    from espalier.search.progress import for_console
    from espalier.search.study import redact

    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    url = storage or default_storage(out)
    try:
        result = run(
            settings,
            study=study,
            out=out,
            storage=url,
            address=address,
            reporter=for_console(console),
            must_exist=must_exist,
        )
    except KeyboardInterrupt:
        errors.print(
            f"interrupted; go on with: espalier resume --storage {redact(url)} --study {study}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    _show(result, out, url)


def _show(result: Result, out: Path, url: str) -> None:
    from espalier.search.study import redact

    for each in (*result.others, result):
        _show_budget(each)
    console.print(
        "\nTop-1 in percent: on the held-out images that the search scored on, and on the test split before and "
        f"after fine-tuning ({len(result.seeds['finetune'])} seeds, mean ± sd; dense is not fine-tuned). "
        f"MACs: multiply-adds of one image. {result.trials} trials.\n",
        highlight=False,
        style="dim",
    )
    for each in (*result.others, result):
        console.print(f"network  {each.artefact}", highlight=False, soft_wrap=True)
    console.print(f"result   {out / 'result.json'}", highlight=False, soft_wrap=True)
    console.print(f"study    {result.study} in {redact(url)}", highlight=False, soft_wrap=True)


def _show_budget(result: Result) -> None:
    table = Table("", box=None, header_style="bold", pad_edge=False)
    for title in ("M MACs", "kept", "params", "strength", "held-out", "test before", "test after"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in ("dense", "greedy", "searched"):
        outcome: Outcome = getattr(result, name)
        table.add_row(
            name,
            f"{outcome.macs / 1e6:.3f}",
            f"{outcome.macs / result.dense.macs:.1%}",
            f"{outcome.params:,}",
            f"{outcome.strength:g}",
            f"{outcome.top1_proxy:.2f}",
            f"{outcome.top1_before_finetune:.2f}",
            _with_spread(outcome),
        )
    console.print(f"\nBudget: {_limits(result)}\n", highlight=False)
    console.print(table)
    console.print(f"\n{result.verdict}", highlight=False)


def _limits(result: Result) -> str:
    from espalier.pruning.budget import UNITS, Budget

    several = f", of which the {UNITS[result.binding]} bind" if len(result.budget) > 1 else ""
    return f"{Budget(**result.budget)}{several}"


def _with_spread(outcome: Outcome) -> str:
    import statistics

    seeds = outcome.top1_after_finetune_seeds
    spread = f" ± {statistics.stdev(seeds):.2f}" if len(seeds) > 1 else ""
    return f"{outcome.top1_after_finetune:.2f}{spread}"


def _trials(text: str, before: int) -> int:
    try:
        wanted = before + int(text[1:]) if text.startswith("+") else int(text)
    except ValueError:
        wanted = 0
    if wanted < 1:
        raise ConfigError(f"--trials must be a whole number from 1, or +N, got {text!r}")
    return wanted


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except EspalierError as error:
        if _options["debug"]:
            raise
        errors.print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _escaped(text: Any) -> str:
    from rich.markup import escape

    return escape(" ".join(str(text).split()))


def main() -> None:
    """Entry point of the ``espalier`` command: bad input is one line and exit code 2."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # package.module:callable of the user's own
    # Ctrl-C in the middle of a query: SQLAlchemy logs that it could not close the cursor, and raises all the same.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    with _one_line_errors():
        app()


if __name__ == "__main__":
    main()
