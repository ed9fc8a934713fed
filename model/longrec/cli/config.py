"""The commands of the configuration: `longrec config schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from longrec.cli.options import command_group

app = command_group("Describe the configuration.")

OutputFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write to a file instead of stdout.")
]


@app.command()
def schema(output: OutputFile = None) -> None:
    """Print the JSON schema of a configuration file, for editors.

    \b
    Examples:
      longrec config schema
      longrec config schema --output docs/reference/config.schema.json
    """
    from longrec.config_file import json_schema
    from longrec.data import files
    from longrec.runs.project import import_module

    if output is not None:
        files.check_output_file(output)
    platform = import_module("pipelines.platform_config").PlatformConfig
    text = json.dumps(json_schema(platform=platform), indent=2)
    if output is None:
        typer.echo(text)
    else:
        files.write_text(output, text + "\n")
