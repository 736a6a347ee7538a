"""Taking part from Lightning: `Trainer(callbacks=[SwarmLightningCallback(site, run)])`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from swarm.errors import ConfigError
from swarm.learn.loop import Loop
from swarm.learn.trackers import Tracker

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.data import extract_batch_size
except ImportError:
    try:
        from pytorch_lightning import Callback
        from pytorch_lightning.utilities.data import extract_batch_size
    except ImportError as error:
        raise ConfigError("Lightning is not installed: pip install 'swarm-ledger[lightning]'") from error

logger = logging.getLogger(__name__)

STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
"""Under which every process has the whole model, and its optimizer no copy of the parameters."""


class SwarmLightningCallback(Callback):  # type: ignore[misc]
    """A LightningModule's part in a run; when the fit ends, the module holds the last checkpoint that this site saw.

    The fit stops when the run is over, so let `max_epochs` be -1. A step of the optimizer counts as one batch, whatever
    it accumulates. `ckpt_path` brings back the trainer's own state; parameters are always the run's.

    Args:
        site: the site's settings, `sites/NAME.toml`.
        run: the run's name on the ledger.
        part: the submodule that takes part, `"net"`; the whole module by default.
        metrics: what is told to the others, by the names under which the module logs it: `{"auc": "val_auc"}`. Where
            there are any, the trainer validates each new checkpoint.
        samples: how many rows a batch has; without it, the length of its first tensor.
        keep: write optimizers, schedulers, scaler and everybody's generators with each checkpoint, for training that
            starts again.
        patience_s: how long a node that is away is waited for, each time, before `UnavailableError`.
        trackers: where each round is recorded besides the trainer's loggers.
    """

    def __init__(
        self,
        site: str | Path,
        run: str = "heart",
        *,
        part: str = "",
        metrics: Mapping[str, str] | None = None,
        samples: Callable[[Any], int] = extract_batch_size,
        keep: bool = True,
        patience_s: float = 600.0,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._site = site
        self._run = run
        self._part_name = part
        self._metrics = dict(metrics or {})
        self._samples = samples
        self._keeps = keep
        self._patience_s = patience_s
        self._trackers = tuple(trackers)
        self._loop: Loop | None = None
        self._global_step = 0
        self._has_drawn = False
        """For the next epoch's loader, as Lightning does for the first epoch before it says that the epoch begins."""
        self._val_check_batch: int | float | None = None

    @property
    def loop(self) -> Loop:
        """The part in the run; its `swarm` says round, checkpoint and the best one."""
        if self._loop is None:
            raise ValueError("known once the fit has begun")
        return self._loop

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Join the run: the optimizers are there, and the trainer has drawn no number for its loader yet."""
        strategy = type(trainer.strategy).__name__
        if strategy not in STRATEGIES:
            raise ConfigError(
                f"the trainer's {strategy} may split the model or hold a second copy; a site hands in a whole model: "
                "use one device, or strategy='ddp'"
            )
        self._loop = Loop(
            self._part(pl_module), self._site, self._run, patience_s=self._patience_s, metrics=self._metrics,
            keep=_kept(trainer) if self._keeps else None, trackers=[*self._trackers, _Loggers(trainer)],
        )  # fmt: skip
        self._loop.begin()
        self._has_drawn = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on counting where the trainer does."""
        self._global_step = trainer.global_step
        if self.loop.finished:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The schedulers have moved and the epoch's order is not drawn yet: what is kept is kept as it is now."""
        if not self._has_drawn:
            self.loop.save()
        self._has_drawn = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are unscaled and not clipped yet."""
        self.loop.correct()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count; after the last batch of a round, exchange."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None and pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches  # the trainer has divided it
        self.loop.add(self._samples(batch), loss)
        if trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        if self.loop.step():
            self._validate_next(trainer)
        if self.loop.finished:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell what was measured on a checkpoint."""
        if self._val_check_batch is not None:
            trainer.val_check_batch, self._val_check_batch = self._val_check_batch, None
        if self._loop is not None and not trainer.sanity_checking:
            self._loop.tell(trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the run."""
        if not self.loop.finished:
            logger.warning("run %s goes on, and the fit ends: let max_epochs be -1", self._run)
        self.loop.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the run; the module is left as training left it."""
        if self._loop is not None:
            self._loop.end(failed=True)

    def _part(self, pl_module: nn.Module) -> nn.Module:
        try:
            return pl_module.get_submodule(self._part_name)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise ConfigError(f"part = {self._part_name!r} is no submodule; there are {names}") from error

    def _validate_next(self, trainer: Any) -> None:
        """Let the trainer's own check, which comes next, find that a validation is due."""
        if self._metrics and self._val_check_batch is None:
            self._val_check_batch, trainer.val_check_batch = trainer.val_check_batch, 1


class _Loggers:
    """The trainer's own loggers, TensorBoard's and MLflow's among them, as a tracker."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def record(self, round_: int, values: Mapping[str, float]) -> None:
        found = {f"swarm/{name}": value for name, value in values.items()} | {"swarm/round": round_}
        for one in self._trainer.loggers:
            one.log_metrics(found, step=self._trainer.global_step)

    def close(self) -> None:
        """The trainer closes them."""


def _kept(trainer: Any) -> dict[str, Any]:
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    found = {f"optimizer.{number}": value for number, value in enumerate(trainer.optimizers)}
    found |= {f"scheduler.{number}": value for number, value in enumerate(schedulers)}
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return found if scaler is None else found | {"scaler": scaler}
