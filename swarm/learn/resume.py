"""What a site keeps of its training beside the checkpoint, so that training which died goes on as if it had not.

One file a run in the site's folder, written whole and then put in place of the last one: personal tensors and control
variates (`part.py`), and, if the loop names them, the states of optimizer, scheduler and generators, with the states
of the generators that torch, numpy and Python have for everybody. Tensors and plain values only: nothing is pickled.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from swarm.errors import ConfigError, StorageError

NESTED = "value."
"""Of the names of tensors inside states."""


@dataclass(frozen=True)
class Kept:
    """What one file holds."""

    policy: str
    """The digest of the run's policy, in hexadecimal."""
    round: int
    checkpoint: str
    """The digest of the checkpoint that all this belongs to, `0x…`."""
    metrics: Mapping[str, float]
    """What goes with the next submission."""
    tensors: Mapping[str, Tensor]
    """Of the model's part in the run."""
    states: Mapping[str, Any]
    """The states of what the loop named; empty if it named nothing."""


def write(path: Path, kept: Kept) -> None:
    """Put this in place of what was kept before; a process that dies meanwhile leaves one or the other.

    Raises:
        ConfigError: a state holds something other than tensors and plain values; names it.
        StorageError: the file cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in kept.tensors.items()}
    document = {
        "policy": kept.policy,
        "round": kept.round,
        "checkpoint": kept.checkpoint,
        "metrics": dict(kept.metrics),
        "states": _encoded(dict(kept.states), tensors, "keep"),
    }
    draft = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, metadata={"swarm": json.dumps(document)})
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"what this site keeps of the run cannot be written to {path}: {error}") from error


def read(path: Path) -> Kept | None:
    """What was kept, None if nothing was.

    Raises:
        StorageError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            document = json.loads(file.metadata()["swarm"])
        return Kept(
            str(document["policy"]),
            int(document["round"]),
            str(document["checkpoint"]),
            {str(name): float(value) for name, value in document["metrics"].items()},
            {name: value for name, value in tensors.items() if not name.startswith(NESTED)},
            _decoded(document["states"], tensors),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"what this site kept of the run cannot be read from {path} ({error!r}); without the file, training starts "
            "from the checkpoint with a fresh optimizer and fresh personal layers"
        ) from error


# --- states


def check_keepable(keep: Mapping[str, Any]) -> None:
    """ValueError if one of these has no state that could be kept."""
    for name, value in keep.items():
        if not (_is_generator(value) or all(hasattr(value, m) for m in ("state_dict", "load_state_dict"))):
            raise ValueError(
                f"keep: {name} is a {type(value).__name__}, which has neither a state_dict nor draws numbers"
            )


def states_of(keep: Mapping[str, Any]) -> dict[str, Any]:
    """The states of what a loop named and of everybody's generators, as they are now."""
    own = {
        name: _generator_state(value) if _is_generator(value) else value.state_dict() for name, value in keep.items()
    }
    return {"named": own, "chance": _chance()}


def restore(keep: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Put what a loop named, and everybody's generators, into these states.

    Raises:
        ConfigError: a state is missing, or does not fit; names whose.
    """
    missing = sorted(set(keep) - set(states["named"]))
    if missing:
        raise ConfigError(f"nothing was kept of {', '.join(missing)}, but of {', '.join(states['named']) or 'nothing'}")
    for name, value in keep.items():
        state = states["named"][name]
        try:
            if isinstance(value, torch.Generator):
                value.set_state(state)
            elif isinstance(value, np.random.Generator):
                value.bit_generator.state = state
            else:
                value.load_state_dict(state)
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise ConfigError(f"what was kept of {name} does not fit it: {error}") from error
    _set_chance(states["chance"])


def _is_generator(value: Any) -> bool:
    return isinstance(value, (torch.Generator, np.random.Generator))


def _generator_state(value: torch.Generator | np.random.Generator) -> Any:
    return value.get_state() if isinstance(value, torch.Generator) else dict(value.bit_generator.state)


def _chance() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, np.asarray(keys).tolist(), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def _set_chance(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))
    random.setstate(state["python"])


# --- nested values as JSON, their tensors apart


def _encoded(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    match value:
        case np.generic():
            return value.item()
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            name = f"{NESTED}{len(tensors)}"
            tensors[name] = value.detach().cpu().clone().contiguous()
            return {"tensor": name}
        case np.ndarray():
            return {"array": [value.dtype.str, list(value.shape), value.reshape(-1).tolist()]}
        case list() | tuple():
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [_encoded(entry, tensors, f"{where}[{i}]") for i, entry in enumerate(value)]}
        case Mapping():
            kind = "counter" if isinstance(value, Counter) else "dict"
            pairs = value.items()
            return {kind: [[_encoded(k, tensors, where), _encoded(v, tensors, f"{where}.{k}")] for k, v in pairs]}
    raise ConfigError(f"{where} is a {type(value).__name__}; only tensors and plain values can be kept")


def _array(value: Any) -> np.ndarray[Any, Any]:
    dtype, shape, flat = value
    return np.array(flat, np.dtype(dtype)).reshape(shape)


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    kinds: dict[str, Callable[[Any], Any]] = {
        "tensor": lambda name: tensors[name],
        "array": _array,
        "list": lambda entries: [_decoded(entry, tensors) for entry in entries],
        "tuple": lambda entries: tuple(_decoded(entry, tensors) for entry in entries),
        "dict": lambda pairs: {_decoded(k, tensors): _decoded(v, tensors) for k, v in pairs},
        "counter": lambda pairs: Counter({_decoded(k, tensors): _decoded(v, tensors) for k, v in pairs}),
    }
    return kinds[kind](inner)
