"""A site's seat in one run: joins it, hands in an update, and learns where the run goes on.

Used by everything in this package that takes part; knows no tensors.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swarm.config import Policy
from swarm.errors import StorageError
from swarm.learn.attach import Node
from swarm.learn.leak.stated import with_leak_check

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best of a run's checkpoints so far, by what the members told of it."""

    round: int
    """How many rounds of the run were behind it."""
    checkpoint: str
    """The digest, `0x…`."""
    value: float
    """Of the agreed metric: the lower median of the members'."""


@dataclass(frozen=True)
class Place:
    """Where a run stands."""

    round: int
    checkpoint: str
    """The digest, `0x…`."""
    path: Path
    """The checkpoint's file in the site's store; not to be written to."""
    finished: bool
    sync_interval: int
    """Batches until the next exchange."""
    best: Best | None
    """The best checkpoint so far, where the members agreed on what is better."""
    taken: bool = True
    """The round before took this site's update, if it handed one in."""
    epsilon: float = 0.0
    """In a private run, the most that the ledger says this site has spent."""


class Seat:
    """One run, by name, at one site's node."""

    def __init__(self, node: Node, run: str) -> None:
        self.run = run
        self._node = node
        self._id = 0
        self._policy: Policy | None = None

    @property
    def policy(self) -> Policy:
        """What the members agreed for this run."""
        if self._policy is None:
            raise ValueError("the policy is known once the run is joined")
        return self._policy

    def take(self) -> Place:
        """Join the run, once it is open and this site's operator approved it, and see where it stands."""
        answer = self._node.call("swarm_attach", run=self.run if self._policy is None else str(self._id))
        self._id = answer["id"]
        self._policy = Policy(**answer["policy"])
        self._node.on_return = self._take_again
        return _place(answer)

    def _take_again(self) -> None:
        """A node that was started again does not know that training is attached."""
        logger.info("run %s: the node is back", self.run)
        self.take()

    def wait(self, place: Place) -> Place:
        """Where the run stands after the round that `place` is at, to which this site has submitted before.

        The current place if the node has no submission of this site there.
        """
        return _place(self._node.call("swarm_wait", run=self._id, round=place.round))

    @property
    def spent_path(self) -> Path:
        """Where the site writes down what it spent of its privacy budget."""
        return self.keep_path.with_suffix(".privacy.json")

    @property
    def lost_path(self) -> Path:
        """Where the site keeps what encoding took from its updates."""
        return self.keep_path.with_suffix(".lost.safetensors")

    @property
    def keep_path(self) -> Path:
        """Where the site keeps what training needs beside the checkpoint."""
        return self._node.site.folder / "training" / f"{self._id}.safetensors"

    def object(self, digest: str) -> Path:
        """The file of an object in the site's store; the node gets it from the others where it is not there.

        Raises:
            StorageError, UnavailableError: nobody has it.
        """
        return Path(self._node.call("swarm_object", digest=digest)["path"])

    @contextlib.contextmanager
    def update_file(self) -> Iterator[Path]:
        """A file of the site's folder for an update, gone afterwards. It may be there, with bytes that mean nothing."""
        used = self._node.site.next_update
        folder = used.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f"{self._id}-") as inner:
                path = Path(inner) / "update.safetensors"
                with contextlib.suppress(FileNotFoundError):
                    used.replace(path)
                yield path
        except OSError as error:
            raise StorageError(f"an update cannot be written to {folder}: {error}") from error

    def exchange(self, place: Place, path: Path, *, samples: int, metrics: Mapping[str, float]) -> Place:
        """Submit the update of the round that `place` is at, wait for the round's end, and see where the run stands.

        Returns the current place also if the round went on without this update: the site was too late.
        """
        weight = min(samples, self.policy.weight_max) if self.policy.weights == "samples" else 1
        metrics = with_leak_check(self._node.site.folder, metrics)
        while True:
            answer = self._node.call(
                "swarm_submit", run=self._id, round=place.round, path=str(path), weight=weight, metrics=dict(metrics)
            )
            if not answer["submitted"]:
                after = _place(self._node.call("swarm_wait", run=self._id, round=place.round))
                if after.finished:
                    return replace(after, taken=False)
                after = replace(self.take(), taken=False)  # the others wait for this site again
                logger.warning(
                    "run %s round %d: closed without this site's update, which came too late; going on from round %d",
                    self.run, place.round, after.round,
                )  # fmt: skip
                return after
            logger.info("run %s round %d: submitted, weight %d", self.run, place.round, weight)
            after = _place(self._node.call("swarm_wait", run=self._id, round=place.round))
            if after.round > place.round or after.finished:
                return after
            logger.info("run %s round %d: started again, and the node has no update any more", self.run, place.round)

    def leave(self, *, keep_node: bool = False) -> None:
        """Hang up; a node that was started for this run ends too, unless it is kept for the next one."""
        self._node.on_return = None
        if keep_node:
            self._node.hang_up()
        else:
            self._node.close()


def _place(answer: Mapping[str, Any]) -> Place:
    best = answer["best"]
    return Place(
        round=answer["round"],
        checkpoint=answer["checkpoint"],
        path=Path(answer["path"]),
        finished=answer["finished"],
        sync_interval=answer["sync_interval"],
        best=None if best is None else Best(best["round"] + 1, best["checkpoint"], best["value"]),
        epsilon=answer["epsilon"],
    )
