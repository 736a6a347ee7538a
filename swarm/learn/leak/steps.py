"""What a leak check has worked out so far, on disk: one that is stopped goes on where it was.

The files hold numbers and pictures of true records, as the report does; they lie beside it and go once it is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swarm.encoding import sha256
from swarm.errors import ConfigError

FORMAT = 1
"""Counts up when the same settings come to mean other steps."""


class Steps:
    """Results by name, kept from one start to the next of the same check.

    Args:
        folder: of all checks' steps; None keeps nothing.
        about: everything that the results depend on.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        text = json.dumps([FORMAT, about], sort_keys=True, default=str)
        self._place = None if folder is None else folder / sha256(text.encode()).hex()[:16]

    def of(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or gave when it was asked for before: plain values.

        Raises:
            ConfigError: the folder cannot be written.
        """
        if self._place is None:
            return make()
        path = self._place / f"{name.replace(' ', '-').replace(',', '')}.json"
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            found = make()  # not there, or cut short by a crash
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(found))
            fresh.replace(path)
        except OSError as error:
            raise ConfigError(f"{self._place} cannot be written: {error}") from error
        return found


def forget(folder: Path) -> None:
    """All steps of all checks: they are in the report now."""
    shutil.rmtree(folder, ignore_errors=True)
