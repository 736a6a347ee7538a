"""Optimizers that act on the merged update: the checkpoint moves by what they make of it, and carries their state.

    m = momentum, v = mean square, D = merged update, x = checkpoint; b1, b2, rate, floor are the policy's
    fedavgm      m <- b1 m + D           x <- x + rate m
    nesterov     m <- b1 m + D           x <- x + rate (D + b1 m)
    fedadagrad   m <- b1 m + (1 - b1) D  v <- v + D²                          x <- x + rate m / (sqrt(v) + floor)
    fedadam      the same m              v <- b2 v + (1 - b2) D²              the same x
    fedyogi      the same m              v <- v - (1 - b2) D² sign(v - D²)    the same x

At first m = 0 and v = floor². Every operation is one IEEE 754 operation on float64, in the order written, which numpy
rounds alike on every machine (+, -, ·, /, sqrt; no power, no fused step). The state is rounded to float32 (float64 for
float64 parameters) when it is kept, after the step that it made.

Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2; FedAvgM: Hsu, Qi, Brown 2019; Nesterov's
momentum as Sutskever et al. 2013 write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from swarm.config import Policy
from swarm.merge.encoding import SCALE, update_schema
from swarm.merge.fixed import Float64s, Raw, store
from swarm.merge.mean import add_to_base, load_finite
from swarm.merge.schema import FLOATS, Schema, Tensor

PREFIX = "swarm.server."
"""Of the names of tensors that are the optimizer's state and not the model's."""
BLIND = "swarm.blind."
"""Of the names of tensors that blind merges carry on."""
KEPT = (PREFIX, BLIND)
"""Of the names of tensors that no model and no update has."""
CONTROL = "swarm.control."
"""Of the names of tensors that are SCAFFOLD's control variates: the merge takes them for parameters."""
MODEL, MOMENTUM, VARIANCE = "", "momentum", "variance"
"""The kinds of a checkpoint's tensors: the model's own, and an optimizer's state."""


@dataclass(frozen=True)
class Server:
    """One optimizer with its settings."""

    rule: str
    rate: float
    momentum: float
    decay: float
    floor: float

    @property
    def starts(self) -> Mapping[str, float]:
        """The kinds of state that it keeps, and what each is before the first round."""
        if self.rule in ("fedavgm", "nesterov"):
            return {MOMENTUM: 0.0}
        return {MOMENTUM: 0.0, VARIANCE: self.floor * self.floor}

    def next_momentum(self, change: Float64s, momentum: Float64s) -> Float64s:
        """The new momentum, in place of the old one."""
        np.multiply(momentum, self.momentum, out=momentum)
        fresh = change if VARIANCE not in self.starts else change * (1.0 - self.momentum)
        return np.add(momentum, fresh, out=momentum)

    def next_variance(self, change: Float64s, variance: Float64s) -> Float64s:
        """The new mean square, in place of the old one."""
        square = change * change
        if self.rule == "fedadagrad":
            return np.add(variance, square, out=variance)
        if self.rule == "fedadam":
            np.multiply(variance, self.decay, out=variance)
            return np.add(variance, square * (1.0 - self.decay), out=variance)
        sign = np.sign(variance - square)
        return np.subtract(variance, square * (1.0 - self.decay) * sign, out=variance)

    def step(self, change: Float64s, state: Mapping[str, Float64s]) -> Float64s:
        """By how much the checkpoint moves, from the new state."""
        momentum = state[MOMENTUM]
        if self.rule == "nesterov":
            return (momentum * self.momentum + change) * self.rate
        if self.rule == "fedavgm":
            return momentum * self.rate
        return momentum * self.rate / (np.sqrt(state[VARIANCE]) + self.floor)


class Optimizer:
    """A server's arithmetic on one block of coordinates; one for each thread."""

    def __init__(self, server: Server, size: int) -> None:
        """`size` is the most coordinates that a block has."""
        self._server = server
        self._room = {kind: np.empty(size) for kind in (MODEL, *server.starts)}
        self._state: dict[str, Float64s] = {}

    def needed(self, kind: str) -> tuple[str, ...]:
        """The kinds of state that have to advance before this kind can be written."""
        return tuple(self._server.starts) if kind == MODEL else (kind,)

    def advance(self, kind: str, change: Float64s, before: tuple[Raw, str] | None) -> None:
        """One kind of state after this round; before the first round the base has none."""
        room = self._room[kind][: len(change)]
        if before is None:
            room.fill(self._server.starts[kind])
        else:
            load_finite(*before, room)
        following = self._server.next_momentum if kind == MOMENTUM else self._server.next_variance
        self._state[kind] = following(change, room)

    def write(self, kind: str, change: Float64s, base: tuple[Raw, str] | None, dtype: str, out: Raw) -> None:
        """The parameters after this round, or that kind of state, rounded once."""
        if kind != MODEL:
            store(self._state[kind], dtype, out)
            return
        assert base is not None, "a checkpoint has the model's tensors"
        add_to_base(self._server.step(change, self._state), *base, out, self._room[MODEL][: len(change)])


def server_of(policy: Policy) -> Server | None:
    """The policy's optimizer; None where the merged update is added as it is."""
    if policy.server == "none":
        return None
    return Server(
        policy.server, policy.server_rate, policy.server_momentum, policy.server_decay, policy.server_floor
    )  # fmt: skip


def model_schema(checkpoint: Schema) -> Schema:
    """The tensors of a checkpoint that are the model's: what every update holds."""
    if not any(tensor.name.startswith(KEPT) for tensor in checkpoint.tensors):
        return checkpoint
    return Schema.of(tensor for tensor in checkpoint.tensors if not tensor.name.startswith(KEPT))


def state_tensor(kind: str, tensor: Tensor) -> Tensor:
    """The tensor that holds one kind of state of a float tensor of the model."""
    return Tensor(f"{PREFIX}{kind}.{tensor.name}", state_dtype(tensor.dtype), tensor.shape)


def state_dtype(dtype: str) -> str:
    """How state is kept for parameters of a dtype."""
    return "F64" if dtype == "F64" else "F32"


def checkpoint_schema(model: Schema, server: Server | None) -> Schema:
    """The tensors of a merged checkpoint.

    Raises:
        ValueError: with the optimizer's state there are too many tensors, or a name is too long.
    """
    if server is None:
        return model
    floats = [tensor for tensor in model.tensors if tensor.dtype in FLOATS]
    return Schema.of([*model.tensors, *(state_tensor(kind, tensor) for kind in server.starts for tensor in floats)])


def check_genesis(schema: Schema, policy: Policy) -> None:
    """ValueError if no run under this policy can start from such a checkpoint."""
    reserved = [tensor.name for tensor in schema.tensors if tensor.name.startswith((*KEPT, SCALE))]
    if reserved:
        raise ValueError(f"the name {reserved[0]} is kept for what merges carry on; a run starts without it")
    staying = [tensor.name for tensor in schema.tensors if policy.stays(tensor.name)]
    if staying:
        raise ValueError(f"{staying[0]} stays at each site by the policy's `personal`; `policy=` leaves it out")
    controls = [tensor.name for tensor in schema.tensors if tensor.name.startswith(CONTROL)]
    if policy.scaffold and not controls:
        raise ValueError("scaffold = true, but the control variates are missing; `policy=` adds them")
    if controls and not policy.scaffold:
        raise ValueError(f"{controls[0]} is a control variate, but the policy has scaffold = false")
    checkpoint_schema(schema, server_of(policy))
    update_schema(schema, policy.encoding)
