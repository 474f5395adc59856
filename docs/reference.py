"""Writes docs/reference/config.md and cli.md, every key and every command with its options: ``make reference``."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
import typer
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from espalier import cli
from espalier.search.config.loading import Config

FOLDER = Path(__file__).parent / "reference"
NAMES = 24
"""Names that are listed at most; of more, the page of methods has the list."""
PLAIN = {
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    types.NoneType: "`null`",
    Any: "anything",
}
TAKEN = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}
CODE = r"(?<![`\w.*])(?:\*\.\w+|[A-Za-z]\w*(?:(?:[.:]\w+)+(?:\.\*)?(?:=[\w.]*\w)?|\.\*|(?<=[a-z])_\w+))"
"""Files, keys, patterns and names of several words in a sentence."""
CONFIG_HEAD = """# Config keys

Every key of a config, from the sections that check it. `make reference` writes this page. Any key can be set on the
command line too: `espalier search my.yaml search.trials=300`. [Tasks](../tasks.md), [Budgets and
latency](../latency.md), [The search](../search.md) and [Is the search worth it?](../compare.md) say what the keys
are for, and [Methods](../methods.md) what the names stand for.

MACs are multiply-adds. Sections other than `model`, `data` and `budget` may be left out.
"""
CLI_HEAD = """# Command line

Every command with its arguments and options, as `--help` has them. `make reference` writes this page.

| command | |
|---|---|
"""


def sections(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Path and class of every section, the whole config first."""
    yield path, model
    for name, field in model.model_fields.items():
        if is_section(field):
            yield from sections(field.annotation, f"{path}.{name}".lstrip("."))  # type: ignore[arg-type]


def is_section(field: FieldInfo) -> bool:
    """Whether a key holds keys."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def keys() -> dict[str, FieldInfo]:
    """Path -> field of every key that holds a value."""
    return {
        f"{path}.{name}".lstrip("."): field
        for path, section in sections()
        for name, field in section.model_fields.items()
        if not is_section(field)
    }


def kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value may be, in words.

    >>> kind(tuple[float, ...] | None, [])
    'list (number, ...) or `null`'
    """
    found = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        found += more
    found = [one for item in found for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
    for item in found:
        if isinstance(item, AfterValidator) and isinstance(item.func, partial):
            return names(**item.func.keywords)
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(map(kind, inside))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin is dict:
        return "keys and values" if inside[1] is Any else f"names, each with {kind(inside[1])}"
    if origin is tuple and inside[-1] is ...:
        return f"list ({kind(inside[0])}, ...)"
    if origin is tuple:
        return f"list ({', '.join(map(kind, inside))})"
    return f"{PLAIN[annotation]} {' and '.join(limits(found))}".rstrip()


def limits(metadata: Iterable[Any]) -> Iterator[str]:
    """Bounds of a number."""
    for item in metadata:
        for sign, bound in ((">", bounds.Gt), ("≥", bounds.Ge), ("<", bounds.Lt), ("≤", bounds.Le)):
            if isinstance(item, bound):
                yield f"{sign} {getattr(item, bound.__name__.lower()):g}"


def names(names: Any, own: bool, given: bool) -> str:
    """Of a field that holds a name."""
    known = list(names())
    listed = ", ".join(f"`{name}`" for name in known) if len(known) <= NAMES else "name of a method"
    return f"{listed} or `package.module:callable`" if own else listed


def default(field: FieldInfo) -> str:
    """As YAML would have it."""
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def told(field: FieldInfo) -> str:
    """What a key is."""
    return code(field.description or "")


def code(text: str) -> str:
    """A sentence with keys, names and files in it as code.

    >>> code("0.5 of search.trials, or layer1.*, or *.db, or budget.keep=0.5. Twice.")
    '0.5 of `search.trials`, or `layer1.*`, or `*.db`, or `budget.keep=0.5`. Twice.'
    """
    return re.sub(CODE, r"`\g<0>`", text)


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """In Markdown; the site shows a row as a block where the screen is narrow."""
    columns = head.count("|") - 1
    cells = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
    return f'<div class="keys" markdown>\n\n{head}\n|{"---|" * columns}\n{"".join(cells)}\n</div>\n'


def config_page() -> str:
    """docs/reference/config.md, the same for the same sections."""
    parts = [CONFIG_HEAD]
    about = {"": "Keys of no section."} | {
        f"{path}.{name}".lstrip("."): field.description or ""
        for path, section in sections()
        for name, field in section.model_fields.items()
    }
    for path, section in sections():
        rows = [
            (
                f"`{path}.{name}`".replace("`.", "`"),
                kind(field.annotation, field.metadata),
                default(field),
                told(field),
            )
            for name, field in section.model_fields.items()
            if not is_section(field)
        ]
        title = f"`{path}`" if path else "The top"
        parts.append(f"\n## {title}\n\n{code(about[path])}\n\n")
        parts.append(table("| key | value | default | what it is |", rows) if rows else "")
    return "".join(parts)


def commands(command: Any = None, path: str = "espalier") -> Iterator[tuple[str, Any]]:
    """Path and command of every command that does something; first `espalier` itself, for its own options."""
    command = typer.main.get_command(cli.app) if command is None else command
    if path == "espalier" or not hasattr(command, "commands") or command.invoke_without_command:
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def cli_page() -> str:
    """docs/reference/cli.md, the same for the same commands."""
    found = dict(commands())
    anchors = {path: path.replace(" ", "-") for path in found}
    listed = (f"| [`{path}`](#{anchors[path]}) | {line(command.help)} |\n" for path, command in found.items())
    parts = [CLI_HEAD + "".join(listed)]
    for path, command in found.items():
        given = [one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument"]
        usage = " ".join([path, *given, "[OPTIONS]"] if path != "espalier" else [path, "[OPTIONS] COMMAND ..."])
        usage = path if not command.params else usage
        rows = [(shown(one), explained(one)) for one in command.params]
        about = "\n\n".join(map(line, (command.help or "").split("\n\n")))
        parts.append(
            f"\n## `{path}`\n\n{about}\n\n```\n{usage}\n```\n" + (f"\n{table('| | |', rows)}" if rows else "")
        )
    return "".join(parts)


def line(text: str | None) -> str:
    """A paragraph on one line."""
    return " ".join((text or "").split())


def shown(parameter: Any) -> str:
    """An argument, or an option with all of its spellings and what it takes."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    spelled = ", ".join(f"`{one}`" for one in [*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return spelled
    taken = parameter.type_descriptor.annotation
    if get_origin(taken) is Literal:
        return f"{spelled} {', '.join(f'`{one}`' for one in get_args(taken))}"
    return f"{spelled} `{parameter.metavar or TAKEN[get_args(taken)[0] if get_args(taken) else taken]}`"


def explained(parameter: Any) -> str:
    """The help of an option, its default, and the variable of the environment that it is read from."""
    told = [line(parameter.help)]
    if parameter.required:
        told.append("Required.")
    elif parameter.default not in (None, False, "") and not callable(parameter.default):
        told.append(f"Default: `{parameter.default}`.")
    if parameter.envvar:
        told.append(f"Or the environment variable `{parameter.envvar}`.")
    return code(" ".join(filter(None, told)))


PAGES = {FOLDER / "config.md": config_page, FOLDER / "cli.md": cli_page}
"""File -> what it holds."""

if __name__ == "__main__":
    for file, page in PAGES.items():
        file.write_text(page(), encoding="utf-8")
