"""Models that can be trained with differential privacy: which layers cannot, and BatchNorm replaced by GroupNorm.

BatchNorm makes a row's output depend on the others of its batch, and its running statistics are of the rows themselves.
"""

from __future__ import annotations

import math

from torch import nn

from swarm.errors import ConfigError

GROUPS = 32
"""Of a GroupNorm at most (Wu and He, Group Normalization, ECCV 2018)."""


def replace_batchnorm(model: nn.Module) -> list[str]:
    """Put a GroupNorm in place of each BatchNorm, with the same weight and bias; the names of those replaced.

    The parameters stay the very same objects: an optimizer that has them keeps them.

    Raises:
        ConfigError: the model itself is a BatchNorm.
    """
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        raise ConfigError(f"the model is a {type(model).__name__} and nothing else; there is nothing to replace it in")
    names = batchnorms(model)
    replaced: dict[int, nn.GroupNorm] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        old = model.get_submodule(name)
        new = replaced.setdefault(id(old), _as_groups(old))
        setattr(model.get_submodule(parent), last, new)
    return names


def batchnorms(model: nn.Module) -> list[str]:
    """The names of all BatchNorms."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, kinds)]


def check_trainable(model: nn.Module) -> None:
    """ConfigError names the layers that differential privacy cannot train, and what to do."""
    found = batchnorms(model)
    if found:
        raise ConfigError(
            f"{', '.join(found)}: a BatchNorm mixes the rows of a batch, so no noise protects one of them. Let the "
            "members agree on replace_batchnorm = true; the run then starts from a model with GroupNorm"
        )
    from opacus.validators import ModuleValidator

    faults = []
    for name, module in model.named_modules():
        if type(module) in ModuleValidator.VALIDATORS:
            for error in ModuleValidator.VALIDATORS[type(module)](module):
                faults.append(f"{name or 'the model'} ({type(module).__name__}): {error}")
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            faults.append(f"{name or 'the model'} ({type(module).__name__}): gradients of single rows are not known")
    if faults:
        raise ConfigError("differential privacy cannot train " + "; ".join(faults))


def _as_groups(old: nn.Module) -> nn.GroupNorm:
    assert isinstance(old, nn.modules.batchnorm._BatchNorm)
    new = nn.GroupNorm(math.gcd(GROUPS, old.num_features), old.num_features, eps=old.eps, affine=False)
    if old.affine:
        new.affine, new.weight, new.bias = True, old.weight, old.bias
    new.train(old.training)
    return new
