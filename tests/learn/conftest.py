"""Four hospitals with real node processes, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.learn.runs import NAMES, Operators
from tests.node.hospitals import Hospitals


@pytest.fixture(scope="package")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    with Hospitals(tmp_path_factory.mktemp("learn"), NAMES) as found:
        for name in NAMES:
            found.start(name)
        for name in NAMES:
            found.ask(name, "swarm_status")
        yield found


@pytest.fixture(scope="package")
def operators(hospitals: Hospitals) -> Operators:
    return Operators(hospitals)


@pytest.fixture(scope="package")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    """One hospital is a consortium too; what it trains depends on itself alone."""
    with Hospitals(tmp_path_factory.mktemp("alone"), ["north"]) as found:
        found.start("north")
        found.ask("north", "swarm_status")
        yield found
