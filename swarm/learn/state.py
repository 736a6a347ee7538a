"""What a model exchanges: its state_dict as named tensors, to and from the one canonical file that they make.

Dtypes and integer buffers are kept as they are; tensors that the model ties travel once, under the first of their
names. A checkpoint is read in place from the store's file, and one tensor at a time is in memory beside the model.
"""

from __future__ import annotations

import copy
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swarm.config import Policy, load_policy
from swarm.errors import ConfigError, StorageError
from swarm.learn.adapter import adapter_of, has_adapter
from swarm.learn.private_model import replace_batchnorm
from swarm.merge.encoding import SCALE
from swarm.merge.schema import Buffer, Schema, check_same, write_file
from swarm.merge.schema import Tensor as Entry
from swarm.merge.server import CONTROL, PREFIX, model_schema

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Torch's dtypes and their names in safetensors."""
_TORCH = {name: dtype for dtype, name in DTYPES.items()}


class Checkpoint:
    """A checkpoint's file, read in place: `tensors` are views of it on the CPU, not to be changed.

    The state of the run's optimizer, which a checkpoint may hold besides, is the merge's: it is left out here.

    Raises:
        StorageError: it cannot be read, or is no canonical file.
    """

    def __init__(self, path: Path) -> None:
        try:
            whole = Schema.of_file(path)
            self.schema = model_schema(whole)
            with open(path, "rb") as file:
                # A private mapping: torch warns about read-only memory, and nobody writes to this one.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise StorageError(f"the checkpoint {path} cannot be read: {error}") from error
        start, kept = len(whole.header), set(self.schema.tensors)
        self.tensors: Mapping[str, Tensor] = {
            entry.name: _view(data, start + first, entry) for entry, first, _ in whole.placed if entry in kept
        }


class State:
    """What a model holds now: references into it, not copies. Of a PEFT model it is the adapter.

    Args:
        policy: of the run: names what stays at the site, and whether control variates travel. None: all travels.

    Raises:
        ConfigError: the state_dict holds something that cannot be merged, or what stays is not there; names it.
    """

    def __init__(self, model: nn.Module, policy: Policy | None = None) -> None:
        self._model = plain(model)
        if has_adapter(self._model):
            self._model = adapter_of(self._model)
        state = _checked(self._model.state_dict())
        first: dict[tuple[object, ...], str] = {}
        self.names: dict[str, str] = {}
        """Every name of the state_dict, with the name that its tensor has in `tensors` or `personal`."""
        for name in sorted(state):
            self.names[name] = first.setdefault(_memory(name, state[name]), name)
        staying = {self.names[name] for name in _staying(self.names, policy)}
        self.tensors: Mapping[str, Tensor] = {name: state[name] for name in first.values() if name not in staying}
        """What travels, by name."""
        self.personal: Mapping[str, Tensor] = {name: state[name] for name in first.values() if name in staying}
        """What stays at the site, by name."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters that travel, by name."""
        found = self._model.named_parameters(remove_duplicate=False)
        return {name: value for name, value in found if name in self.tensors and value.requires_grad}

    def schema(self, *, scaffold: bool = False) -> Schema:
        """Of what travels; with SCAFFOLD a control variate for each trained parameter."""
        control = {CONTROL + name: value for name, value in self.parameters.items()} if scaffold else {}
        return schema_of({**self.tensors, **control})

    def check_fits(self, checkpoint: Checkpoint, *, scaffold: bool = False) -> None:
        """ConfigError names what differs between the model and a checkpoint."""
        try:
            check_same(checkpoint.schema, self.schema(scaffold=scaffold))
        except ValueError as error:
            tied = [f"{name} is tied to {kept}" for name, kept in self.names.items() if name != kept]
            hint = f" (in the model, {', '.join(tied[:4])})" if tied else ""
            raise ConfigError(f"the model does not fit the run: {error}{hint}") from error

    def load(self, checkpoint: Checkpoint, *, scaffold: bool = False) -> None:
        """Give the model a checkpoint's parameters, on whatever devices it has them; ConfigError if it does not fit."""
        self.check_fits(checkpoint, scaffold=scaffold)
        self._load(checkpoint.tensors, self.tensors)

    def load_personal(self, values: Mapping[str, Tensor]) -> None:
        """Give the model what stays at the site, by the names in `personal`."""
        self._load(values, self.personal)

    def _load(self, values: Mapping[str, Tensor], kinds: Mapping[str, Tensor]) -> None:
        chosen = {name: values[kept] for name, kept in self.names.items() if kept in kinds}
        self._model.load_state_dict(chosen, strict=len(chosen) == len(self.names))


def _staying(names: Mapping[str, str], policy: Policy | None) -> list[str]:
    """The names that stay at the site; ConfigError if none fits a pattern, all do, or one of two tied ones does."""
    if policy is None or not policy.personal:
        return []
    for pattern in policy.personal:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"personal = {pattern!r} names nothing in the model, which has {_some(list(names))}")
    staying = [name for name in names if policy.stays(name)]
    if len(staying) == len(names):
        raise ConfigError(f"personal = {list(policy.personal)} keeps all of the model at the site; nothing is shared")
    kept = {names[name] for name in staying}
    torn = [f"{name} is tied to {first}" for name, first in names.items() if first in kept and name not in staying]
    torn += [f"{name} is tied to {names[name]}" for name in staying if not policy.stays(names[name])]
    if torn:
        raise ConfigError(f"personal: {_some(sorted(set(torn)))}; tied tensors stay at the site together, or travel")
    return staying


class Change:
    """What each tensor of a state changed since a checkpoint, one at a time, and what is wrong with it.

    Float tensors are state - base in their own dtype, all others the state's value.

    Args:
        range_max: how far a value may change before the merge clips it.
    """

    def __init__(self, state: Mapping[str, Tensor], base: Checkpoint, range_max: float) -> None:
        self._state = state
        self._base = base
        self._range_max = range_max
        self._broken: list[str] = []
        self.beyond: list[str] = []
        """The tensors that changed by more than the range, of those asked for so far."""

    def of(self, name: str) -> Tensor:
        """On the CPU; a tensor of its own where it holds floats."""
        value = self._state[name].detach().cpu()
        if not value.is_floating_point():
            return value
        update = value - self._base.tensors[name]
        if update.numel():
            low, high = (float(bound) for bound in update.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                self._broken.append(f"{name} ({int((~update.isfinite()).sum())} of {update.numel()} values)")
            elif max(-low, high) > self._range_max:
                self.beyond.append(name)
        return update

    def check_finite(self) -> None:
        """ValueError names the tensors asked for whose change is not finite."""
        if self._broken:
            raise ValueError(
                f"training diverged: the update is not finite in {_some(self._broken)}; it is not submitted. Lower the "
                "learning rate, clip the gradients, or look for bad rows; `restart()` goes back to the last checkpoint"
            )


def write_update(state: Mapping[str, Tensor], base: Checkpoint, path: Path, *, range_max: float) -> list[str]:
    """Write what `state` changed since `base`; the names of the tensors that changed by more than `range_max`.

    Raises:
        ValueError: the change is not finite; names the tensors.
    """
    change = Change(state, base, range_max)
    write_tensors(path, base.schema, change.of)
    change.check_finite()
    return change.beyond


def save_model(
    model: nn.Module | Mapping[str, Any], path: str | Path, *, policy: Policy | str | Path | None = None
) -> None:
    """Write a model's file: equal parameters are equal bytes.

    Args:
        model: a module, or tensors (torch or numpy) by name.
        path: the file; one that is there is replaced.
        policy: of the run that is to start from it, or its TOML file: leaves out what stays at the sites (`personal`)
            adds the control variates that travel (`scaffold`), all zero, and puts a GroupNorm in place of each
            BatchNorm (`replace_batchnorm`); the model itself is left as it is. None: the whole model.
    Raises:
        ConfigError: a value that is no tensor, or has a dtype that cannot be merged; names it.
        StorageError: the file cannot be written.
    """
    if isinstance(policy, (str, Path)):
        policy = load_policy(Path(policy))
    if isinstance(model, nn.Module):
        if policy is not None and policy.replace_batchnorm:
            model = copy.deepcopy(model)
            replace_batchnorm(plain(model))
        state = State(model, policy)
        tensors, schema = state.tensors, state.schema(scaffold=policy is not None and policy.scaffold)
    else:
        tensors = as_tensors(model)
        schema = schema_of(tensors)

    def value(name: str) -> Tensor:
        if name.startswith(CONTROL):
            return torch.zeros_like(tensors[name.removeprefix(CONTROL)]).cpu()
        return tensors[name].detach().cpu()

    write_tensors(Path(path), schema, value)


def load_model(model: nn.Module, path: str | Path, *, policy: Policy | str | Path | None = None) -> None:
    """Give a model the parameters in a run's checkpoint, without what merges carry on in it (`swarm.…`).

    Args:
        model: as the run trains it; what stays at the sites keeps its values.
        path: a checkpoint of the run, or what `save_model` wrote.
        policy: of the run, or its TOML file; needed where it names `personal` or `scaffold`.
    Raises:
        ConfigError: the checkpoint is not of this model; names what differs.
        StorageError: the file cannot be read, or is none.
    """
    if isinstance(policy, (str, Path)):
        policy = load_policy(Path(policy))
    State(model, policy).load(Checkpoint(Path(path)), scaffold=policy is not None and policy.scaffold)


def as_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Torch tensors of torch or numpy ones; ConfigError names what is neither."""
    return _checked({name: _of_array(value) for name, value in values.items()})


def _of_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.ascontiguousarray(value))
    except (TypeError, ValueError):
        return value  # a dtype that torch does not have: refused by name with the others


def schema_of(tensors: Mapping[str, Tensor]) -> Schema:
    """The schema of tensors by name."""
    return Schema.of(Entry(name, DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items())


def plain(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and data-parallel wrappers: its names are the same at every site."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _checked(values: Mapping[str, Any]) -> dict[str, Tensor]:
    if not values:
        raise ConfigError("there is nothing to exchange: no parameter, no buffer")
    faults: list[str] = []
    for name, value in values.items():
        if not isinstance(value, Tensor):
            faults.append(f"{name} is a {type(value).__name__}, not a tensor")
        elif name.startswith(PREFIX):
            faults.append(f"{name} has a name that is kept for the state of a run's optimizer")
        elif name.startswith(SCALE):
            faults.append(f"{name} has a name that is kept for the scales of encoded updates")
        elif name.startswith(CONTROL):
            faults.append(f"{name} has a name that is kept for SCAFFOLD's control variates")
        elif nn.parameter.is_lazy(value) or value.is_meta:
            faults.append(f"{name} has no values yet (run a batch through the model first)")
        elif value.dtype not in DTYPES or value.layout != torch.strided:
            faults.append(f"{name} is {value.dtype}, {value.layout}")
    if faults:
        raise ConfigError(f"these cannot be exchanged: {_some(faults)}; possible are dense tensors of {_possible()}")
    return dict(values)


def _memory(name: str, tensor: Tensor) -> tuple[object, ...]:
    """What two names have in common when they are one tensor."""
    if not tensor.numel():
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _view(data: mmap.mmap, offset: int, entry: Entry) -> Tensor:
    if not entry.count:
        return torch.empty(entry.shape, dtype=_TORCH[entry.dtype])
    flat = torch.frombuffer(data, dtype=_TORCH[entry.dtype], count=entry.count, offset=offset)
    return flat.reshape(entry.shape)


def write_tensors(path: Path, schema: Schema, value: Callable[[str], Tensor]) -> None:
    """Write a file of tensors that are made one at a time, in the schema's order; StorageError if it cannot be."""
    try:
        write_file(path, schema, _Lazily(schema, value))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


class _Lazily(Mapping[str, Buffer]):
    """The bytes of each tensor, made when they are asked for, so that one is in memory at a time."""

    def __init__(self, schema: Schema, value: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(tensor.name for tensor in schema.tensors)
        self._value = value

    def __getitem__(self, name: str) -> Buffer:
        flat = self._value(name).contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _some(words: list[str]) -> str:
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def _possible() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
