"""What encoded updates mean: exact references, bounds, every rule on them, and files that no encoder writes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.config import EQUAL_ONLY, MERGE_RULES, SERVER_RULES, Policy, load_policy
from swarm.errors import ConfigError
from swarm.merge import (
    BadUpdate,
    Schema,
    Tensor,
    UpdateReport,
    check_genesis,
    check_update,
    first_difference,
    merge,
    merge_chunks,
    update_size,
    write_file,
)
from swarm.merge.encoding import (
    BLOCK,
    SCALE,
    SCALE_MAX,
    SCALE_MIN,
    Encoded,
    decode,
    decode_int8,
    encode,
    encoded_dtype,
    update_schema,
)
from swarm.merge.fixed import NotFinite
from tests.merge.reference import policy, rounded

ENCODINGS = ("bfloat16", "float16", "int8")
DTYPE = {"bfloat16": "BF16", "float16": "F16", "int8": "I8"}
MODEL = Schema.of(
    [
        Tensor("body.weight", "F32", (300, 1000)),
        Tensor("body.bias", "F32", (300,)),
        Tensor("head.bias", "F32", (7,)),
        Tensor("double", "F64", (21, 33)),
        Tensor("half", "F16", (2, 40)),
        Tensor("empty", "F32", (0, 5)),
        Tensor("batches", "I64", ()),
        Tensor("codes", "I8", (300,)),
    ]
)


def drawn(seed: int, schema: Schema = MODEL) -> dict[str, NDArray[Any]]:
    source = np.random.default_rng(seed)
    kinds = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I8": "|i1"}
    return {t.name: np.asarray(source.normal(0, 0.05 if "F" in t.dtype else 40, t.shape)).astype(kinds[t.dtype])
            for t in schema.tensors}  # fmt: skip


def write_both(folder: Path, name: str, values: dict[str, NDArray[Any]], encoding: str) -> tuple[Path, Path]:
    """The encoded update, and a plain one of float32 numbers that it means."""
    travels, means, meant = dict(values), dict(values), []
    for tensor in MODEL.tensors:
        dtype = encoded_dtype(tensor, encoding)
        if dtype == tensor.dtype:
            meant.append(tensor)
            continue
        found = encode(values[tensor.name].reshape(-1), dtype)
        travels[tensor.name] = found.codes
        if found.scales is not None:
            travels[SCALE + tensor.name] = found.scales
        means[tensor.name] = decode(found, dtype).astype(values[tensor.name].dtype)
        meant.append(tensor)
    paths = folder / f"{name}.{encoding}", folder / f"{name}.means"
    write_file(paths[0], update_schema(MODEL, encoding), travels)
    write_file(paths[1], Schema.of(meant), means)
    return paths


@pytest.fixture(scope="module", params=ENCODINGS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Any]]:
    """An encoding, a base, and five updates, each encoded and as what it means."""
    folder = tmp_path_factory.mktemp(request.param)
    write_file(folder / "base", MODEL, drawn(99))
    return request.param, folder / "base", [write_both(folder, str(n), drawn(n), request.param) for n in range(5)]


# --- codes


def test_golden_codes() -> None:
    """By hand: the largest of a block is 127, halves go to the even code, a block of nothing has no scale."""
    values = np.zeros(2 * BLOCK + 3)
    values[:6] = [127.0, -127.0, 0.5, 1.5, -2.5, 1e-30]
    values[2 * BLOCK :] = [2.0**-126, 126 * 2.0**-126, -(2.0**-126)]
    found = encode(values, "I8")
    assert found.scales is not None
    assert found.codes[:6].tolist() == [127, -127, 0, 2, -2, 0]
    assert found.scales.tolist() == [1.0, 0.0, 0.0]
    assert not found.codes[BLOCK:].any(), "below 127 times the smallest normal number all is zero"
    edge = encode(np.array([127 * 2.0**-126]), "I8")
    assert edge.scales is not None
    assert (edge.scales.tolist(), edge.codes.tolist()) == ([2.0**-126], [127])
    beyond = encode(np.array([1e300, -1e300]), "I8")
    assert decode(beyond, "I8").tolist() == [127 * 2.0**120, -127 * 2.0**120]
    assert decode(encode(np.array([1e300, -1e6]), "F16"), "F16").tolist() == [65504.0, -65504.0]
    assert encode(np.array([1.0 + 2**-8, 1.0 + 3 * 2**-8, -0.0]), "BF16").codes.tolist() == [0x3F80, 0x3F82, 0]


def test_codes_are_the_same_on_every_machine() -> None:
    """The digest that the first machine found, over bit patterns from a whole-number formula."""
    bits = (np.arange(300_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.uint32)
    values = bits.view(np.float32)
    # Every exponent from subnormal to 2**40, so that blocks of every kind are there.
    values = np.where(np.abs(values) < 2.0**40, values, np.float32(0))
    values[::3] *= np.float32(2.0**-60)
    state = hashlib.sha256()
    for dtype in ("BF16", "F16", "I8"):
        found = encode(values, dtype)
        for part in (found.codes, found.scales, decode(found, dtype)):
            state.update(b"" if part is None else part.tobytes())
    assert state.hexdigest() == GOLDEN


GOLDEN = "79388c37fa1164b6456d5550dcdb44989682b4cdd2a5be34c8da670baac877c9"


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_those_of_exact_arithmetic(seed: int) -> None:
    source = np.random.default_rng(seed)
    values = (source.normal(size=600) * 10.0 ** source.uniform(-12, 3, 600)).astype(np.float32)
    for dtype in ("BF16", "F16"):
        expected = [float(rounded(Fraction(float(x)), dtype)) for x in values]
        assert decode(encode(values, dtype), dtype).tolist() == expected, seed
    found = encode(values, "I8")
    assert found.scales is not None
    for block in range(3):
        mine = slice(block * BLOCK, (block + 1) * BLOCK)
        scale = rounded(max(abs(Fraction(float(x))) for x in values[mine]) / 127, "F32")
        quotients = [rounded(Fraction(float(x)) / scale, "F32") for x in values[mine]]
        assert found.scales[block] == float(scale), seed
        assert found.codes[mine].tolist() == [round(q) for q in quotients], seed
        meant = [float(rounded(round(q) * scale, "F32")) for q in quotients]
        assert decode(found, "I8")[mine].tolist() == meant, seed


@pytest.mark.parametrize("seed", range(5))
def test_an_encoding_takes_no_more_than_half_a_step(seed: int) -> None:
    source = np.random.default_rng(seed)
    values = source.normal(size=5000) * 10.0 ** source.uniform(-9, 2, 5000)
    lost = {dtype: np.abs(values - decode(encode(values, dtype), dtype)) for dtype in ("BF16", "F16", "I8")}
    assert (lost["BF16"] <= np.abs(values) * 2.0**-8).all(), seed
    assert (lost["F16"] <= np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)).all(), seed
    scales = np.repeat(encode(values, "I8").scales, BLOCK)[:5000]  # type: ignore[arg-type]
    # Half a code, and float32's own rounding of value, scale, quotient and product.
    assert (lost["I8"] <= scales * (0.5 + 127 * 2.0**-22)).all(), seed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "I8"])
def test_what_is_not_finite_is_not_encoded(value: float, dtype: str) -> None:
    values = np.ones(70_000)
    values[66_000] = value
    with pytest.raises(NotFinite, match="element 66000 is"):
        encode(values, dtype)


@pytest.mark.parametrize("first", [0, 1, 100, 255, 256, 300])
def test_any_stretch_of_codes_means_what_it_means_in_the_whole(first: int) -> None:
    found = encode(np.random.default_rng(1).normal(size=1500), "I8")
    assert found.scales is not None
    whole = decode(found, "I8")
    for count in (0, 1, 255, 256, 257, 700, 1200):
        blocks = found.scales[first // BLOCK : -(-(first + count) // BLOCK)]
        part = decode_int8(found.codes[first : first + count], blocks, first % BLOCK, np.empty(count, np.float32))
        assert part.tolist() == whole[first : first + count].tolist()


# --- files


def test_the_schema_of_updates_follows_from_the_models() -> None:
    assert update_schema(MODEL, "float32") == MODEL
    found = {t.name: (t.dtype, t.shape) for t in update_schema(MODEL, "int8").tensors}
    assert found == {
        "body.weight": ("I8", (300, 1000)),
        SCALE + "body.weight": ("F32", (1172,)),
        "body.bias": ("I8", (300,)),
        SCALE + "body.bias": ("F32", (2,)),
        "head.bias": ("F32", (7,)),
        "double": ("I8", (21, 33)),
        SCALE + "double": ("F32", (3,)),
        "half": ("F16", (2, 40)),
        "empty": ("F32", (0, 5)),
        "batches": ("I64", ()),
        "codes": ("I8", (300,)),
    }
    kinds = {t.name: t.dtype for t in update_schema(MODEL, "bfloat16").tensors}
    assert (kinds["body.weight"], kinds["head.bias"], kinds["double"], kinds["half"]) == ("BF16", "BF16", "BF16", "F16")


def test_the_size_is_known_beforehand(files: tuple[str, Path, list[Any]]) -> None:
    encoding, base, updates = files
    for travels, _ in updates:
        assert travels.stat().st_size == update_size(base, policy(encoding=encoding))
    assert (
        base.stat().st_size / updates[0][0].stat().st_size > {"bfloat16": 1.99, "float16": 1.99, "int8": 3.8}[encoding]
    )


RULES = [
    *({"merge": name} for name in MERGE_RULES if name != "sum"),
    *({"merge": "mean", "server": name, "server_rate": 0.1} for name in SERVER_RULES if name != "none"),
    {"merge": "mean", "range": 0.03},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_every_rule_merges_what_the_codes_mean(
    tmp_path: Path, files: tuple[str, Path, list[Any]], rule: dict[str, Any]
) -> None:
    encoding, base, updates = files
    settings = {"weights": "equal" if rule["merge"] in EQUAL_ONLY else "samples"} | rule
    settings |= {"faults": 1} if "faults" in MERGE_RULES[rule["merge"]] else {}
    agreed = policy(encoding=encoding, **settings)
    travels, means = zip(*updates, strict=True)
    weights = [10, 3, 700, 41, 5]
    found = merge(base, travels, weights, agreed, tmp_path / "found")
    expected = merge(base, means, weights, replace(agreed, encoding="float32"), tmp_path / "expected")
    assert found.digest == expected.digest, first_difference(tmp_path / "expected", tmp_path / "found")
    assert _digits(found.reports) == _digits(expected.reports)
    assert merge(base, travels, weights, agreed, None, threads=3).digest == found.digest
    assert merge_chunks(base, travels, weights, agreed, [1]) == {1: found.leaves[1]}
    seen, meant = (
        check_update(base, travels[2], agreed),
        check_update(base, means[2], replace(agreed, encoding="float32")),
    )
    assert _digits([seen]) == _digits([meant])


def _digits(reports: Iterable[UpdateReport]) -> list[UpdateReport]:
    """Only the first digits of lengths and cosines are the same on every machine, and for every dtype."""
    return [replace(one, norm=float(f"{one.norm:.4g}"), cosine=round(one.cosine, 5)) for one in reports]


def test_a_checkpoint_keeps_the_models_dtypes(tmp_path: Path, files: tuple[str, Path, list[Any]]) -> None:
    encoding, base, updates = files
    merge(base, [travels for travels, _ in updates], [1] * 5, policy(encoding=encoding), tmp_path / "out")
    assert Schema.of_file(tmp_path / "out") == MODEL


# --- files that no encoder writes


def spoilt(folder: Path, change: Any) -> Path:
    """An int8 update of which `change` has altered some tensors."""
    travels = dict(drawn(1))
    for tensor in MODEL.tensors:
        if encoded_dtype(tensor, "int8") != tensor.dtype:
            found = encode(travels[tensor.name].reshape(-1), "I8")
            assert found.scales is not None
            travels |= {tensor.name: found.codes, SCALE + tensor.name: found.scales}
    change(travels)
    write_file(folder / "spoilt", update_schema(MODEL, "int8"), travels)
    return folder / "spoilt"


@pytest.mark.parametrize(
    "scale", [np.nan, np.inf, -1.0, -0.0, 2.0**-149, 2.0**-127, SCALE_MAX * 2, 3e38], ids=lambda value: str(value)
)
def test_a_scale_that_is_none_is_named_with_its_first_element(tmp_path: Path, scale: float) -> None:
    write_file(tmp_path / "base", MODEL, drawn(0))

    def put(values: dict[str, NDArray[Any]]) -> None:
        values[SCALE + "body.weight"][700] = scale

    with pytest.raises(BadUpdate, match=r"element 179200 of body.weight I8\[300, 1000\] is scaled by"):
        merge(tmp_path / "base", [spoilt(tmp_path, put)], [1], policy(encoding="int8"), None)


@pytest.mark.parametrize("scale", [SCALE_MIN, SCALE_MAX, 0.0])
def test_the_smallest_and_the_largest_scale_are_taken(tmp_path: Path, scale: float) -> None:
    write_file(tmp_path / "base", MODEL, drawn(0))

    def put(values: dict[str, NDArray[Any]]) -> None:
        values[SCALE + "body.weight"][700] = scale

    check_update(tmp_path / "base", spoilt(tmp_path, put), policy(encoding="int8"))


def test_a_code_that_nothing_is_encoded_to_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "base", MODEL, drawn(0))

    def put(values: dict[str, NDArray[Any]]) -> None:
        values["double"][555] = -128

    with pytest.raises(BadUpdate, match=r"element 555 of double I8\[21, 33\] is the code -128"):
        merge(tmp_path / "base", [spoilt(tmp_path, put)], [1], policy(encoding="int8"), None)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_update_in_another_encoding_is_refused_with_the_agreed_one(tmp_path: Path, encoding: str) -> None:
    write_file(tmp_path / "base", MODEL, drawn(0))
    travels, means = write_both(tmp_path, "u", drawn(1), encoding)
    with pytest.raises(BadUpdate, match=rf"where .* belongs.*\(updates of this run travel as {encoding}\)"):
        check_update(tmp_path / "base", means, policy(encoding=encoding))
    with pytest.raises(BadUpdate, match="where F"):
        check_update(tmp_path / "base", travels, policy())


@pytest.mark.parametrize("shape", [(1171,), (1173,), (1172, 1), (1 << 40,)])
def test_other_scales_than_the_schemas_are_refused_by_the_header(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_file(tmp_path / "base", MODEL, drawn(0))
    name = SCALE + "body.weight"
    tensors = [t if t.name != name else Tensor(name, "F32", shape) for t in update_schema(MODEL, "int8").tensors]
    schema = Schema.of(tensors)
    with (tmp_path / "u").open("wb") as file:
        file.write(schema.header)
        file.truncate(schema.size_bytes)  # a hole: no disk behind it
    with pytest.raises(BadUpdate, match=r"swarm\.scale\.body\.weight is F32"):
        check_update(tmp_path / "base", tmp_path / "u", policy(encoding="int8"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nonsense_is_refused_or_merges_to_finite_numbers(tmp_path: Path, encoding: str) -> None:
    write_file(tmp_path / "base", MODEL, drawn(0))
    path, _ = write_both(tmp_path, "u", drawn(1), encoding)
    whole, start = path.read_bytes(), len(update_schema(MODEL, encoding).header)
    outcomes = set()
    for seed in range(60):
        source = random.Random(seed)
        data = bytearray(whole)
        for _ in range(source.choice([1, 1, 1, 5])):
            at = source.randrange(start, start + (len(data) - start) // source.choice([1, 1, 60]))
            data[at : at + 4] = source.choice([source.randbytes(4), b"\xff\xff\xff\xff", b"\0\0\x80\x7f"])[
                : len(data) - at
            ]
        path.write_bytes(data)
        try:
            found = merge(tmp_path / "base", [path], [1], policy(encoding=encoding), tmp_path / "out")
        except BadUpdate:
            outcomes.add("refused")
            continue
        assert np.isfinite(found.reports[0].norm), seed
        with (tmp_path / "out").open("rb") as file:
            file.seek(len(MODEL.header) + 8 * (21 * 33 + 1))
            assert np.isfinite(np.fromfile(file, "<f4", 300_307)).all(), seed
        outcomes.add("merged")
    assert outcomes == {"refused", "merged"}


# --- what members can agree on


def agreed(folder: Path, **settings: Any) -> Policy:
    lines = {"name": '"e"', "rounds": 3, "sync_interval": 1} | settings
    (folder / "e.toml").write_text("[run]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items()))
    return load_policy(folder / "e.toml")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"encoding": '"int4"'}, "encoding = 'int4', but it has to be one of float32, bfloat16, float16, int8"),
        ({"encoding": '"int8"', "merge": '"mean"', "blind": "true", "submissions_min": 3}, "an encoding of their own"),
        ({"encoding": '"int8"', "merge": '"sum"', "weights": '"equal"'}, "no later round brings what is lost"),
        ({"encoding": '"float16"', "range": 70000.0, "step_bits": 16, "weight_max": 10}, "at most 65504"),
        ({"encoding": '"int8"', "verify_all_members": 0}, "everybody merges everything again"),
        ({"encoding": '"int8"', "verify_all_bytes": 0}, "everybody merges everything again"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        agreed(tmp_path, **settings)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoding_is_agreed_on_as_any_setting(tmp_path: Path, encoding: str) -> None:
    found = agreed(tmp_path, encoding=f'"{encoding}"')
    assert Policy.decode(found.encode()).encoding == encoding
    assert not found.by_chunks


def test_a_model_that_leaves_no_name_for_scales_starts_no_run() -> None:
    check_genesis(MODEL, policy(encoding="int8"))
    long = Schema.of([Tensor("x" * 1020, "F32", (300,))])
    check_genesis(long, policy())
    with pytest.raises(ValueError, match="a name of 1032 bytes"):
        check_genesis(long, policy(encoding="int8"))
    with pytest.raises(ValueError, match=r"swarm\.scale\.x is kept"):
        check_genesis(Schema.of([Tensor("swarm.scale.x", "F32", (2,))]), policy(encoding="int8"))


def test_decoding_needs_the_scales_of_the_blocks() -> None:
    """A planted mistake: block by block, not the first scale for all."""
    values = np.concatenate([np.full(BLOCK, 1.0), np.full(BLOCK, 100.0)])
    found = encode(values, "I8")
    assert found.scales is not None
    wrong = Encoded(found.codes, np.full_like(found.scales, found.scales[0]))
    assert decode(found, "I8").tolist() == pytest.approx(values.tolist(), rel=1e-6)
    assert decode(wrong, "I8")[-1] == pytest.approx(1.0, rel=1e-6)
