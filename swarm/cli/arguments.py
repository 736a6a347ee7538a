"""The arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

SitePath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="SITE.toml", help="this hospital's settings, such as sites/cleveland.toml")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="print one JSON document, for a script")]
