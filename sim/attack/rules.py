"""The merge rules as policies: what a consortium would agree on for so many sites, of which so many may lie."""

from __future__ import annotations

from typing import Any

from swarm.config import EQUAL_ONLY, MERGE_RULES, Policy

DEFAULT = Policy("default", 1, 1).merge
"""What a policy means that names no rule."""

RULES = tuple(rule for rule in MERGE_RULES if rule != "sum")


def policy_of(rule: str, *, faults: int, rounds: int, interval: int) -> Policy:
    """A policy with this rule; every setting that the rule does not need stays at its default.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"there is no merge rule {rule!r}; there are {', '.join(RULES)}")
    settings: dict[str, Any] = {"submissions_min": max(2, faults + 1)}
    if "faults" in MERGE_RULES[rule]:
        bears = max(faults, 1)
        settings |= {"faults": bears, "submissions_min": 2 * bears + (3 if rule == "multi_krum" else 1)}
    if rule in EQUAL_ONLY:
        settings["weights"] = "equal"
    return Policy("attack", rounds, interval, merge=rule, **settings)
