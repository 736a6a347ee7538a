"""The command line as a person uses it: real folders, real keys, what it printed and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from swarm.cli import app

Swarm: TypeAlias = Callable[..., Result]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def swarm() -> Swarm:
    """Runs a command line; nothing but an exit comes out of it as an exception."""

    def call(*arguments: str | Path) -> Result:
        result = run(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `swarm init` wrote: north here, south elsewhere, with the heart example. Do not change it."""
    folder = tmp_path_factory.mktemp("consortium") / "trial"
    members = "north,south@node.south.example:4200"
    made = run("init", folder, "--members", members, "--example", "heart", "--base-port", "0")
    assert made.exit_code == 0, made.output
    return folder
