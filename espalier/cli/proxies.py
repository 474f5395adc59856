"""``espalier proxy-study``: which proxy ranks candidates as fine-tuning does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from espalier.cli.options import (
    ConfigArgument,
    OutOption,
    OverrideArgument,
    StudyOption,
    WorkersOption,
    console,
    interruptible,
    reporter,
    settings_of,
    shown_whole,
)
from espalier.errors import MissingPackage


def proxy_study(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    policies: Annotated[int, typer.Option(help="Pruned networks to judge and to fine-tune.", min=8)] = 24,
    seeds: Annotated[int, typer.Option(help="Fine-tunings of each.", min=1)] = 2,
    workers: WorkersOption = None,
    study: StudyOption = None,
    out: OutOption = None,
    file: Annotated[
        Path | None, typer.Option(help="The picture, .png or .svg. Default: proxies.png in the run folder.")
    ] = None,
) -> None:
    """Measure which proxy, or cheap score, ranks candidates as fine-tuning does, and recommend which to use."""
    import yaml

    from espalier.drawing.files import check_picture
    from espalier.report import plots
    from espalier.search.analysis.proxy_study import AFFORDABLE, study_proxies
    from espalier.search.evaluation.proxies import PROXIES, Signal
    from espalier.search.study.run_folder import folder_of

    settings = settings_of(config, overrides, workers)
    folder = out or folder_of(study or Path(config).stem)
    picture = file or folder / "proxies.png"
    check_picture(picture)
    with interruptible(f"the same command goes on with what is in {folder}"):
        found = study_proxies(settings, folder, reporter(), policies=policies, seeds=seeds)
    several = any(rated.across is not None for rated in found.rated)
    by_strength = ["within a strength", "right across"] if several else []
    headings = ["proxy", "measure", "rank correlation", "95 % interval", *by_strength, "seconds"]
    table = Table(*headings, box=None, header_style="bold")
    for rated in found.rated:
        cells = [rated.proxy, "-" if isinstance(PROXIES[rated.proxy], Signal) else rated.measure]
        cells += [f"{rated.rho:+.2f}", f"{rated.low:+.2f} to {rated.high:+.2f}"]
        if several:
            cells.append("" if rated.within is None else f"{rated.within:+.2f}")
            cells.append("" if rated.across is None else f"{rated.across:.0%}")
        table.add_row(*cells, f"{rated.seconds:.3f}")
    shown_whole(table)
    for first, others in found.alike.items():
        console.print(f"{', '.join(others)}: {'scores' if len(others) == 1 else 'score'} as {first} does, here")
    low, high = found.spread
    tuned = "one seed each"
    if found.seeds > 1:
        tuned = f"{found.seeds} seeds each; two seeds rank them with a correlation of {found.ceiling:+.2f}"
    metric = found.metric
    spread = f"{metric.text(low)} to {metric.text(high)} {metric.unit}".rstrip()
    console.print(
        f"Spearman's correlation with held-out {metric.title} after fine-tuning, {found.policies} policies of "
        f"{spread}, {tuned}. A fine-tuning takes "
        f"{found.finetune_seconds:.1f} s; all seconds are the processor's."
        + (
            " Right across: of two policies of different strengths, how often the better is told."
            if several
            else ""
        ),
        style="dim",
    )
    best = found.recommended
    if all(rated.low <= 0 for rated in found.rated):
        console.print(
            "\nNo proxy ranks these policies better than chance may: each interval holds 0. More policies, or a "
            "longer fine-tuning, may tell more; of what there is, this ranks best.",
        )
    console.print(
        f"\nRecommended, of what costs at most {AFFORDABLE:g} of a fine-tuning: correlation {best.rho:+.2f} "
        f"({best.rho_elsewhere:+.2f} on policies that it was not chosen by) at {best.seconds:.2f} s, "
        f"{best.seconds / found.finetune_seconds:.1%} of a fine-tuning, a candidate:\n",
    )
    console.print(yaml.safe_dump({"search": best.settings()}, sort_keys=False).rstrip())
    try:
        plots.proxies(found, picture)
        drawn = f"{picture} written"
    except MissingPackage as error:
        drawn = str(error)
    console.print(f"\n{drawn}; figures in {folder / 'proxy_study.json'}", soft_wrap=True)
