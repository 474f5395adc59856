"""``espalier agents``: agents that learn on several networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.options import console, interruptible, reporter

app = typer.Typer(name="agents", no_args_is_help=True, help="Train an agent on several networks and budgets.")


@app.command("train")
def train(
    configs: Annotated[
        list[str], typer.Argument(help="YAML files, or names of shipped configs.", metavar="CONFIG...")
    ],
    keep: Annotated[
        list[float] | None, typer.Option(help="Share of the MACs to keep; several times for several budgets.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting that wins over every file: data.train_images=5000")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Evaluations of each network under each budget.", min=1)] = 400,
    surrogate: Annotated[
        int | None, typer.Option(help="After so many of these, a model of the scores takes their place.", min=16)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the agent.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder for networks, log and agent.")] = Path("runs/agent"),
) -> None:
    """Train an agent; `search.agent.pretrained` then names the file that it is written to.

    Rewards are the scores that each config's search would give, on images held out of the training split.
    """
    from espalier.search.config.loading import load_config
    from espalier.search.run.agent_training import train_agent

    changed = overrides or []
    budgets = [[f"budget.keep={share}"] for share in keep or []] or [[]]
    tasks = [(Path(name).stem, load_config(name, [*changed, *budget])) for name in configs for budget in budgets]
    with interruptible(f"the same command goes on with what is in {out}"):
        path = train_agent(tasks, out, episodes=episodes, seed=seed, reporter=reporter(), surrogate=surrogate)
    console.print(f"{path} written")
