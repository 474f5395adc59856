"""``espalier latency ...``: what networks take on a device, as a model that a search is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli.options import ConfigArgument, OverrideArgument, console, reporter, settings_of
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.pruning.latency import LatencyModel
    from espalier.search.config.loading import Config
    from espalier.search.run.prepare import Prepared

app = typer.Typer(
    name="latency",
    no_args_is_help=True,
    help="Time pruned networks on a device, and model the latency of all others.",
)

ModelOption = Annotated[Path, typer.Option("--out", help="Where the model is written, for budget.device.model.")]
NetworksOption = Annotated[int, typer.Option(help="Pruned networks that are timed.", min=8)]


@app.command("measure")
def measure_here(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    out: ModelOption = Path("latency.json"),
) -> None:
    """Time pruned networks on this machine. A search does so itself; with the file, others need not."""
    from espalier.pruning.latency import measure_latency
    from espalier.search.run.latency_budget import device_of

    settings, prepared = _prepared(config, overrides)
    section = settings.budget.device
    with reporter().meter("latency", section.networks, "networks") as meter:
        model = measure_latency(
            prepared.model,
            prepared.graph,
            device=device_of(settings.budget),
            networks=section.networks,
            seed=settings.seed,
            file=out.with_suffix(".jsonl"),
            on_measured=meter.update,
        )
    _write(model, out)


@app.command("export")
def write_for_elsewhere(
    config: ConfigArgument,
    folder: Annotated[Path, typer.Argument(help="Folder for the networks, to be copied to the device.")],
    overrides: OverrideArgument = None,
    networks: NetworksOption = 40,
) -> None:
    """Write pruned networks as ONNX files, with a script that times them on a device without espalier."""
    from espalier.pruning.latency.elsewhere import write_networks

    settings, prepared = _prepared(config, overrides)
    with reporter().meter("latency", networks, "networks") as meter:
        write_networks(
            prepared.model,
            prepared.graph,
            folder,
            networks=networks,
            batch=settings.budget.device.batch,
            seed=settings.seed,
            on_written=meter.update,
        )
    console.print(
        f"next: copy {folder} to the device, run there: python {folder.name}/time_onnx.py {folder.name}, copy "
        f"{folder.name}/times.json back, and run here: espalier latency fit {config} {folder}",
        soft_wrap=True,
    )


@app.command("fit")
def fit_elsewhere(
    config: ConfigArgument,
    folder: Annotated[Path, typer.Argument(help="Folder of `espalier latency export`, with times.json in it.")],
    overrides: OverrideArgument = None,
    out: ModelOption = Path("latency.json"),
) -> None:
    """Make a model of the times that a device has written."""
    from espalier.pruning.latency.elsewhere import fit_times

    _, prepared = _prepared(config, overrides)
    _write(fit_times(prepared.graph, folder), out)


def _prepared(config: str, overrides: list[str] | None) -> tuple[Config, Prepared]:
    import torch

    from espalier.search.run.prepare import prepare

    torch.set_num_threads(1)
    settings = settings_of(config, overrides)
    return settings, prepare(settings, takes_latency=True)


def _write(model: LatencyModel, out: Path) -> None:
    from espalier.search.files.json_files import write_json

    try:
        write_json(out, model.to_json())
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    console.print(
        f"{model.dense / 1e6:.3g} ms unpruned on {model.device}; half of the {model.measured} networks within "
        f"{100 * model.error:.1f} % of what the others say",
        soft_wrap=True,
    )
    console.print(f"model {out}; a search takes it as budget.device.model={out}", soft_wrap=True)
