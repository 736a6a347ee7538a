"""The artifacts that ship are what the sources give, and a difference is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vyper.compiler import compile_code

from contracts.compile import ARTIFACTS, CONTRACTS, SOURCES, differences, main, render


def shipped(name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((ARTIFACTS / f"{name}.json").read_text())
    return document


def test_the_artifacts_are_what_the_sources_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_the_check_names_what_differs_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = shipped("Runs")
    (tmp_path / "Runs.json").write_text(render({**document, "bytecode": "0x00"}))
    assert main(["--check"], folder=tmp_path) == 1
    told = capsys.readouterr().err
    assert "Consortium.json differs from contracts/Consortium.vy: it is missing" in told
    assert "Runs.json differs from contracts/Runs.vy: bytecode" in told
    assert main([], folder=tmp_path) == 0
    assert (tmp_path / "Runs.json").read_text() == (ARTIFACTS / "Runs.json").read_text()


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_part_of_an_artifact_is_compared(name: str) -> None:
    document = shipped(name)
    assert differences(render(document), document) == []
    for key in document:
        assert differences(render({**document, key: "another"}), document) == [key]
    assert differences(json.dumps(document), document) == ["its layout as a file"]
    assert differences("{", document)[0].startswith("it is not JSON")


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_fits_ethereums_bound_on_code(name: str) -> None:
    runtime = str(
        compile_code((SOURCES / f"{name}.vy").read_text(), output_formats=["bytecode_runtime"])["bytecode_runtime"]
    )
    immutables = 2 * 32
    assert len(runtime) // 2 - 1 + immutables <= 24_576  # EIP-170
    assert len(str(shipped(name)["bytecode"])) // 2 - 1 <= 40_000  # EIP-3860 takes 49,152 with the arguments
