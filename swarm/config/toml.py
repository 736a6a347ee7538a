"""What every settings file is read with: a TOML table whose keys are known and whose values have their type."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarm.errors import ConfigError

MEMBERS_MAX = 128
"""The contracts' arrays have this bound."""
NAME_BYTES_MAX = 64
"""The contracts' names have this bound."""
ENDPOINT_BYTES_MAX = 256
"""The contracts' endpoints have this bound."""


def read(path: Path) -> dict[str, Any]:
    """The document; ConfigError where there is none or it is no TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}; `swarm init DIR` writes a consortium's folder") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error


def table_of(document: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The table of this name; ConfigError if it is missing."""
    table = document.get(key)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: the table [{key}] is missing")
    return table


def only(table: object, possible: set[str], path: Path) -> None:
    """ConfigError unless this is a table whose keys are all possible."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: a table belongs where {table!r} stands")
    unknown = sorted(set(table) - possible)
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]!r} is no setting here; there are {', '.join(sorted(possible))}")


def value_of(table: Mapping[str, Any], key: str, kind: Any, path: Path, default: Any = None) -> Any:
    """The value of a key, or the default; ConfigError if it is missing or of another kind."""
    value = table.get(key, default)
    if value is None:
        raise ConfigError(f"{path}: {key!r} is missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = getattr(kind, "__name__", "number")
        raise ConfigError(f"{path}: {key} = {value!r}, but a {wanted} belongs there")
    return value


def whole(table: Mapping[str, Any], key: str, path: Path, low: int, high: int, default: int | None = None) -> int:
    """A whole number from `low` to `high`; ConfigError says what was found."""
    value: int = value_of(table, key, int, path, default)
    if not low <= value <= high:
        raise ConfigError(f"{path}: {key} = {value}, but it has to be {low} to {high}")
    return value


def name_of(table: Mapping[str, Any], path: Path) -> str:
    """The name of a table: plain text of bounded length."""
    name: str = value_of(table, "name", str, path)
    if not name.isprintable() or not 1 <= len(name.encode()) <= NAME_BYTES_MAX or name != name.strip():
        raise ConfigError(f"{path}: name = {name!r}, but it has to be 1 to {NAME_BYTES_MAX} plain bytes of text")
    return name
