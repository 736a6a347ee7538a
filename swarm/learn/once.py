"""An agreed first step: numbers of all members added up once, for example the column sums of a shared scaling."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from swarm.config import load_site
from swarm.errors import ConfigError
from swarm.learn.attach import Node
from swarm.learn.seat import Place, Seat
from swarm.learn.state import Checkpoint, as_tensors, schema_of, write_update
from swarm.merge.schema import check_same

logger = logging.getLogger(__name__)


def sum_over_members(
    site: str | Path, tensors: Mapping[str, Any], run: str, *, patience_s: float = 600.0
) -> dict[str, Tensor]:
    """The sum of every member's tensors, the same bits at every site.

    Takes part in a run of one round with merge = "sum": where that is over already, its result is given at once.
    A node that this call starts is kept for the next run of this process and ends with it.

    Args:
        site: the site's settings, `sites/NAME.toml`.
        tensors: float tensors or arrays by name, as in the run's first checkpoint, within the policy's range.
        run: the run's name on the ledger.
        patience_s: how long a node that is away is waited for, each time, before `UnavailableError`.
    Returns:
        Tensors by name, on the CPU, in the dtypes given.
    Raises:
        ConfigError: no such run, not approved here, not a sum of one round, or the tensors do not fit it.
        ValueError: a value that is not finite or beyond the range; names the tensors.
    """
    values = as_tensors(tensors)
    whole = [name for name, value in values.items() if not value.is_floating_point()]
    if whole:
        raise ValueError(f"{', '.join(whole)}: whole numbers are not added by a merge; give floats, float64 for counts")
    seat = Seat(Node(load_site(Path(site)), patience_s=patience_s, starts=True), run)
    try:
        place = seat.take()
        policy = seat.policy
        if policy.merge != "sum" or policy.rounds != 1:
            raise ConfigError(
                f"run {run} has merge = {policy.merge!r} and {policy.rounds} rounds; a sum has 'sum' and one round"
            )
        base = Checkpoint(place.path)
        try:
            check_same(base.schema, schema_of(values))
        except ValueError as error:
            raise ConfigError(f"the tensors do not fit run {run}: {error}") from error
        if not place.finished:
            place = _add(seat, place, base, values)
        return {name: tensor.clone() for name, tensor in Checkpoint(place.path).tensors.items()}
    finally:
        seat.leave(keep_node=True)


def _add(seat: Seat, place: Place, base: Checkpoint, values: Mapping[str, Tensor]) -> Place:
    state = {name: base.tensors[name] + value.cpu() for name, value in values.items()}
    with seat.update_file() as path:
        beyond = write_update(state, base, path, range_max=seat.policy.range)
        if beyond:
            raise ValueError(f"{', '.join(beyond)}: values beyond ±{seat.policy.range:g}, the range of run {seat.run}")
        return seat.exchange(place, path, samples=1, metrics={})
