"""Taking part from a training loop: counts batches, and at the agreed interval exchanges the model with the run.

What the members agreed (interval, weights, merge, deadlines) comes from the ledger through the node and is no
argument here. The model's bytes pass through files of the store, never through the socket.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import nn

from swarm.config import load_site
from swarm.learn.attach import Node
from swarm.learn.seat import Place, Seat
from swarm.learn.state import Checkpoint, State, write_update

logger = logging.getLogger(__name__)

METRICS_MAX_BYTES = 512
"""What the ledger keeps with a submission: the metrics of a round as compact JSON, the loss among them."""


class SwarmCallback:
    """A model's part in a run: `with SwarmCallback(model, "sites/cleveland.toml") as swarm:`.

    Inside the block the model holds the run's checkpoint and trains on from it; when the block ends normally it
    holds the last checkpoint that this site saw. Optimizer state is the caller's and is left as it is.

    Args:
        model: its parameters and buffers take part, on whatever device they are.
        site: the site's settings, `sites/NAME.toml`.
        run: the run's name on the ledger.
        patience_s: how long a node that is away is waited for, each time, before `UnavailableError`.
    """

    def __init__(self, model: nn.Module, site: str | Path, run: str = "heart", *, patience_s: float = 600.0) -> None:
        self.model = model
        self._seat = Seat(Node(load_site(Path(site)), patience_s=patience_s, starts=True), run)
        self._base: Checkpoint | None = None
        self._place: Place | None = None
        self._metrics: dict[str, float] = {}
        self._forget()

    # --- where the run is

    @property
    def finished(self) -> bool:
        """The run has ended on the ledger: all rounds closed, or the members stopped it."""
        return self._here().finished

    @property
    def round(self) -> int:
        """How many rounds of the run are behind the parameters that the model trains on from."""
        return self._here().round

    @property
    def rounds(self) -> int:
        """How many rounds the members agreed on."""
        return self._seat.policy.rounds

    @property
    def checkpoint(self) -> str:
        """The digest of the checkpoint that the model trains on from, `0x…`: compare it with the other sites'."""
        return self._here().checkpoint

    # --- the training loop's calls

    def __enter__(self) -> SwarmCallback:
        self.on_train_begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on_train_end(failed=kind is not None)

    def on_train_begin(self) -> None:
        """Attach to the node, join the run and take over its current checkpoint.

        Raises:
            ConfigError: no such run, this site's operator has not approved it, or the model does not fit it.
            UnavailableError: no node, for as long as the patience.
        """
        try:
            self._adopt(self._seat.take())
        except BaseException:
            self._seat.leave()
            raise
        logger.info("run %s: attached at round %d of %d", self._seat.run, self.round, self.rounds)

    def on_batch_end(self, samples: int, loss: float | None = None) -> bool:
        """Count one batch; at the agreed interval, exchange. True when the model now holds a new checkpoint.

        Args:
            samples: rows in this batch: the weight of this site's update is their sum, if the policy weighs so.
            loss: this batch's mean loss; the round's mean is recorded with the submission.

        Raises:
            ValueError: the update has a value that is not finite; names the tensors. `restart` goes on from the
                last checkpoint without it.
        """
        if samples < 1:
            raise ValueError(f"a batch of {samples} samples; at least one is trained on")
        self._batches += 1
        if self.finished:
            return False
        self._samples += samples
        if loss is not None and math.isfinite(loss):
            self._loss += float(loss) * samples
            self._loss_samples += samples
        if self._batches < self._seat.policy.sync_interval:
            return False
        self._exchange()
        return True

    def on_epoch_end(self, metrics: Mapping[str, float]) -> None:
        """Numbers to record with the next submission; a later number of the same name replaces an earlier one."""
        merged = dict(self._metrics)
        for name, value in metrics.items():
            if math.isfinite(value):
                merged[name] = float(value)
            else:
                logger.warning("run %s: the metric %s is %s and is not recorded", self._seat.run, name, value)
        size = len(json.dumps({"loss": -1.2345678901234567e-100, **merged}, separators=(",", ":")))
        if size > METRICS_MAX_BYTES:
            raise ValueError(f"metrics of {size} bytes, the ledger takes {METRICS_MAX_BYTES}: name fewer, or shorter")
        self._metrics = merged

    def on_train_end(self, *, failed: bool = False) -> None:
        """Detach; the model holds the last checkpoint unless training `failed`."""
        if self._place is not None and not failed:
            if self._batches and self.finished:
                self.restart()
            elif not self.finished:
                logger.info("run %s: leaves at round %d of %d", self._seat.run, self.round, self.rounds)
        self._seat.leave()

    def restart(self) -> None:
        """Go back to the current checkpoint: what was trained since is dropped."""
        assert self._base is not None, "on_train_begin comes first"
        State(self.model).load(self._base)
        self._forget()

    # --- the exchange

    def _exchange(self) -> None:
        assert self._base is not None
        place = self._here()
        metrics = dict(self._metrics)
        if self._loss_samples:
            metrics["loss"] = self._loss / self._loss_samples
        with self._seat.update_file() as path:
            self._write(path)
            after = self._seat.exchange(place, path, samples=self._samples, metrics=metrics)
        self._adopt(after)

    def _write(self, path: Path) -> None:
        assert self._base is not None
        state, policy = State(self.model), self._seat.policy
        state.check_fits(self._base)
        beyond = write_update(state.tensors, self._base, path, range_max=policy.range)
        if beyond and policy.merge == "sum":
            raise ValueError(
                f"the change of {', '.join(beyond)} passes ±{policy.range:g}, the range of run {self._seat.run}"
            )
        if beyond:
            logger.warning(
                "run %s round %d: the change of %s passes ±%g and will be clipped",
                self._seat.run, self.round, ", ".join(beyond[:5]), policy.range,
            )  # fmt: skip

    def _adopt(self, place: Place) -> None:
        base = Checkpoint(place.path)
        State(self.model).load(base)
        self._base, self._place = base, place
        self._forget()

    def _forget(self) -> None:
        self._batches = 0
        self._samples = 0
        self._loss = 0.0
        self._loss_samples = 0
        self._metrics = {}

    def _here(self) -> Place:
        if self._place is None:
            raise ValueError("use `with SwarmCallback(...)`, or call on_train_begin first")
        return self._place
