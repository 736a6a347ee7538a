"""How an update is smaller on the way than a checkpoint, and what its bytes mean: to the bit the same everywhere.

A run's `encoding` takes the place of every wider float dtype; the update is a canonical file all the same, and its
schema follows from the checkpoint's, so its size is known before a byte of it is asked for. What is encoded means
float32 numbers, exactly; a merge takes those. Digests name the encoded bytes.

    bfloat16, float16   each value rounded to nearest, ties to even
    int8                blocks of 256 elements of a tensor, in row-major order; each has a float32 scale s, and a code
                        from -127 to 127 means the product of code and s, rounded once to float32

The scales of NAME are a tensor too, `swarm.scale.NAME`. A scale is the largest magnitude of its block over 127; a
block below 127 · 2^-126 is all zero, with the scale zero, and beyond 127 · 2^120 a value is cut: so no scale and no
product is subnormal or infinite. Tensors of fewer than 256 elements, whole numbers and truth values stay as they are.
What encoding loses is the sender's to add to its next update (`swarm.learn`).

Source: bitsandbytes' blockwise quantization, Dettmers et al., ICLR 2022 (linear codes here); Seide et al., Interspeech
2014, and Karimireddy et al., ICML 2019, for what is lost and sent later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.merge.fixed import NUMPY_TYPES, NotFinite, store
from swarm.merge.schema import ELEMENT_BYTES, FLOATS, Schema, Tensor

Float32s: TypeAlias = NDArray[np.float32]
Int8s: TypeAlias = NDArray[np.int8]

SCALE = "swarm.scale."
"""Before the name of a tensor: that of its blocks' scales."""
BLOCK = 256
"""Elements that share a scale: it adds an eighth of a bit to each."""
CODE_MAX = 127
# Elements that are encoded at once, whole blocks: they stay in a core's second cache.
PIECE = 1 << 16
SCALE_MIN, SCALE_MAX = 2.0**-126, 2.0**120
_DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "int8": "I8"}


@dataclass(frozen=True)
class Encoded:
    """A tensor's elements as they travel."""

    codes: NDArray[Any]
    """(elements,) in the encoding's dtype, BF16 as uint16 bits."""
    scales: Float32s | None
    """(blocks,) where the codes are int8."""


def encoded_dtype(tensor: Tensor, encoding: str) -> str:
    """The dtype in which an update under this encoding holds a tensor of the model."""
    dtype = _DTYPES.get(encoding, tensor.dtype)
    if tensor.dtype not in FLOATS or ELEMENT_BYTES[tensor.dtype] <= ELEMENT_BYTES[dtype]:
        return tensor.dtype
    return tensor.dtype if dtype == "I8" and tensor.count < BLOCK else dtype


def update_schema(model: Schema, encoding: str) -> Schema:
    """The tensors of every update of a model.

    Raises:
        ValueError: with the scales there are too many tensors, or a name is too long or taken.
    """
    if encoding not in _DTYPES:
        return model
    tensors: list[Tensor] = []
    for tensor in model.tensors:
        dtype = encoded_dtype(tensor, encoding)
        tensors.append(Tensor(tensor.name, dtype, tensor.shape))
        if dtype == "I8" != tensor.dtype:
            tensors.append(Tensor(SCALE + tensor.name, "F32", (blocks_of(tensor.count),)))
    return Schema.of(tensors)


def blocks_of(count: int) -> int:
    """How many scales so many elements have."""
    return -(-count // BLOCK)


def encode(values: NDArray[Any], dtype: str) -> Encoded:
    """The codes nearest to some values; beyond the largest finite one of the dtype that one is nearest.

    Args:
        values: (elements,) float64 or float32 of one tensor.
        dtype: BF16, F16 or I8.
    Raises:
        NotFinite: a value is NaN or infinite.
    """
    codes = np.empty(len(values), NUMPY_TYPES[dtype])
    scales = np.empty(blocks_of(len(values)), np.float32) if dtype == "I8" else None
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        out = codes[start : start + PIECE]
        if not np.isfinite(piece).all():
            index = start + int(np.argmin(np.isfinite(piece)))
            raise NotFinite(index, str(values[index]))
        if scales is None:
            store(piece.astype(np.float64), dtype, out.view(np.uint8))
        else:
            first = start // BLOCK
            _encode_int8(piece, scales[first : first + blocks_of(len(piece))], out)
    return Encoded(codes, scales)


def _encode_int8(values: NDArray[Any], scales: Float32s, out: Int8s) -> None:
    padded = np.zeros(len(scales) * BLOCK, np.float32)
    np.copyto(padded[: len(values)], values.clip(-CODE_MAX * SCALE_MAX, CODE_MAX * SCALE_MAX), casting="same_kind")
    blocks = padded.reshape(-1, BLOCK)
    np.divide(np.maximum(blocks.max(axis=1), -blocks.min(axis=1)), np.float32(CODE_MAX), out=scales)
    scales[scales < SCALE_MIN] = 0.0
    # Where the scale is zero so is every code.
    blocks /= np.where(scales > 0, scales, np.float32(np.inf))[:, np.newaxis]
    np.rint(blocks, out=blocks)
    np.clip(blocks, -CODE_MAX, CODE_MAX, out=blocks)
    np.copyto(out, padded[: len(out)], casting="unsafe")


def decode(encoded: Encoded, dtype: str) -> Float32s:
    """(elements,) float32: what a merge takes these codes for. Raises as `decode_int8` does."""
    out = np.empty(len(encoded.codes), np.float32)
    if encoded.scales is None:
        bits = encoded.codes
        np.copyto(out, np.left_shift(bits, 16, dtype=np.uint32).view(np.float32) if dtype == "BF16" else bits)
        return out
    return decode_int8(encoded.codes, encoded.scales, 0, out)


def decode_int8(codes: Int8s, scales: Float32s, first: int, out: Float32s) -> Float32s:
    """Codes times their blocks' scales, rounded once.

    Args:
        codes: (elements,) neighbours in one tensor.
        scales: (blocks,) of every block that they touch.
        first: where in the first of these blocks they begin.
        out: room for as many float32, which is the answer.
    Raises:
        NotFinite: a scale is no scale, or a code is -128; with the first element that it spoils.
    """
    _check_scales(scales, first)
    if len(codes) and codes.min() < -CODE_MAX:
        raise NotFinite(int(np.argmin(codes)), f"the code {-CODE_MAX - 1}, which nothing is encoded to")
    np.copyto(out, codes)
    head = min(-first % BLOCK, len(codes))
    whole = (len(codes) - head) // BLOCK
    body = out[head : head + whole * BLOCK].reshape(whole, BLOCK)
    begun = 1 if head else 0
    if head:
        out[:head] *= scales[0]
    body *= scales[begun : begun + whole, np.newaxis]
    if head + whole * BLOCK < len(codes):
        out[head + whole * BLOCK :] *= scales[-1]
    return out


def _check_scales(scales: Float32s, first: int) -> None:
    """A scale is +0, or between the two bounds."""
    with np.errstate(invalid="ignore"):
        good = (scales >= SCALE_MIN) & (scales <= SCALE_MAX) | (scales.view(np.uint32) == 0)
    if not good.all():
        block = int(np.argmin(good))
        raise NotFinite(
            max(block * BLOCK - first, 0), f"scaled by {scales[block]}; a scale is 0, or from 2**-126 to 2**120"
        )
