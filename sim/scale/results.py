"""What a simulation found, as numbers: equal for equal experiments, without times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sim.scale.prepared import Prepared, described
from sim.scale.rounds import Closed, Swarm
from sim.study import metrics
from sim.study.results import ALL, values
from swarm.learn.recipes import Rows, together


def results(prepared: Prepared, swarm: Swarm, closed: Sequence[Closed]) -> dict[str, Any]:
    """All that `results.json` holds."""
    model = swarm.model(bytes.fromhex(closed[-1].checkpoint))
    model.eval()
    outputs = {
        name: prepared.study.outputs(model, rows.x).numpy() for name, rows in prepared.tests.items() if len(rows)
    }
    tests = {name: rows for name, rows in prepared.tests.items() if len(rows)}
    whole = np.concatenate(list(outputs.values()))

    def judged(rows: Rows, found: Any) -> Any:
        weights = metrics.draws(len(rows), prepared.experiment.bootstrap, seed=len(rows))
        return values(
            {m: one[None] for m, one in metrics.measure(prepared.recipe.KIND, rows.y.numpy(), found, weights).items()}
        )

    return {
        **prepared.settings,
        "what": described(prepared),
        "kind": prepared.recipe.KIND,
        "main": metrics.MAIN[prepared.recipe.KIND],
        "peers": prepared.peers,
        "institutions": [
            {"name": one.name, "sites": len(one.peers), "rows": sum(len(peer.y) for peer in one.peers)}
            for one in prepared.institutions
        ],
        "rounds": [{**asdict(one), **_story(swarm, one.round)} for one in closed],
        "measures": {ALL: judged(together(list(tests.values())), whole)}
        | {name: judged(rows, outputs[name]) for name, rows in tests.items()},
        "checkpoint": closed[-1].checkpoint,
        "ledger": {"blocks": swarm.chain.height, "head": swarm.chain.head},
    }


def _story(swarm: Swarm, number: int) -> dict[str, Any]:
    """How the contract says that a round ended."""
    (run,) = swarm.chain.ask(swarm.chain.contracts.runs())
    closed = swarm.chain.ask(swarm.chain.contracts.closed_round(run.id, number))
    assert closed is not None
    names = {member.node.address: member.name for member in swarm.chain.members}
    return {
        "leader": names[closed.leader],
        "view": closed.view,
        "submissions": closed.submissions,
        "attestations": closed.attestations,
    }
