"""``espalier headroom``: what a search could win over greedy pruning, before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
)


def headroom(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    policies: Annotated[int, typer.Option(help="Pruned networks to fine-tune, 8 or more.", min=8)] = 24,
    seeds: Annotated[
        int, typer.Option(help="With which the best of them, and greedy, are fine-tuned again.", min=2)
    ] = 2,
    workers: WorkersOption = None,
    study: StudyOption = None,
    out: OutOption = None,
) -> None:
    """Estimate what a search could win over greedy pruning, before you run one."""
    from espalier.search.analysis.headroom import study_headroom
    from espalier.search.study.run_folder import folder_of

    settings = settings_of(config, overrides, workers)
    folder = out or folder_of(study or Path(config).stem)
    with interruptible(f"the same command goes on with what is in {folder}"):
        found = study_headroom(settings, folder, reporter(), policies=policies, seeds=seeds)
    console.print(f"\nBudget: {found.budget}\n")
    for paragraph in found.words():
        console.print(paragraph + "\n", highlight=False)
    each = f"{found.seconds:.2g} s of a processor each"
    console.print(f"{found.runs} fine-tunings of {each}; figures in {folder / 'headroom.json'}")
