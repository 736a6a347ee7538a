"""An update as its run wants it to travel, and what that loses: it is added to the site's next update.

Rounding takes something from every update. Kept at the site and sent with the next one, it comes late and not never:
over the rounds the sum of what was sent differs from the sum of what was meant by the last loss alone.

Source: Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; Karimireddy et al., Error Feedback Fixes
SignSGD, ICML 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swarm.learn.state import Change, Checkpoint, write_tensors
from swarm.merge.encoding import SCALE, Encoded, decode, encode, encoded_dtype, update_schema


def write_encoded(
    state: Mapping[str, Tensor],
    base: Checkpoint,
    path: Path,
    *,
    range_max: float,
    encoding: str,
    lost: Mapping[str, Tensor],
) -> tuple[list[str], dict[str, Tensor]]:
    """Write what `state` changed since `base` and what was lost before; the tensors beyond the range, and the new loss.

    What is beyond ±`range_max` travels as ±`range_max`, as the merge would clip it: it is not lost, but refused.

    Args:
        encoding: of the run's policy, and not float32.
        lost: (elements,) by tensor, what encoding took from the updates before; none is zero.
    Returns:
        The names of the tensors that changed by more than `range_max`; what encoding took from this update, like
        `lost`, float64 where the model's tensor is, else float32.
    Raises:
        ValueError: the change is not finite; names the tensors.
    """
    change = Change(state, base, range_max)
    kinds = {t.name: (t.dtype, encoded_dtype(t, encoding)) for t in base.schema.tensors}
    losing: dict[str, Tensor] = {}
    encoded: dict[str, Encoded] = {}

    def made(name: str, dtype: str) -> Encoded:
        update = change.of(name)
        wide = torch.float64 if update.dtype == torch.float64 else torch.float32
        whole = update.to(wide).reshape(-1)
        if name in lost:
            whole += lost[name]
        # What is not finite is refused below, when all tensors were looked at.
        values = whole.nan_to_num_(0.0).clamp_(-range_max, range_max).numpy()
        found = encode(values, dtype)
        losing[name] = torch.from_numpy(np.subtract(values, decode(found, dtype), dtype=values.dtype))
        return found

    def value(name: str) -> Tensor:
        if name.startswith(SCALE):
            inner = name.removeprefix(SCALE)
            encoded[inner] = made(inner, kinds[inner][1])
            scales = encoded[inner].scales
            assert scales is not None, "only int8 has scales"
            return torch.from_numpy(scales)
        own, dtype = kinds[name]
        if own == dtype:
            return change.of(name)
        # Scales stand before their codes in the file.
        codes = (encoded.pop(name) if name in encoded else made(name, dtype)).codes
        return torch.from_numpy(codes.view(np.uint8))

    write_tensors(path, update_schema(base.schema, encoding), value)
    change.check_finite()
    return change.beyond, losing
