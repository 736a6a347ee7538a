"""`swarm leak-check`: a report for a person, a digest for the ledger, and clear words where nothing can be checked."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from swarm.audit.retell import runs_of
from swarm.config import LEAK_CHECK, LEAK_CHECK_RESULTS
from swarm.errors import StorageError
from swarm.identity import checksum
from swarm.learn.leak.stated import with_leak_check
from swarm.ledger.client import encode_metrics
from tests.cli.conftest import Swarm

HEART = Path(__file__).parents[2] / "nodes" / "heart"


def test_a_report_says_what_came_of_it_and_the_ledger_gets_its_digest(swarm: Swarm, tmp_path: Path) -> None:
    place = tmp_path / LEAK_CHECK_RESULTS.parent
    result = swarm("leak-check", HEART, "--site", "switzerland", "--quick", "--out", place)
    assert result.exit_code == 0, result.output
    data, page = (place / "results.json").read_bytes(), (place / "report.html").read_text()
    found = json.loads(data)
    # Logistic regression: the gradient of one row is the row, up to its length.
    assert not (place / "steps").exists()
    one = found["attacks"]["one"]
    assert one["verdict"] == "recognisable"
    assert one["decibel_best"] > 40
    assert one["labels"] == "inferred from the update"
    assert found["attacks"]["blind interval"]["recognised"] == 0
    assert found["attacks"]["private small"]["verdict"] == "not recognisable"
    private = found["canaries"]["private, each update seen"]
    assert private["epsilon_min"] <= found["canaries"]["accountant_epsilon"]
    assert found["membership"]["by loss"]["true_positives"] is None
    assert "cannot be measured" in page
    assert "<b class=bad>recognisable</b>, because" in page
    assert "http" not in page.replace("http://www.w3.org", "")

    metrics = with_leak_check(tmp_path, {"loss": 0.5})
    name = LEAK_CHECK + sha256(data).hexdigest()
    assert set(metrics) == {"loss", name}
    assert metrics[name] >= 2

    member = b"\7" * 20
    run = runs_of(
        [
            ("RunProposed", {"run": 1, "name": "heart", "policy": b"\1" * 32, "genesis": b"\2" * 32}),
            (
                "Submitted",
                {"run": 1, "round": 0, "member": member, "digest": b"\3" * 32, "weight": 4}
                | {"metrics": encode_metrics(metrics)},
            ),
        ]
    )[1]  # fmt: skip
    (stated,) = run.leak_checks.values()
    assert (stated.member, stated.digest) == (checksum(member), sha256(data).hexdigest())
    assert sha256(data).hexdigest() in stated.line

    (place / "report.html").write_text(page + " ")
    with pytest.raises(StorageError, match="is another one"):
        with_leak_check(tmp_path, {})


def test_a_site_without_a_leak_check_states_none_and_long_metrics_leave_it_out(tmp_path: Path) -> None:
    assert with_leak_check(tmp_path, {"auc": 0.5}) == {"auc": 0.5}
    place = tmp_path / LEAK_CHECK_RESULTS
    place.parent.mkdir()
    (place.parent / "report.html").write_text("")
    place.write_text(json.dumps({"attacks": {}, "report_sha256": sha256(b"").hexdigest()}))
    assert len(with_leak_check(tmp_path, {})) == 1
    long = {f"metric {number}": 0.123456789 for number in range(20)}
    assert with_leak_check(tmp_path, long) == long


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nodes"], "recipe.py is missing"),
        (["README.md"], "neither a folder"),
        (["nodes/heart", "--site", "paris"], "there are cleveland"),
        (["nodes/heart", "--rows", "1"], "rows are 2 or more"),
        (["nodes/heart", "--epsilon", "0"], "epsilon is 0.05 or more"),
        (["nodes/heart", "--run", "heart"], "from a SITE.toml's ledger"),
        (["nodes/heart", "--update", "README.md"], "is no update"),
        (["nodes/heart", "--policy", "nodes/none.toml"], "none.toml"),
    ],
)
def test_what_cannot_be_checked_is_said(swarm: Swarm, arguments: list[str], said: str) -> None:
    root = Path(__file__).parents[2]
    first, *rest = (str(root / part) if "/" in part or part in ("nodes", "README.md") else part for part in arguments)
    extra = [] if "heart" in first else ["--policy", str(HEART / "heart.toml")]
    result = swarm("leak-check", first, *rest, *extra)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
