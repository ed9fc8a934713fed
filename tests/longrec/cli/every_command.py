"""Every command of `longrec` and its parameters, found by introspection."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from longrec.cli.main import app

ADDRESSES = ("data", "data_uri")
"""Parameters with the path or address of a dataset."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command without subcommands.

    Args:
        name: as it is typed, for example `inspect history`.
        params: its arguments and options.
    """

    name: str
    params: tuple[Any, ...]

    @property
    def paths(self) -> list[str]:
        """Names of the parameters that take a path."""
        return [param.name for param in self.params if is_path(param)]

    def call(self, **values: str) -> list[str]:
        """Return the words of a call; required parameters without a value get a bad one."""
        arguments = []
        options = []
        for param in self.params:
            value = values.get(param.name)
            if value is None and param.required:
                value = "/nonexistent" if is_path(param) else "1"
            if value is None:
                continue
            if param.param_type_name == "argument":
                arguments.append(value)
            else:
                options += [param.opts[-1], value]
        return [*self.name.split(), *options, *arguments]


def is_path(param: Any) -> bool:
    """Return whether a parameter takes a path."""
    return param.type_descriptor.annotation is Path or param.name in ADDRESSES


def all_commands() -> dict[str, Command]:
    """Return all commands by name."""
    found = _leaves(typer.main.get_command(app), ())
    return {command.name: command for command in found}


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[Command]:
    children = getattr(command, "commands", None)
    if children is None:
        yield Command(" ".join(path), tuple(command.params))
        return
    for name, child in children.items():
        yield from _leaves(child, (*path, name))
