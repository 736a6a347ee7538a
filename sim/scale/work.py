"""What a worker process does: an institution's part of a round, from the checkpoint to the update that it submits.

A site's model exists while the site trains. An institution with several sites submits their weighted mean, made by the
swarm's own whole-number arithmetic; what is inside an institution nobody else sees or verifies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sim.scale.prepared import Institution, Prepared
from sim.study import arms
from sim.study.arms import Peer
from swarm.config import Policy
from swarm.encoding import Digest
from swarm.errors import ConfigError
from swarm.learn.state import Checkpoint
from swarm.merge import check_update, merge_files, write_file
from swarm.merkle import digest_of


@dataclass(frozen=True)
class Part:
    """An institution's update of a round: its file's digest, the weight it is submitted with, and who made it."""

    digest: Digest
    weight: int
    sites: int
    samples: int
    """Rows that its sites saw in the round."""


class Parts:
    """The updates of one round in a folder, each whole or not there: what an interrupted run goes on with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, institution: int) -> Path:
        """Where an institution's update is, once it is noted."""
        return self.folder / f"{institution}.safetensors"

    def note(self, institution: int, part: Part) -> None:
        """From now on this update counts as made."""
        fresh = self._note(institution).with_suffix(".new")
        fresh.write_text(json.dumps({**asdict(part), "digest": part.digest.hex()}))
        fresh.replace(self._note(institution))

    def read(self, institution: int) -> Part | None:
        """What was noted; None: nothing, or nothing that can be read."""
        try:
            document = json.loads(self._note(institution).read_text())
            return Part(**{**document, "digest": bytes.fromhex(document["digest"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def clear(self) -> None:
        """Forget the round."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, institution: int) -> Path:
        return self.folder / f"{institution}.json"


def make_part(prepared: Prepared, institution: Institution, number: int, base: Path, parts: Parts) -> Part:
    """Train the institution's sites for a round and put its update among the parts.

    Raises:
        ConfigError: training diverged at a site; names it.
    """
    torch.set_num_threads(1)
    parts.folder.mkdir(parents=True, exist_ok=True)
    scratch = parts.folder / f"at-{institution.number}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    made = [_train(prepared, peer, number, base, scratch) for peer in prepared.present(institution, number)]
    weights = [weight for _, weight, _ in made]
    samples = sum(samples for *_, samples in made)
    path = made[0][0] if len(made) == 1 else _mean([path for path, *_ in made], weights, prepared.policy, base, scratch)
    try:
        check_update(base, path, prepared.policy)
    except ValueError as error:
        raise ConfigError(f"round {number}: no merge takes the update of {institution.name}: {error}") from error
    weight = min(sum(weights), prepared.policy.weight_max) if prepared.policy.weights == "samples" else 1
    digest = digest_of(path.read_bytes())
    path.replace(parts.path(institution.number))
    shutil.rmtree(scratch)
    part = Part(digest, weight, len(made), samples)
    parts.note(institution.number, part)
    return part


def _train(prepared: Prepared, peer: Peer, number: int, base: Path, scratch: Path) -> tuple[Path, int, int]:
    """The site's update, its weight in a mean, and how many rows it saw."""
    try:
        path, weight = arms.update(
            prepared.study, peer, prepared.request.seed, number, base, scratch / f"{peer.number}"
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"round {number}, site {peer.name}: {error}") from error
    batches = prepared.study.batches(peer)
    return path, weight, samples_of(len(peer.y), prepared.recipe.BATCH, batches)


def samples_of(rows: int, batch: int, batches: int) -> int:
    """How many rows so many batches have, where each pass may end with a smaller one."""
    each = -(-rows // batch)
    passes, rest = divmod(batches, each)
    return passes * rows + min(rest * batch, rows)


def _mean(paths: Sequence[Path], weights: Sequence[int], policy: Policy, base: Path, scratch: Path) -> Path:
    """The sites' mean as an update: merged into zeros in place of the checkpoint."""
    zeros, mean = scratch / "zeros", scratch / "mean"
    schema = Checkpoint(base).schema
    write_file(zeros, schema, {tensor.name: bytes(tensor.size_bytes) for tensor in schema.tensors})
    plain = replace(
        policy, merge="mean", server="none", weight_ratio_max=2.0**39, faults=0, bound=Policy.bound,
        radius=Policy.radius, iterations=Policy.iterations,
    )  # fmt: skip
    merge_files(zeros, paths, weights, plain, mean, threads=1)
    return mean
