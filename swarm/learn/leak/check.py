"""What a site's updates give away: every attack on one site of a recipe, as numbers, pictures and plain words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from swarm.config import Policy
from swarm.encoding import sha256
from swarm.errors import ConfigError
from swarm.learn.leak import canaries, membership
from swarm.learn.leak.attacks import Attack, Plan, View, attack, view_of_file, views
from swarm.learn.leak.binomial import CONFIDENCE, interval
from swarm.learn.leak.ground import Ground, Records, with_privacy
from swarm.learn.leak.inversion import Effort, Known
from swarm.learn.leak.measures import mean
from swarm.learn.leak.pictures import png
from swarm.learn.leak.steps import Steps
from swarm.learn.leak.training import train
from swarm.learn.private_budget import Steps as StepsTaken
from swarm.learn.private_budget import epsilon_of, noise_for
from swarm.learn.recipes import load_recipe, sites_of

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Settings:
    """What is checked, and how hard it is tried."""

    recipe: Path
    """A folder with recipe.py."""
    policy: Policy
    site: str = ""
    """Whose updates; empty: the recipe's first site."""
    seed: int = 0
    checkpoint: Path | None = None
    """What training starts from; None: the recipe's fresh model."""
    update: Path | None = None
    """What the site's training wrote to be submitted: is attacked too."""
    epsilon: float = 8.0
    """Of the private variant where the policy has none."""
    plan: Plan = field(default_factory=Plan)
    canaries: int = 400
    shadows: int = 4
    """Shadow models; an even number, 2 or more."""
    rounds: int = 0
    """Of trained models; 0: the policy's."""


QUICK = Plan(Effort(restarts=2, steps=60, refine=20), trials_of_one=2, trials=2, trials_of_interval=2)


Found = tuple[dict[str, Any], dict[str, list[tuple[str, str]]]]
"""Results that are plain values; by attack, pairs of pictures of a true record and its nearest reconstruction."""


def check(settings: Settings, tell: Tell = lambda what, done, of: None, *, steps: Path | None = None) -> Found:
    """All attacks.

    Args:
        steps: keeps what is worked out, so that the same check, stopped and started again, goes on.

    Raises:
        ConfigError: no such recipe or site, a model that cannot be attacked or trained privately, or too little memory.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps of small models are shorter than the threads' waiting for each other
    try:
        return _check(settings, tell, steps)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise ConfigError(
                f"there is not enough memory for {settings.plan.rows} records at once ({str(error)[:120]}); "
                "--rows takes fewer"
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)


def _check(settings: Settings, tell: Tell, folder: Path | None) -> Found:
    recipe = load_recipe(settings.recipe)
    sites = sites_of(recipe)
    site = settings.site or next((one.name for one in sites if one.trains), "")
    ground = Ground(recipe, settings.policy, sites, site, seed=settings.seed, checkpoint=settings.checkpoint)
    if len(ground.mine) < 2:
        raise ConfigError(f"{site} has {len(ground.mine)} records; an update of so few is the record")
    policy = with_privacy(settings.policy, settings.epsilon, min(map(len, ground.rows.values())))
    tried = views(ground, policy, settings.plan)
    if settings.update is not None:
        tried = [view_of_file(ground, settings.update), *tried]
    about = _about(settings)
    steps = Steps(folder, about)
    attacks = {}
    for view in tried:
        name = f"{view.name} {policy.epsilon:g}" if view.private else view.name
        attacks[view.name] = steps.of(name, partial(_told, ground, settings.plan, view, tell))
    trained = _trained(ground, policy, settings, steps, tell)
    results = {
        "recipe": settings.recipe.resolve().name,
        "site": site,
        "records": len(ground.mine),
        "sites": len(ground.rows),
        "policy": asdict(settings.policy),
        "private": {"epsilon": policy.epsilon, "delta": policy.delta, "clip": policy.clip, "unit": policy.unit},
        "seed": settings.seed,
        "checkpoint": about["checkpoint"] or "fresh model",
        "update": about["update"],
        "images": ground.is_image,
        "attacks": {name: one["numbers"] for name, one in attacks.items()},
        **trained,
    }
    return results, {name: one["pictures"] for name, one in attacks.items()}


def _about(settings: Settings) -> dict[str, Any]:
    """Everything that the results depend on, but for the epsilon that private steps have in their names."""

    def digest(path: Path | None) -> str:
        return "" if path is None else sha256(path.read_bytes()).hex()

    files = {path.name: digest(path) for path in sorted(settings.recipe.glob("*.py"))}
    whole = asdict(settings)
    del whole["epsilon"]
    return whole | {
        "recipe": files, "checkpoint": digest(settings.checkpoint), "update": digest(settings.update),
    }  # fmt: skip


def _told(ground: Ground, plan: Plan, view: View, tell: Tell) -> dict[str, Any]:
    title = view.title
    total = max(view.trials, 2) * plan.effort.restarts * (plan.effort.steps + plan.effort.refine)
    done = 0

    def stepped() -> None:
        nonlocal done
        done += 1
        if not done % 20:
            tell(title, min(done, total), total)

    tell(title, 0, total)
    found = attack(ground, view, plan, tell=stepped)
    tell(title, total, total)
    return {"numbers": _numbers(found), "pictures": [(png(true), png(near)) for true, near in found.pictures]}


def _numbers(one: Attack) -> dict[str, Any]:
    like = one.likeness
    shown = {
        "title": one.title,
        "verdict": one.verdict,
        "records": list(one.records),
        "recognised": one.recognised,
        "judged": one.judged,
        "hard": one.hard,
        "decibel": round(mean(like.reached), 2),
        "decibel_best": round(max(like.reached), 2),
        "decibel_without_the_update": round(mean(like.blank), 2),
        "decibel_of_an_unrelated_gradient": round(mean(like.unrelated), 2),
        "first_in_line_up": like.first,
        "first_interval": [round(value, 4) for value in interval(like.first, one.judged)],
        "first_by_chance": round(like.chance, 5),
        "rivals": [min(like.rivals), max(like.rivals)],
        "rivals_left_behind": round(like.ahead, 3) if any(like.rivals) else None,
        "mismatch": [round(value, 6) for value in one.mismatch],
        "labels": one.labels,
    }
    if like.similarity:
        shown |= {
            "ssim": round(mean(like.similarity), 3),
            "ssim_of_the_mean_image": round(mean(like.similarity_blank), 3),
        }
    return shown


# --- attacks on models trained to the end


def _trained(ground: Ground, policy: Policy, settings: Settings, steps: Steps, tell: Tell) -> dict[str, Any]:
    rounds = min(settings.rounds or settings.policy.rounds, settings.policy.rounds)
    if ground.recipe.KIND == "survival":
        why = "cannot be measured: this recipe's loss compares records with each other, so one record has none"
        return {"membership": {"undefined": why}, "canaries": {"undefined": why}}
    return {
        "rounds": rounds,
        "membership": _membership(ground, policy, settings, rounds, steps, tell),
        "canaries": _canaries(ground, policy, settings, rounds, steps, tell),
    }


def _membership(
    ground: Ground, policy: Policy, settings: Settings, rounds: int, steps: Steps, tell: Tell
) -> dict[str, Any]:
    """Of one model that trained on half of all records, and of the same with differential privacy."""
    if settings.shadows < 2 or settings.shadows % 2:
        raise ConfigError(f"{settings.shadows} shadow models; an even number from 2 on is possible")
    counts = {name: len(rows) for name, rows in ground.rows.items()}
    everybody = Records(
        torch.cat([rows.x for rows in ground.rows.values()]), torch.cat([rows.y for rows in ground.rows.values()])
    )
    chance = ground.chance(3)
    models = settings.shadows + 1
    inside = membership.coins(settings.shadows, len(everybody), chance)
    target = torch.rand(len(everybody), generator=chance) < 0.5
    sides = torch.cat([target[None], inside])
    title, total, done = "models for membership inference", (models + 1) * rounds * len(counts), 0

    def stepped() -> None:
        nonlocal done
        done += 1
        tell(title, done, total)

    def halves(where: torch.Tensor) -> dict[str, Records]:
        parts, found, at = torch.split(where, list(counts.values())), {}, 0
        for (name, rows), part in zip(ground.rows.items(), parts, strict=True):
            found[name] = rows.pick(part.nonzero().flatten() if bool(part.any()) else torch.arange(1))
            at += counts[name]
        return found

    def losses_of(side: torch.Tensor, number: int, run_policy: Policy | None = None) -> torch.Tensor:
        def make() -> list[float]:
            model = train(ground, halves(side), rounds=rounds, seed=number, policy=run_policy, tell=stepped)
            found: list[float] = ground.losses(model, everybody).tolist()
            return found

        name = f"losses {number}" if run_policy is None else f"losses private {policy.epsilon:g}"
        return torch.tensor(steps.of(name, make), dtype=torch.float64)

    losses = [losses_of(side, number) for number, side in enumerate(sides)]
    own = losses_of(target, 0, policy)
    shown = {
        "by loss": membership.measured(membership.by_loss(losses[0]), target),
        "by shadow models": membership.measured(
            membership.by_shadows(losses[0], torch.stack(losses[1:]), inside), target
        ),
        "by loss, private": membership.measured(membership.by_loss(own), target),
    }
    return {"shadow_models": settings.shadows, **{name: asdict(one) for name, one in shown.items()}}


def _canaries(
    ground: Ground, policy: Policy, settings: Settings, rounds: int, steps: Steps, tell: Tell
) -> dict[str, Any]:
    """One run in the open, whose updates and sums are both looked at, and one with differential privacy."""
    count = min(settings.canaries, len(ground.mine))
    if count < 2 * canaries.GUESSED:
        return {"undefined": f"cannot be measured: {ground.site} has too few records for {count} canaries among them"}
    chance = ground.chance(4)
    known = Known.of(ground.known_x, by_column=not ground.is_image)
    own = canaries.planted(count, known, ground.mine.y, chance)
    inside = torch.rand(count, generator=chance) < 0.5
    mine = Records(torch.cat([ground.mine.x, own.x[inside]]), torch.cat([ground.mine.y, own.y[inside]]))
    rows = {name: mine if name == ground.site else part for name, part in ground.rows.items()}
    noise = noise_for(
        epsilon=policy.epsilon,
        delta=policy.delta,
        rate=min(ground.recipe.BATCH / len(mine), 1.0),
        steps=settings.policy.rounds * settings.policy.sync_interval,
    )
    title, total, done = "canary audits", 2 * rounds * len(rows), 0

    def stepped() -> None:
        nonlocal done
        done += 1
        tell(title, done, total)

    def scores(run_policy: Policy | None) -> tuple[torch.Tensor, torch.Tensor]:
        def make() -> list[list[float]]:
            after_updates, after_sums = list[torch.Tensor](), list[torch.Tensor]()

            def watch(site: str, before: Any, after: Any) -> None:
                if site == ground.site:
                    after_updates.append(ground.losses(after, own))

            def merged(before: Any, after: Any) -> None:
                after_sums.append(ground.losses(after, own))

            train(ground, rows, rounds=rounds, seed=7, policy=run_policy, watch=watch, merged=merged, tell=stepped)
            return [canaries.scores(first, after, own.y).tolist() for after in (after_updates, after_sums)]

        update, total = steps.of("canaries" if run_policy is None else f"canaries private {policy.epsilon:g}", make)
        return torch.tensor(update, dtype=torch.float64), torch.tensor(total, dtype=torch.float64)

    first = ground.losses(ground.recipe.new_model(ground.seed), own)
    plain, summed = scores(None)
    private, _ = scores(policy)
    done_steps = rounds * settings.policy.sync_interval
    spent = epsilon_of([StepsTaken(noise, min(ground.recipe.BATCH / len(mine), 1.0), done_steps)], policy.delta)
    found = {
        "plain, each update seen": canaries.audited(plain, inside, delta=policy.delta),
        "blind, only sums seen": canaries.audited(summed, inside, delta=policy.delta),
        "private, each update seen": canaries.audited(private, inside, delta=policy.delta),
    }
    return {
        "confidence": CONFIDENCE,
        "accountant_epsilon": round(spent, 4),
        **{name: asdict(one) for name, one in found.items()},
    }


def quick(settings: Settings) -> Settings:
    """The same with little effort: shows that it works, and not what an update gives away."""
    short = replace(
        settings.policy, rounds=min(2, settings.policy.rounds), sync_interval=min(5, settings.policy.sync_interval)
    )
    plan = replace(QUICK, rows=settings.plan.rows)
    return replace(settings, policy=short, plan=plan, canaries=40, shadows=2)
