"""A little of the campaign in every test run; `make fuzz` is the whole of it."""

from __future__ import annotations

import pytest

from swarm.encoding import unpack
from tests.fuzz.__main__ import Escaped, fuzz
from tests.fuzz.targets import Target, refusing, targets


def test_nothing_but_refusals_comes_of_nonsense_and_nothing_grows() -> None:
    for target in targets().values():
        assert fuzz(target, 600, seed=1) < 32, target.name


def test_a_planted_mistake_is_found_and_its_input_named() -> None:
    def careless(data: bytes) -> object:
        item = unpack(data, max_bytes=1 << 20)
        return item[0] if isinstance(item, list) else item  # an empty list has no first item

    target = Target("careless", (b"\xc2\x01\x02", b"\xc0"), refusing(careless))
    with pytest.raises(Escaped, match=r"careless, seed 0, input \d+: IndexError"):
        fuzz(target, 1000, seed=0)
