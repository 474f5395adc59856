"""``espalier init``: asks what is to be pruned, and writes a config that runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from espalier.cli.configs import check_new
from espalier.cli.options import console
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.starter.files import Answers

Value = TypeVar("Value")


def init(
    file: Annotated[Path, typer.Argument(help="Config to write.", metavar="[FILE]")] = Path("my.yaml"),
    network: Annotated[
        str | None, typer.Option(help="Network to prune: resnet20, ..., or package.module:callable.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set: cifar10, digits, imagefolder, ...; or own, for a task of yours to fill in."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of one input of a task of yours, without the batch: 3,32,32.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What a task of yours is to begin with: classification or regression.")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help="Classes of an image folder, or a task of yours; of a regression, its outputs.", min=1),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="What is limited, and the share that is kept: macs=0.5, params=0.5, latency=0.5."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Candidates at a time; 0 does without Ray.", min=0)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a config for your network, and for a task of your own a module that runs as written.

    On a terminal it asks for what no option says. Elsewhere it takes what it would propose.
    """
    import yaml

    from espalier.search.config.loading import parse_config
    from espalier.starter import files

    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"a config is named *.yaml, got {file}")
    check_new([file], force=force)
    answers = _answers(network, data, root, shape, kind, classes, budget, workers)
    written = files.files_of(answers, file)
    parse_config(yaml.safe_load(written[file]), str(file))
    check_new(written, force=force)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    own = answers.data == files.OWN
    if own:
        now = _runs(answers)
        console.print(f"Your data go into `load` of {list(written)[1]}; until then it {now}.", soft_wrap=True)
    there = ""
    if own and file.parent != Path():  # where the module is found
        there, file = f"cd {file.parent} && ", Path(file.name)
    console.print(f"next: {there}espalier doctor {file}, then espalier search {file}", soft_wrap=True)


def _answers(
    network: str | None,
    data: str | None,
    root: Path | None,
    shape: str | None,
    kind: str | None,
    classes: int | None,
    budget: str | None,
    workers: int | None,
) -> Answers:
    """What the options say, and of the others what is answered on a terminal, or would be proposed there."""
    from espalier.pruning.networks import NETWORKS
    from espalier.starter import files

    def asked(given: str | None, question: str, proposed: str, check: Callable[[str], Value]) -> Value:
        if given is not None or not sys.stdin.isatty():
            return check(proposed if given is None else given)
        answer: Value = typer.prompt(question, default=proposed, value_proc=partial(_again, check))
        return answer

    name = asked(
        network,
        "Network: a name such as resnet20 or mobilenet_v2, or package.module:callable",
        "resnet20",
        files.network_of,
    )
    source = asked(
        data,
        f"Data: {', '.join([*files.IMAGES, 'imagefolder'])}; or {files.OWN}, a task of yours",
        files.OWN,
        files.data_of,
    )
    own, folder = source == files.OWN, root
    if root is None and source not in (files.OWN, "digits"):
        folder = asked(None, "Folder of the data", "data", Path)
    lengths: tuple[int, ...] = (3, 32, 32)
    begun: files.Kind = "classification"
    count = 10
    if kind is not None and not own:
        raise ConfigError(f"--kind is of a task of your own, --data {files.OWN}: got --data {source}")
    if own:
        begun = asked(kind, "Your task: classification, or regression", begun, files.kind_of)

        def shape_of(text: str) -> tuple[int, ...]:
            found = files.shape_of(text)
            if name in NETWORKS and len(found) != 3:
                raise ConfigError(
                    f"{name} takes images, channels,height,width: got a shape of {len(found)} numbers"
                )
            return found

        lengths = asked(shape, "Shape of one input, without the batch", "3,32,32", shape_of)
    if source not in files.IMAGES:
        regression = begun == "regression"
        question = "Numbers that it gives for an input" if regression else "Classes"
        proposed = classes or _class_folders(folder) or (1 if regression else 10)
        count = asked(None if classes is None else str(classes), question, str(proposed), _whole)
    limit, keep = asked(
        budget, "Budget: macs, params or latency, and the share that is kept", "macs=0.5", files.budget_of
    )
    jobs = asked(
        None if workers is None else str(workers), "Workers, each on a core; 0 does without Ray", "2", _whole
    )
    return files.Answers(name, source, folder, limit, keep, jobs, lengths, count, begun)


def _again(check: Callable[[str], Value], text: str) -> Value:
    """The answer; what is wrong with it is said, and the question asked again."""
    try:
        return check(text.strip())
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def _runs(answers: Answers) -> str:
    """Whether the network takes what the module draws, in words."""
    import torch

    from espalier.errors import EspalierError, raised
    from espalier.pruning.networks import NETWORKS, build

    name, shape = answers.network, answers.shape
    as_what = "a regression" if answers.kind == "regression" else "a classifier"
    if name in NETWORKS:
        return f"runs on random ones, as {as_what}"
    try:
        network = build(name).eval()
    except EspalierError as error:  # where there is no such module, it is not written yet
        return (
            "makes random ones"
            if isinstance(error.__cause__, ModuleNotFoundError)
            else f"makes random ones. {error}"
        )
    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape))
    except Exception as error:  # whatever a user's network raises
        drawn = ",".join(map(str, shape))
        return (
            f"makes random ones of shape {drawn}, which {name} does not take ({raised(error)}): say its own by "
            "--shape, or, of several inputs, give a tuple or a dict as example_inputs there"
        )
    return f"runs on random ones, as {as_what}: its head says how to write another loss and metric"


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"a whole number, got {text!r}")
    return int(text)


def _class_folders(root: Path | None) -> int:
    """Classes of an image folder; 0 where it is not there."""
    train = None if root is None else root / "train"
    return sum(each.is_dir() for each in train.iterdir()) if train is not None and train.is_dir() else 0
