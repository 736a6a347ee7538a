"""Taking part from Hugging Face's `Trainer`: `Trainer(..., callbacks=[SwarmTrainerCallback(site, run)])`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from swarm.errors import ConfigError
from swarm.learn.loop import Loop
from swarm.learn.trackers import Tracker

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ConfigError("Transformers is not installed: pip install 'swarm-ledger[transformers]'") from error

logger = logging.getLogger(__name__)


class SwarmTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """A model's part in a run; when `train` returns, the model holds the last checkpoint that this site saw.

    Training stops when the run is over; let `max_steps` or `num_train_epochs` be at least as long. A step of the
    optimizer counts as one batch, whatever it accumulates. Of a PEFT model only the adapter travels. Samples and losses
    are seen where the model is called: a loss that `compute_loss` makes itself is not told.

    Args:
        site: the site's settings, `sites/NAME.toml`.
        run: the run's name on the ledger.
        metrics: what is told to the others, by the names that `evaluate` gives it: `{"auc": "eval_auc"}`. Where there
            are any, the trainer evaluates each new checkpoint.
        keep: write optimizer, scheduler, scaler and everybody's generators with each checkpoint, for training that
            starts again.
        patience_s: how long a node that is away is waited for, each time, before `UnavailableError`.
        trackers: where each round is recorded.
    """

    def __init__(
        self,
        site: str | Path,
        run: str = "heart",
        *,
        metrics: Mapping[str, str] | None = None,
        keep: bool = True,
        patience_s: float = 600.0,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._site = site
        self._run = run
        self._metrics = dict(metrics or {})
        self._keeps = keep
        self._patience_s = patience_s
        self._trackers = tuple(trackers)
        self._loop: Loop | None = None
        self._hook: RemovableHandle | None = None

    @property
    def loop(self) -> Loop:
        """The part in the run; its `swarm` says round, checkpoint and the best one."""
        if self._loop is None:
            raise ValueError("known once training has begun")
        return self._loop

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Join the run."""
        _check(args)
        self._let_go()
        model, optimizer = given["model"], given["optimizer"]
        keep = {"optimizer": optimizer, "scheduler": given["lr_scheduler"]}
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            keep["scaler"] = scaler
        self._loop = Loop(
            model, self._site, self._run, patience_s=self._patience_s, metrics=self._metrics,
            keep=keep if self._keeps else None, trackers=self._trackers,
        )  # fmt: skip
        self._loop.begin()
        processes = 1 if args.average_tokens_across_devices else args.world_size
        self._hook = model.register_forward_hook(_Watch(self._loop, processes), with_kwargs=True)
        control.should_training_stop = self._loop.finished

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The epoch's order is not drawn yet: what is kept is kept as it is now."""
        self.loop.save()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Gradients are unscaled, and clipped already."""
        self.loop.correct()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Count; after the last step of a round, exchange."""
        if self.loop.step() and self._metrics:
            control.should_evaluate = True
        if self.loop.finished:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **given: Any) -> None:
        """Tell what was measured on a checkpoint."""
        if self._loop is not None:
            self._loop.tell(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Leave the run."""
        if not self.loop.finished:
            logger.warning("run %s goes on, and training ends: give the trainer more steps", self._run)
        self.loop.end()
        self._release()

    def _let_go(self) -> None:
        """Of training that failed: `Trainer` does not say so."""
        if self._hook is not None:
            self.loop.end(failed=True)
            self._release()

    def _release(self) -> None:
        assert self._hook is not None
        self._hook.remove()
        self._hook = None


class _Watch:
    """Sees rows and loss of every training batch where the model is called; no callback is told them."""

    def __init__(self, loop: Loop, processes: int) -> None:
        self._loop = loop
        self._processes = processes

    def __call__(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if not model.training:
            return
        tensors = [value for value in (*kwargs.values(), *args) if isinstance(value, Tensor) and value.ndim]
        if not tensors:
            raise ConfigError("a batch without a tensor: its rows cannot be counted")
        loss = output.get("loss") if isinstance(output, Mapping) else None
        is_share = kwargs.get("num_items_in_batch") is not None
        if loss is not None and is_share:
            loss = loss / self._processes
        self._loop.add(len(tensors[0]), loss, is_share=is_share)


def _check(args: Any) -> None:
    """ConfigError names a setting of the trainer under which a site could not take part."""
    faults = {
        "deepspeed splits the model or holds a second copy of it; take torchrun without it": args.deepspeed,
        "fsdp splits the model; take torchrun without it": args.fsdp,
        f"{args.n_gpu} GPUs in one process: start one process for each with torchrun, or let it see one": args.n_gpu
        > 1,
        "load_best_model_at_end would put another model in place of the run's last checkpoint: turn it off; "
        "`swarm.best` names the best one": args.load_best_model_at_end,
    }
    for words, found in faults.items():
        if found:
            raise ConfigError(f"TrainingArguments: {words}")
