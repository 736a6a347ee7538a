"""The adapter of a PEFT model as a module of its own: what was added to a model that everybody has already."""

from __future__ import annotations

from torch import nn

from swarm.errors import ConfigError


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT wrapped this model or a part of it, or put an adapter into it."""
    return any(hasattr(module, "peft_config") for module in model.modules())


def adapter_of(model: nn.Module) -> nn.Module:
    """A module of the trained parameters alone: the very same objects, by the names that the model has for them.

    Raises:
        ConfigError: no parameter is trained.
    """
    root = nn.Module()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            *parents, last = name.split(".")
            place = root
            for parent in parents:
                if parent not in place._modules:
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.register_parameter(last, parameter)
    if not any(True for _ in root.parameters()):
        raise ConfigError("the model has an adapter, but none of its parameters is trained: nothing would travel")
    return root
