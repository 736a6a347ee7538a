"""A model's part in a run between two exchanges: take a checkpoint, correct the steps, write the update.

What the policy wants of a site's training beyond its own loop is here, and knows no node:

    personal    tensors that stay at the site: neither in the update nor in the checkpoint
    proximal    FedProx: mu (w - x) is added to each gradient, the gradient of mu/2 |w - x|²; x is the checkpoint
    scaffold    SCAFFOLD: c - c_i is added to each gradient; c travels with the checkpoint, c_i stays at the site

The control variate that a site hands in is the mean of the uncorrected gradients of its steps. With plain SGD that is
the paper's option II, c_i - c + (x - w) / (steps · rate), without having to know the rate. The merged c is the mean of
those who submitted, weighted as the update is: with equal weights and everybody there, the paper's.

Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020 (FedProx); Karimireddy et al., SCAFFOLD,
ICML 2020, algorithm 1; Li et al., FedBN, ICLR 2021, and Arivazhagan et al. 2019 (personal layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn.encoded import write_encoded
from swarm.learn.private_model import replace_batchnorm
from swarm.learn.state import Checkpoint, State, plain, write_update
from swarm.merge.server import CONTROL

PERSONAL, OWN = "personal.", "control."
"""Before the names of what a site keeps: its personal tensors, its own control variates."""
BEFORE, AFTER = "before.", "after."
"""Before the names of what encoding lost until the last update, and with it."""


class Part:
    """One model under one policy.

    Args:
        model: its parameters and buffers take part, on whatever device they are. Its BatchNorms are replaced in place
            where the policy says so.
    """

    def __init__(self, model: nn.Module, policy: Policy) -> None:
        self.model = model
        self.policy = policy
        if policy.replace_batchnorm:
            replace_batchnorm(plain(model))
        self._base: Checkpoint | None = None
        self._own: dict[str, Tensor] = {}
        """This site's control variates, by parameter; none is zero."""
        self._personal: dict[str, Tensor] = {}
        """What stayed here, as it was when the checkpoint was taken."""
        self.lost: Mapping[str, Tensor] = {}
        """What encoding took from the updates until the checkpoint, by tensor; the next update brings it."""
        self.losing: Mapping[str, Tensor] = {}
        """The same with the update that was written last: it is `lost` once a checkpoint is adopted."""
        self._parameters: Mapping[str, nn.Parameter] = {}
        self._anchors: dict[str, Tensor] = {}
        self._drifts: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._called = False

    @property
    def base(self) -> Checkpoint:
        """The checkpoint that the model trains on from."""
        assert self._base is not None, "a checkpoint is adopted first"
        return self._base

    def adopt(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint over; what stays at the site is left as training made it.

        Raises:
            ConfigError: the model does not fit it, or the policy; names what differs.
        """
        state = State(self.model, self.policy)
        state.load(checkpoint, scaffold=self.policy.scaffold)
        if self._steps and self.policy.scaffold:
            self._own = self._mean_gradients()
        self.lost, self.losing = self.losing or self.lost, {}
        self._base = checkpoint
        self._personal = {name: value.detach().clone() for name, value in state.personal.items()}
        self._begin(state)

    def restart(self) -> None:
        """Go back to the checkpoint, with what stays at the site as it was then."""
        state = State(self.model, self.policy)
        state.load(self.base, scaffold=self.policy.scaffold)
        state.load_personal(self._personal)
        self.forget_update()
        self._begin(state)

    def forget_update(self) -> None:
        """The update that was written last was not taken: what it lost was lost with all of it."""
        self.losing = {}

    @torch.no_grad()
    def correct(self) -> None:
        """Correct the gradients of one step, between the backward pass and the optimizer.

        Gradients are expected at their true size: a `GradScaler` unscales them first. Where one is not finite the
        scaler makes no step, so nothing is corrected or counted; without a scaler `write` refuses what comes of it.
        """
        self._called = True
        gradients = [one.grad for one in self._parameters.values() if one.grad is not None]
        if not all(one.layout != torch.strided or _finite(one) for one in gradients):
            return
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise ConfigError(f"the gradient of {name} is sparse; neither FedProx nor SCAFFOLD can correct it")
            if self.policy.scaffold:
                self._sums[name] += gradient
                gradient.add_(self._drifts[name])
            if self.policy.proximal:
                gradient.add_(parameter - self._anchors[name], alpha=self.policy.proximal)
        self._steps += 1

    def write(self, path: Path) -> list[str]:
        """Write the update; the names of the tensors that changed beyond the policy's range.

        Raises:
            ConfigError: the model does not fit the run any more, or no step was corrected.
            ValueError: a change is not finite, or what stays at the site is not; names the tensors.
        """
        if self.policy.corrects_steps and not self._called:
            what = "scaffold" if self.policy.scaffold else "proximal"
            raise ConfigError(
                f"the members agreed on {what} = {getattr(self.policy, what)!r}, but no step was corrected: call "
                "`swarm.on_before_optimizer_step()` between loss.backward() and optimizer.step()"
            )
        state = State(self.model, self.policy)
        state.check_fits(self.base, scaffold=self.policy.scaffold)
        broken = [name for name, value in state.personal.items() if not _finite(value)]
        if broken:
            raise ValueError(
                f"training diverged: {', '.join(broken[:5])}, which stays at this site, is not finite; nothing is "
                "submitted. `restart()` goes back to the last checkpoint"
            )
        if self.policy.private:
            self._check_buffers(state)
        tensors = dict(state.tensors)
        if self.policy.scaffold:
            tensors |= {CONTROL + name: value for name, value in self._mean_gradients().items()}
        if not self.policy.encoded:
            return write_update(tensors, self.base, path, range_max=self.policy.range)
        beyond, self.losing = write_encoded(
            tensors, self.base, path, range_max=self.policy.range, encoding=self.policy.encoding, lost=self.lost
        )
        return beyond

    def _check_buffers(self, state: State) -> None:
        """What no noise was added to may not have learned anything."""
        trained = state.parameters
        learned = [
            name
            for name, value in state.tensors.items()
            if name not in trained and not torch.equal(value.cpu(), self.base.tensors[name])
        ]
        if learned:
            raise ConfigError(
                f"{', '.join(learned[:5])} changed in a private run without being trained: no noise was added to it. "
                "Leave such a layer out, or keep it fixed"
            )

    # --- what a site keeps over a restart

    def kept(self) -> dict[str, Tensor]:
        """What the checkpoint does not hold: personal tensors as they were with it, and own control variates."""
        own = {OWN + name: value for name, value in self._own.items()}
        return own | {PERSONAL + name: value for name, value in self._personal.items()}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take over what was kept.

        Raises:
            ConfigError: it is of another model; names what differs.
        """
        state = State(self.model, self.policy)
        here = {PERSONAL + name: value for name, value in state.personal.items()}
        here |= {OWN + name: value for name, value in state.parameters.items()}
        for name, value in kept.items():
            if name not in here or here[name].shape != value.shape or here[name].dtype != value.dtype:
                raise ConfigError(f"what this site kept of the run has a {name} that the model has not, or not so")
        own = {name.removeprefix(OWN): value for name, value in kept.items() if name.startswith(OWN)}
        parameters = state.parameters
        self._own = {name: value.to(parameters[name].device) for name, value in own.items()}
        found = {name.removeprefix(PERSONAL): value for name, value in kept.items() if name.startswith(PERSONAL)}
        self._personal = {name: value.detach().clone() for name, value in state.personal.items()} | found
        state.load_personal(self._personal)
        self._begin(state)

    def kept_losses(self) -> dict[str, Tensor]:
        """What encoding lost, before and after the update that was written last."""
        before = {BEFORE + name: value for name, value in self.lost.items()}
        return before | {AFTER + name: value for name, value in (self.losing or self.lost).items()}

    def restore_losses(self, kept: Mapping[str, Tensor], *, taken: bool) -> None:
        """Take over what encoding lost: with the update that was written last, if that was taken.

        Raises:
            ConfigError: it is of another model; names what differs.
        """
        which = AFTER if taken else BEFORE
        found = {name.removeprefix(which): value for name, value in kept.items() if name.startswith(which)}
        for name, value in found.items():
            base = self.base.tensors.get(name)
            if base is None or value.shape != (base.numel(),) or value.dtype not in (torch.float32, torch.float64):
                raise ConfigError(f"what encoding lost of {name}, as this site kept it, is not of this model")
        self.lost, self.losing = found, {}

    def _begin(self, state: State) -> None:
        """No step was made since the checkpoint."""
        self._steps = 0
        self._called = False
        if not self.policy.corrects_steps:
            return
        self._parameters = state.parameters
        if self.policy.proximal:
            self._anchors = {name: value.detach().clone() for name, value in self._parameters.items()}
        if self.policy.scaffold:
            for name, value in self._parameters.items():
                common = self.base.tensors[CONTROL + name].to(value.device)
                own = self._own.get(name)
                self._drifts[name] = common.clone() if own is None else common - own
                self._sums[name] = torch.zeros_like(value, dtype=_wide(value.dtype))

    def _mean_gradients(self) -> dict[str, Tensor]:
        """This site's control variates after its steps; as they were where there was no step."""
        if not self._steps:
            return {name: self._own.get(name, torch.zeros_like(value)) for name, value in self._parameters.items()}
        return {name: (total / self._steps).to(self._parameters[name].dtype) for name, total in self._sums.items()}


def norm_layers(model: nn.Module) -> list[str]:
    """The patterns for a policy's `personal` that keep every normalization layer at the sites: FedBN."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return [f"{name}.*" for name, module in model.named_modules() if name and isinstance(module, kinds)]


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
