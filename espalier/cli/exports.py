"""``espalier export``: a pruned network as a file that runs without espalier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli.options import console
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.pruning.graph.inputs import Inputs


def export(
    network: Annotated[Path, typer.Argument(help="Network of a search: runs/STUDY/pruned.espalier.")],
    file: Annotated[
        Path, typer.Argument(help="What is written: .onnx, .pt2 (torch.export), .xml (OpenVINO) or .safetensors.")
    ],
    batch: Annotated[str, typer.Option(help="Examples of a pass; dynamic for any number.")] = "dynamic",
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operations.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="In 8-bit integers; calibrated by --calibrate or --config.")
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="Inputs to calibrate by, as the network takes them: .pt or .npz.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Config of the search: its task gives an example, and held-out images to calibrate by."),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Shape of one example, where the file holds none: 3,32,32.", metavar="SIZES"),
    ] = None,
    builder: Annotated[
        str | None,
        typer.Option(
            "--network", help="What makes the dense network, where it is not built in.", metavar="MODULE:CALLABLE"
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Greatest difference of an output, of its greatest value.")
    ] = 1e-4,
) -> None:
    """Write a pruned network as a file that runs without espalier, and check that its outputs are the same."""
    from espalier.pruning.runtimes import export as run
    from espalier.pruning.runtimes.examples import DYNAMIC
    from espalier.search.config.loading import load_config
    from espalier.search.run import exporting
    from espalier.search.run.prepare import task_of

    if int8 and file.suffix not in (".onnx", ".xml"):
        raise ConfigError(f"8-bit integers are for .onnx and .xml, got {file}")
    if int8 and calibrate is None and config is None:
        raise ConfigError("--int8 needs inputs to calibrate by: --calibrate FILE, or --config CONFIG of the search")
    if calibrate is not None and not int8:
        raise ConfigError("--calibrate is for --int8: give both, or neither")
    if batch != DYNAMIC and not batch.isdecimal():
        raise ConfigError(f"--batch must be a whole number from 1, or {DYNAMIC}, got {batch!r}")
    model = exporting.network_of(network, builder)
    task = None if config is None else task_of(load_config(config))
    example = exporting.example_of(network) if task is None else task.example_inputs
    if input_shape is not None:
        example = exporting.shaped_example(input_shape)
    if example is None:
        raise ConfigError(
            f"{network} holds no example of what the network takes: give --input-shape, that of one example, such "
            "as 3,32,32, or --config CONFIG of the search"
        )
    batches: Sequence[Inputs] | None = None
    if calibrate is not None:
        batches = exporting.calibration_file(calibrate)
    elif int8 and task is not None:
        batches = exporting.calibration_of(task, model)
    with console.status(f"writing {file.name}, and running it"):
        done = run(
            model,
            example,
            file,
            batch=DYNAMIC if batch == DYNAMIC else int(batch),
            opset=opset,
            int8=batches,
            tolerance=tolerance,
            metadata=exporting.metadata_of(network),
        )
    console.print(done.words(), soft_wrap=True)
