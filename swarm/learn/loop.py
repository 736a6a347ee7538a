"""Between a library's training loop and a `SwarmCallback`: what Lightning's and Transformers' loops have in common.

A step of the optimizer is a batch of the run, however many batches of the loader it accumulates and over however many
processes. Of several processes the first alone speaks to the node; the others have from it what it was told, and the
new parameters by broadcast. Each process has the whole model: one that is split over processes is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from swarm.errors import ConfigError, SwarmError
from swarm.learn.callback import SwarmCallback
from swarm.learn.state import State
from swarm.learn.trackers import Tracker

logger = logging.getLogger(__name__)

SPLIT = ("device_mesh", "ds_id")
"""What PyTorch's `DTensor` and DeepSpeed's parameters have and whole ones have not; neither is imported to ask."""


class Loop:
    """One model's part in a run, told step by step by a library's loop; every process makes one and calls the same.

    Args:
        keep: what is kept for a restart, as for `SwarmCallback`; nothing is where there are several processes, whose
            optimizers and generators are not those of the first.
        metrics: what is told to the others, by the names that the loop has for it: `{"auc": "val_auc"}`.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str | Path,
        run: str,
        *,
        patience_s: float,
        keep: Mapping[str, Any] | None,
        metrics: Mapping[str, str],
        trackers: Sequence[Tracker],
    ) -> None:
        _check_whole(model)
        self._model = model
        self._metrics = metrics
        self._processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._is_first = self._processes == 1 or dist.get_rank() == 0
        if keep and self._processes > 1:
            logger.info("run %s: %d processes, whose optimizers are not kept for a restart", run, self._processes)
            keep = None
        self._open = partial(SwarmCallback, model, site, run, patience_s=patience_s, keep=keep, trackers=trackers)
        self._swarm: SwarmCallback | None = None
        self._corrects = False
        self._steps = 0
        """Since the checkpoint."""
        self._warned = False
        self._has_left = False
        self.finished = False
        """The run is over; so for every process."""
        self._samples = self._loss_samples = 0
        # Tensors where the losses are, so that a batch does not wait for its device.
        self._shares: Tensor | float = 0.0
        self._weighted: Tensor | float = 0.0

    @property
    def swarm(self) -> SwarmCallback:
        """The part in the run: of the first process alone, once it has begun."""
        if self._swarm is None:
            raise ValueError("the part in the run is the first process's, once it has begun")
        return self._swarm

    def begin(self) -> None:
        """Join the run and take over its checkpoint.

        Raises:
            ConfigError: besides what `SwarmCallback` refuses: the run is private, which no library's loop is.
        """

        def join() -> dict[str, Any]:
            swarm = self._swarm = self._open()
            swarm.on_train_begin()
            if swarm.policy.private and not swarm.finished:
                swarm.on_train_end(failed=True)
                raise ConfigError(
                    f"run {swarm.policy.name} is private: its model, optimizer and loader come from "
                    "`SwarmCallback.private`, so it takes a plain loop"
                )
            return {"finished": swarm.finished, "corrects": swarm.policy.corrects_steps}

        told = self._of_first(join)
        self.finished, self._corrects = told["finished"], told["corrects"]
        self._share_model()

    def correct(self) -> None:
        """Between the backward pass and the optimizer's step: the policy's correction, the same at every process."""
        if not self._corrects:
            return
        self._of_first(lambda: self.swarm.on_before_optimizer_step())
        if self._processes > 1:
            for parameter in State(self._model).parameters.values():
                if parameter.grad is not None:
                    dist.broadcast(parameter.grad, 0)

    def add(self, samples: int, loss: Tensor | float | None, *, is_share: bool = False) -> None:
        """One batch of this process's loader.

        Args:
            samples: its rows.
            loss: the mean over them; with `is_share` its share of the loss of the whole step.
        """
        self._samples += samples
        if loss is None:
            return
        self._loss_samples += samples
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        if is_share:
            self._shares = self._shares + loss
        else:
            self._weighted = self._weighted + loss * samples

    def step(self) -> bool:
        """After the optimizer's step. True when the model now holds a new checkpoint."""
        samples, loss_samples, shares, weighted = self._over_processes(
            self._samples, self._loss_samples, float(self._shares), float(self._weighted)
        )
        loss = shares + weighted / loss_samples if loss_samples else None
        self._forget()
        self._steps += 1

        def end() -> dict[str, Any]:
            return {"new": self.swarm.on_batch_end(int(samples), loss), "finished": self.swarm.finished}

        told = self._of_first(end)
        self.finished = told["finished"]
        if told["new"]:
            self._steps = 0
            self._share_model()
        return bool(told["new"])

    def tell(self, found: Mapping[str, Any]) -> None:
        """What an evaluation found; it is told to the others if the model was a checkpoint, and not trained further.

        Raises:
            ConfigError: a metric that was asked for is not there; names those that are.
        """
        if self._has_left:
            return
        missing = [name for name in self._metrics.values() if name not in found]
        if missing:
            raise ConfigError(
                f"metrics: the evaluation gave no {', '.join(missing)}, but {', '.join(found) or 'nothing'}"
            )
        if self._steps:
            if not self._warned:
                self._warned = True
                logger.info("%d steps after a checkpoint: what is measured between two is not told", self._steps)
        elif self._metrics and self._swarm is not None:
            self._swarm.on_epoch_end({told: float(found[name]) for told, name in self._metrics.items()})

    def save(self) -> None:
        """Keep the states as they are now, if no step was made since the checkpoint."""
        if self._swarm is not None and not self._steps and not self._samples:
            self._swarm.save()

    def end(self, *, failed: bool = False) -> None:
        """Leave; the model holds the last checkpoint unless training `failed`."""
        if failed:
            if self._swarm is not None:
                self._swarm.on_train_end(failed=True)
            return
        self._has_left = True
        self._of_first(lambda: self.swarm.on_train_end())
        self._share_model()

    # --- several processes

    def _of_first(self, work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """What `work` gives at the first process, at all of them; where it fails there, it fails everywhere."""
        if self._processes == 1:
            return work() or {}
        told: dict[str, Any] = {}
        failure: Exception | None = None
        if self._is_first:
            try:
                told = work() or {}
            except Exception as error:
                failure, told = error, {"failure": str(error)}
        told = _broadcast(told, self._device())
        if failure is not None:
            raise failure
        if "failure" in told:
            raise SwarmError(f"the first process failed: {told['failure']}")
        return told

    def _over_processes(self, *values: float) -> tuple[float, ...]:
        if self._processes == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self._device())
        dist.all_reduce(total)
        return tuple(total.tolist())

    def _share_model(self) -> None:
        if self._processes > 1:
            state = State(self._model)
            for value in state.tensors.values():
                dist.broadcast(value, 0)

    def _device(self) -> torch.device:
        return next(iter(State(self._model).tensors.values())).device

    def _forget(self) -> None:
        self._samples = self._loss_samples = 0
        self._shares = 0.0
        self._weighted = 0.0


def _check_whole(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if any(hasattr(parameter, mark) for mark in SPLIT):
            raise ConfigError(
                f"{name} is split over processes (FSDP, ZeRO or tensor parallelism); a site hands in a whole model: "
                "train on one device, or with DistributedDataParallel"
            )


def _broadcast(value: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The first process's value, as JSON, at every process."""
    data = json.dumps(value).encode()
    size = torch.tensor(len(data), device=device)
    dist.broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(buffer, 0)
    found: dict[str, Any] = json.loads(bytes(buffer.tolist()))
    return found
