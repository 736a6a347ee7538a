"""What it costs that updates travel as less than they are: bytes, encoding, decoding, and the merge of them.

    python -m bench.encoding [--members 4] [--millions 10] [--repeats 3] [--folder DIR]

For each encoding: bytes of an update, gigabytes of float32 that one thread encodes and decodes a second, and seconds
of the merge with two threads (median), beside the merge of float32. The files lie in the page cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.merge import seconds, weights_of
from swarm.config import Policy
from swarm.config.policy import ENCODINGS
from swarm.merge import Schema, Tensor, merge, write_file
from swarm.merge.encoding import SCALE, decode, encode, encoded_dtype, update_schema


def inputs(folder: Path, encoding: str, members: int, schema: Schema) -> list[Path]:
    """Updates as they travel."""
    (tensor,) = schema.tensors
    dtype, source, paths = encoded_dtype(tensor, encoding), np.random.default_rng(0), list[Path]()
    for number in range(members):
        values = source.standard_normal(tensor.count, np.float32) * np.float32(0.01)
        travels = {tensor.name: values}
        if dtype != tensor.dtype:
            found = encode(values, dtype)
            travels = {tensor.name: found.codes}
            travels |= {SCALE + tensor.name: found.scales} if found.scales is not None else {}
        paths.append(folder / f"{encoding}-{number}")
        write_file(paths[-1], update_schema(schema, encoding), travels)
    return paths


def main(
    members: Annotated[int, typer.Option(help="updates of a merge")] = 4,
    millions: Annotated[float, typer.Option(help="parameters")] = 10.0,
    repeats: Annotated[int, typer.Option(help="of each measurement")] = 3,
    folder: Annotated[Path | None, typer.Option(help="where files are written; else a temporary one")] = None,
) -> None:
    """Measure and print a table."""
    schema = Schema.of([Tensor("weight", "F32", (int(millions * 1e6),))])
    table = Table("encoding", "MB an update", "of float32", "encode GB/s", "decode GB/s", "merge s", "of float32's")
    gigabytes, plain_s = schema.data_bytes / 1e9, 0.0
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        base = Path(inner) / "base"
        values = np.random.default_rng(1).standard_normal(int(millions * 1e6), np.float32)
        write_file(base, schema, {"weight": values})
        for encoding in ENCODINGS:
            paths = inputs(Path(inner), encoding, members, schema)
            policy = Policy("bench", 1, 1, encoding=encoding)
            out = Path(inner) / "out"
            merge_s = seconds(lambda: merge(base, paths, weights_of(members), policy, out), repeats)  # noqa: B023
            plain_s = plain_s or merge_s
            speeds = ["", ""]
            dtype = encoded_dtype(schema.tensors[0], encoding)
            if dtype != "F32":
                found = encode(values, dtype)
                speeds[0] = f"{gigabytes / seconds(lambda: encode(values, dtype), repeats):.2f}"  # noqa: B023
                speeds[1] = f"{gigabytes / seconds(lambda: decode(found, dtype), repeats):.2f}"  # noqa: B023
            size = paths[0].stat().st_size
            table.add_row(
                encoding, f"{size / 1e6:.2f}", f"{size / base.stat().st_size:.3f}", *speeds, f"{merge_s:.3f}",
                f"{merge_s / plain_s:.2f}",
            )  # fmt: skip
            for path in paths:
                path.unlink()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
