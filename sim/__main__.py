"""`python -m sim`: a swarm's story on this machine, or many seeds of it. Equal arguments give equal stories.

`python -m sim EXPERIMENT.toml` trains many virtual sites; `python -m sim consensus` simulates the consensus alone; each
such command has its own arguments.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace

from sim.logs import show_logs
from sim.plan import LIARS, MISTAKES, Plan, draw, option
from sim.world import Outcome, run

COMMANDS = {
    "attack": "sim.attack.__main__",
    "blind": "sim.blind.__main__",
    "consensus": "sim.consensus",
    "liveness": "sim.liveness",
    "private": "sim.private",
    "tamper": "sim.tamper",
}
"""The module whose `main` takes the arguments that follow."""


def parser() -> argparse.ArgumentParser:
    """The arguments: each number of a plan has an option of its name."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="what chance starts from")
    parser.add_argument("--chaos", action="store_true", help="draw members, liar and troubles from the seed")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="run N seeds of chaos, from --seed on, and count failures"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes for --seeds")
    parser.add_argument("--log", action="store_true", help="show the nodes' own logs too")
    for field in fields(Plan):
        if field.name == "seed":
            continue
        kind = type(field.default)
        choices = {"liar": LIARS, "mistake": MISTAKES}.get(field.name)
        parser.add_argument(
            option(field.name),
            dest=field.name,
            type=kind,
            choices=choices,
            help=f"default {field.default!r}",
            default=None,
        )
    return parser


def plan_of(arguments: argparse.Namespace, seed: int) -> Plan:
    """The plan that the arguments mean: drawn from the seed or plain, with what was given on top."""
    given = {f.name: v for f in fields(Plan) if f.name != "seed" and (v := getattr(arguments, f.name)) is not None}
    drawn = draw(seed) if arguments.chaos or arguments.seeds else Plan(seed)
    return replace(drawn, **given)


def many(plans: Sequence[Plan], jobs: int) -> int:
    """Run all plans and report; the number of failures."""
    began_s, failures, virtual_s, cpu_s, calm_s, blocks = time.perf_counter(), [], 0.0, 0.0, 0.0, 0
    troubles, lies, replaced, restarts = 0, 0, 0, 0
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for count, outcome in enumerate(pool.map(run, plans, chunksize=4), 1):
            virtual_s, blocks = virtual_s + outcome.virtual_s, blocks + outcome.blocks
            cpu_s += outcome.cpu_s
            calm_s = max(calm_s, outcome.calm_s)
            troubles, lies = troubles + outcome.troubles, lies + outcome.wrong_publications
            replaced, restarts = replaced + outcome.replacements, restarts + outcome.restarts
            if outcome.failure:
                failures.append(outcome)
                print(f"seed {outcome.plan.seed}: {outcome.failure}\n    {outcome.plan.command()}", flush=True)
            if count % 100 == 0:
                rate = count / (time.perf_counter() - began_s)
                print(f"{count} seeds, {len(failures)} failures, {rate:.1f} seeds/s", flush=True)
    real_s = time.perf_counter() - began_s
    print(
        f"{len(plans)} seeds in {real_s:.1f} s ({len(plans) / real_s:.2f} a second, "
        f"{len(plans) / cpu_s:.2f} a second of CPU): "
        f"{len(failures)} failures; {virtual_s / 3600:.1f} virtual hours, {blocks} blocks, "
        f"{troubles} crashes and partitions, {lies} wrong checkpoints published, {replaced} leaders replaced, "
        f"{restarts} rounds restarted; "
        f"at most {calm_s:.0f} s from the last trouble to the end"
    )
    return len(failures)


def main() -> int:
    """Run what the command line says; the exit status."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return _run(COMMANDS[sys.argv[1]], sys.argv[2:])
    if any(argument.endswith(".toml") for argument in sys.argv[1:]):
        return _run("sim.scale.command", sys.argv[1:])
    arguments = parser().parse_args()
    try:
        if arguments.seeds:
            plans = [plan_of(arguments, arguments.seed + i) for i in range(arguments.seeds)]
            return 1 if many(plans, arguments.jobs) else 0
        plan = plan_of(arguments, arguments.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{plan.command()}\n")
    if arguments.log:
        show_logs()
    outcome = run(plan, tell=lambda line: print(line, flush=True))
    print(f"\n{_summary(outcome)}\ntrace {outcome.trace}")
    return 1 if outcome.failure else 0


def _run(module: str, arguments: Sequence[str]) -> int:
    status: int = importlib.import_module(module).main(arguments)
    return status


def _summary(outcome: Outcome) -> str:
    return (
        f"{outcome.plan.rounds} rounds, {outcome.plan.members} members, {outcome.blocks} blocks, "
        f"{outcome.virtual_s:.1f} virtual seconds, {outcome.troubles} crashes and partitions, "
        f"{outcome.replacements} leaders replaced, {outcome.wrong_publications} wrong checkpoints published"
    )


if __name__ == "__main__":
    sys.exit(main())
