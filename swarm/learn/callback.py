"""Taking part from a training loop: counts batches, and at the agreed interval exchanges the model with the run.

What the members agreed (interval, weights, merge, deadlines) comes from the ledger through the node and is no
argument here. The model's bytes pass through files of the store, never through the socket.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from swarm.config import EPSILON, Policy, load_site
from swarm.encoding import sha256
from swarm.errors import ConfigError
from swarm.learn import resume
from swarm.learn.attach import Node
from swarm.learn.part import Part
from swarm.learn.private import Private
from swarm.learn.seat import Best, Place, Seat
from swarm.learn.state import Checkpoint, plain
from swarm.learn.trackers import Tracker

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
        keep: optimizer, scheduler, generators by a name: what has a `state_dict`, and torch's and numpy's generators.
            Their states, and those of everybody's generators, are written with each checkpoint; training that starts
            again takes them up and goes on bit for bit from there. None: they are left alone.
        trackers: where each round is recorded, for this site's own people; one that fails is named in the log.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str | Path,
        run: str = "heart",
        *,
        patience_s: float = 600.0,
        keep: Mapping[str, Any] | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        resume.check_keepable(keep or {})
        self._trackers = tuple(trackers)
        self.model = model
        self._keep = keep
        self._seat = Seat(Node(load_site(Path(site)), patience_s=patience_s, starts=True), run)
        self._part: Part | None = None
        self._private: Private | None = None
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

    @property
    def policy(self) -> Policy:
        """What the members agreed on."""
        return self._seat.policy

    @property
    def sync_interval(self) -> int:
        """Batches of this round: what the members agreed on, stretched while the loss falls if they agreed on that."""
        return self._here().sync_interval

    @property
    def best(self) -> Best | None:
        """The best checkpoint so far by the agreed metric; None where none is agreed on, or none was judged yet."""
        return self._here().best

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
            place = self._seat.take()
            self._part = Part(self.model, self._seat.policy)
            self._adopt(place, self._kept(place, self._seat.keep_path))
            self._recall_losses(place)
        except BaseException:
            self._seat.leave()
            raise
        logger.info("run %s: attached at round %d of %d", self._seat.run, self.round, self.rounds)

    def private(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: DataLoader[Any],
        *,
        patients: Sequence[Hashable] | None = None,
        rows_max: int = 16,
        assume_spent: bool = False,
    ) -> tuple[nn.Module, Any, Any]:
        """Model, optimizer and loader to train with in a run whose members agreed on differential privacy.

        Once, before the first batch. In a run that is not private all three come back as they are. The noise is
        solved from rounds, sync interval, clip, epsilon and delta of the policy and from how often the loader's batch
        size draws a row; batches are drawn anew from the whole data set, and may be empty. The model has to be in
        training mode, and the loss the mean over single rows.

        Args:
            patients: whose each row of the loader's data set is, where the policy's unit is the patient.
            rows_max: how many rows of one patient are in a batch at most.
            assume_spent: the operator's word that the site's file of what was spent is lost: all rounds until now count
                as spent.
        Raises:
            ConfigError: a layer, the loader, or Opacus is not fit for it; names what.
            StorageError: the file of what this site spent is damaged, or knows less than the ledger.
        """
        policy = self._seat.policy
        if model is not self.model:
            raise ValueError("`private` takes the model that this callback was made with")
        if not policy.private:
            return model, optimizer, loader
        if self._private is not None or self._batches:
            raise ValueError("`private` is called once, before the first batch")
        place = self._here()
        self._private = Private(
            plain(model), optimizer, loader, policy, self._seat.spent_path,
            told=place.epsilon, done=place.round, patients=patients, rows_max=rows_max, assume_spent=assume_spent,
        )  # fmt: skip
        if not place.finished and self._private.released(place.round):
            logger.info("run %s round %d: an update was given away before; waiting", self._seat.run, place.round)
            self._adopt(self._seat.wait(place), None)
        return model, self._private.optimizer, self._private.loader

    def on_before_optimizer_step(self) -> None:
        """Between `loss.backward()` and `optimizer.step()`, gradients unscaled: correct them as the members agreed.

        Needed where the policy has `proximal` or `scaffold`; nothing happens otherwise.

        Raises:
            ConfigError: a gradient is sparse.
        """
        part = self._at_work()
        if part.policy.corrects_steps:
            part.correct()

    def on_batch_end(self, samples: int, loss: float | None = None) -> bool:
        """Count one batch; at the agreed interval, exchange. True when the model now holds a new checkpoint.

        In a private run neither is told: the weight is the loader's batch size times the batches, and no loss.

        Args:
            samples: rows in this batch: the weight of this site's update is their sum, if the policy weighs so.
            loss: this batch's mean loss; the round's mean is recorded with the submission.

        Raises:
            ValueError: the update has a value that is not finite; names the tensors. `restart` goes on from the
                last checkpoint without it.
        """
        if self._private is not None:
            samples, loss = self._private.samples, None
        if samples < 1:
            raise ValueError(f"a batch of {samples} samples; at least one is trained on")
        self._batches += 1
        if self.finished:
            return False
        self._samples += samples
        if loss is not None and math.isfinite(loss):
            self._loss += float(loss) * samples
            self._loss_samples += samples
        if self._batches < self.sync_interval and not self._time_is_over():
            return False
        self._exchange()
        return True

    def on_epoch_end(self, metrics: Mapping[str, float]) -> None:
        """Numbers to record with the next submission; a later number of the same name replaces an earlier one.

        Call it before the first batch of a round with what was measured on the checkpoint. What changes the states in
        `keep` between two rounds (`scheduler.step()`) comes before it, or is followed by `save`.
        """
        reserved = [name for name in metrics if name.startswith("swarm.")]
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: names that begin with swarm. are the run's own")
        merged = dict(self._metrics)
        for name, value in metrics.items():
            if math.isfinite(value):
                merged[name] = float(value)
            else:
                logger.warning("run %s: the metric %s is %s and is not recorded", self._seat.run, name, value)
        longest = -1.2345678901234567e-100
        own = {"loss": longest} | ({EPSILON: longest} if self._agreed_private() else {})
        size = len(json.dumps({**own, **merged}, separators=(",", ":")))
        if size > METRICS_MAX_BYTES:
            raise ValueError(f"metrics of {size} bytes, the ledger takes {METRICS_MAX_BYTES}: name fewer, or shorter")
        self._metrics = merged
        if self._place is not None and not self._batches:
            self.save()

    def on_train_end(self, *, failed: bool = False) -> None:
        """Detach; the model holds the last checkpoint unless training `failed`."""
        if self._place is not None and not failed:
            if self._batches and self.finished:
                self.restart()
            elif not self.finished:
                logger.info("run %s: leaves at round %d of %d", self._seat.run, self.round, self.rounds)
        for tracker in self._trackers:
            self._ask_tracker(tracker, tracker.close)
        self._seat.leave()

    def restart(self) -> None:
        """Go back to the current checkpoint: what was trained since is dropped, also of what stays at this site."""
        self._at_work().restart()
        self._forget()

    def save(self) -> None:
        """Keep the states of what `keep` names as they are now, for training that starts again from this checkpoint.

        Raises:
            ValueError: batches were trained since the checkpoint: these states belong to no checkpoint.
            ConfigError: a state holds something other than tensors and plain values.
        """
        if self._batches:
            raise ValueError(f"{self._batches} batches after the checkpoint; states are kept between two rounds only")
        place, policy = self._here(), self._seat.policy
        if self._keep is None and not policy.personal and not policy.scaffold:
            return
        kept = resume.Kept(
            policy=sha256(policy.encode()).hex(),
            round=place.round,
            checkpoint=place.checkpoint,
            metrics=self._metrics,
            tensors=self._at_work().kept(),
            states=resume.states_of(self._keep) if self._keep is not None else {},
        )
        resume.write(self._seat.keep_path, kept)

    def adopt_best(self) -> Best:
        """Give the model the best checkpoint of the run, once it is over; what stays at this site is left as it is.

        Raises:
            ValueError: the run is not over, or no checkpoint was judged.
            StorageError, UnavailableError: nobody has its bytes any more.
        """
        best = self.best
        if not self.finished or best is None:
            raise ValueError(
                f"run {self._seat.run}: a best checkpoint is known once the run is over and one was judged"
            )
        self._at_work().adopt(Checkpoint(self._seat.object(best.checkpoint)))
        return best

    def write_update(self, path: str | Path) -> None:
        """Write what would be submitted now, before it leaves: for `swarm leak-check SITE --run RUN --update FILE`.

        Raises:
            ConfigError: the run's updates travel in an encoding, so that a file of them is no update; or the model
                does not fit the run any more.
            ValueError: the change is not finite.
        """
        if self._seat.policy.encoded:
            raise ConfigError(f"updates of run {self._seat.run} travel encoded as {self._seat.policy.encoding}")
        self._write(Path(path))

    # --- the exchange

    def _exchange(self) -> None:
        place = self._here()
        metrics = dict(self._metrics)
        if self._loss_samples:
            metrics["loss"] = self._loss / self._loss_samples
        self._check_told(metrics)
        private = self._check_private()
        with self._seat.update_file() as path:
            self._write(path)
            self._keep_losses(place)
            if private is not None:
                metrics[EPSILON] = private.release(place.round)
            began_s = time.monotonic()
            after = self._seat.exchange(place, path, samples=self._samples, metrics=metrics)
            self._track(place.round, metrics, time.monotonic() - began_s)
        if not after.taken:
            self._at_work().forget_update()
            self._keep_losses(place)
        self._adopt(after, None)

    def _write(self, path: Path) -> None:
        policy = self._seat.policy
        beyond = self._at_work().write(path)
        if beyond and policy.merge == "sum":
            raise ValueError(
                f"the change of {', '.join(beyond)} passes ±{policy.range:g}, the range of run {self._seat.run}"
            )
        if beyond:
            logger.warning(
                "run %s round %d: the change of %s passes ±%g and will be clipped",
                self._seat.run, self.round, ", ".join(beyond[:5]), policy.range,
            )  # fmt: skip

    def _track(self, round_: int, metrics: Mapping[str, float], exchange_s: float) -> None:
        values = {**metrics, "samples": self._samples, "batches": self._batches, "exchange_s": exchange_s}
        for tracker in self._trackers:
            self._ask_tracker(tracker, partial(tracker.record, round_, values))

    def _ask_tracker(self, tracker: Tracker, work: Callable[[], None]) -> None:
        """Whatever happens to a tracker, the run goes on."""
        try:
            work()
        except Exception as error:
            logger.warning("run %s: %s recorded nothing: %s", self._seat.run, type(tracker).__name__, error)

    def _check_told(self, metrics: Mapping[str, float]) -> None:
        """Whether the numbers are there by which the run goes on."""
        policy = self._seat.policy
        if policy.sync_interval_max and "loss" not in metrics:
            raise ConfigError(
                f"run {self._seat.run} stretches its interval while the loss falls: give every batch's loss, "
                "`on_batch_end(samples=…, loss=…)`"
            )
        if policy.best_metric and self.round and policy.best_metric not in metrics:
            logger.warning(
                "run %s round %d: no %s to judge the checkpoint by; `on_epoch_end` takes it at the start of a round",
                self._seat.run, self.round, policy.best_metric,
            )  # fmt: skip
        if policy.acts_on_alarm and policy.alarm_metric not in metrics:
            logger.warning(
                "run %s round %d: no %s for the members' alarm; `on_epoch_end` takes it at the start of a round",
                self._seat.run, self.round, policy.alarm_metric,
            )  # fmt: skip

    def _agreed_private(self) -> bool:
        return self._place is not None and self._seat.policy.private

    def _check_private(self) -> Private | None:
        """What makes this site's steps private, where the members agreed on it."""
        if self._seat.policy.private and self._private is None:
            raise ConfigError(
                f"run {self._seat.run} is private: train with what `swarm.private(model, optimizer, loader)` gives; "
                "nothing is submitted without it"
            )
        return self._private

    def _time_is_over(self) -> bool:
        """Whether this site has trained for as long as the members agreed: then it submits what it has."""
        work_s = self._seat.policy.work_s
        return work_s > 0 and time.monotonic() - self._began_s >= work_s

    def _kept(self, place: Place, path: Path) -> resume.Kept | None:
        """What this site kept of the run in a file, if it did and it can be of this run."""
        kept = resume.read(path)
        digest = sha256(self._seat.policy.encode()).hex()
        if kept is not None and (kept.policy != digest or kept.round > place.round):
            logger.warning("run %s: %s is of another run and is left alone", self._seat.run, path)
            return None
        return kept

    def _keep_losses(self, place: Place) -> None:
        """Before anybody sees an update: what encoding takes, with it and without it."""
        policy, path = self._seat.policy, self._seat.lost_path
        if policy.encoded:
            tensors = self._at_work().kept_losses()
            digest = sha256(policy.encode()).hex()
            resume.write(path, resume.Kept(digest, place.round, place.checkpoint, {}, tensors, {}))

    def _recall_losses(self, place: Place) -> None:
        """Go on with what encoding took before. An update of a round that is over is held to be taken."""
        if not self._seat.policy.encoded:
            return
        path = self._seat.lost_path
        kept = self._kept(place, path)
        if kept is not None:
            try:
                self._at_work().restore_losses(kept.tensors, taken=kept.round < place.round)
            except ConfigError as error:
                raise ConfigError(f"{error}; remove {path} to go on without it") from error

    def _adopt(self, place: Place, kept: resume.Kept | None) -> None:
        """Take over a place's checkpoint; with `kept`, go on as training that ended there would have."""
        self._at_work().adopt(Checkpoint(place.path))
        self._place = place
        self._forget()
        if kept is not None:
            self._take_up(place, kept)
        self.save()

    def _take_up(self, place: Place, kept: resume.Kept) -> None:
        try:
            self._at_work().restore(kept.tensors)
            if self._keep is not None and kept.states:
                resume.restore(self._keep, kept.states)
        except ConfigError as error:
            raise ConfigError(f"{error}; remove {self._seat.keep_path} to start without what was kept") from error
        if kept.checkpoint == place.checkpoint:
            self._metrics = dict(kept.metrics)
            logger.info("run %s round %d: goes on as it was left", self._seat.run, place.round)
        else:
            logger.info(
                "run %s round %d: goes on with what was kept at round %d", self._seat.run, place.round, kept.round
            )

    def _at_work(self) -> Part:
        if self._part is None:
            raise ValueError("use `with SwarmCallback(...)`, or call on_train_begin first")
        return self._part

    def _forget(self) -> None:
        self._batches = 0
        self._samples = 0
        self._loss = 0.0
        self._loss_samples = 0
        self._metrics = {}
        self._began_s = time.monotonic()

    def _here(self) -> Place:
        if self._place is None:
            raise ValueError("use `with SwarmCallback(...)`, or call on_train_begin first")
        return self._place
