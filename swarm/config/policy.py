"""A run's policy: what its members agreed on, and which combinations can work."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from swarm.config.toml import MEMBERS_MAX, only, read, table_of
from swarm.errors import ConfigError

# Every merge that can be named, with the settings that it alone takes. Those of the second half bear false members.
MERGE_RULES: Mapping[str, tuple[str, ...]] = {
    "mean": (),
    "sum": (),
    "norm_bounded_mean": ("bound", "radius"),
    "centered_clipping": ("bound", "radius", "iterations"),
    "geometric_median": ("iterations",),
    "coordinate_median": (),
    "trimmed_mean": ("faults",),
    "multi_krum": ("faults",),
    "nearest_neighbor_mixing": ("faults",),
}
# The others look at whole updates before they merge one coordinate.
CHUNK_RULES = ("mean", "sum", "coordinate_median", "trimmed_mean")
WEIGHT_RULES = ("samples", "equal")
BOUND_RULES = ("median", "length")
# They rank updates or values, and one member is one voice.
EQUAL_ONLY = ("sum", "coordinate_median", "trimmed_mean", "multi_krum", "nearest_neighbor_mixing")
# What may act on the merged update, with the settings that it takes.
SERVER_RULES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "fedavgm": ("server_rate", "server_momentum"),
    "nesterov": ("server_rate", "server_momentum"),
    "fedadagrad": ("server_rate", "server_momentum", "server_floor"),
    "fedadam": ("server_rate", "server_momentum", "server_decay", "server_floor"),
    "fedyogi": ("server_rate", "server_momentum", "server_decay", "server_floor"),
}
ENCODINGS = ("float32", "bfloat16", "float16", "int8")
BEST_MODES = ("max", "min")
ALARM_ACTIONS = ("tell", "skip", "groups")
PRIVACY_UNITS = ("record", "patient")
EPSILON = "swarm.epsilon"
"""The metric in which a site declares what it has spent of its privacy budget, this submission included."""
PERSONAL_MAX = 64
# A policy has some 900 bytes; what a stranger calls one is not parsed beyond this.
POLICY_BYTES_MAX = 1 << 14


@dataclass(frozen=True)
class Policy:
    """What the members of a run agree on; its digest is on the ledger and its bytes are an object."""

    name: str
    rounds: int
    sync_interval: int
    """Local batches between two rounds."""
    merge: str = "norm_bounded_mean"
    weights: str = "samples"
    range: float = 8.0
    """Every coordinate of an update is clipped to ±range before it is merged (for `sum`: refused)."""
    blind: bool = False
    """Updates and weights leave a site masked, and nobody learns more than their sum."""
    encoding: str = "float32"
    """How updates travel: as the model has them (`float32`), or every wider float as this. Checkpoints stay whole."""
    norm_max: float = 0.0
    """In a blind run: each member cuts its own update to this length; a longer mean is not merged. 0: no bound."""
    weight_max: int = 1_000_000
    """The ledger refuses a submission of more samples."""
    weight_ratio_max: float = 1.0
    """No member counts for more than this many times the round's median weight."""
    submissions_min: int = 2
    submit_s: float = 30.0
    merge_s: float = 5.0
    attest_s: float = 5.0
    verify_all_members: int = 7
    """Where no more submitted than this, everybody merges everything again."""
    verify_all_bytes: int = 64 << 20
    """Where the checkpoint is no larger than this, too. Beyond both, each merges the parts it was assigned."""
    step_bits: int = 32
    """An update's fixed point has the step 2**-step_bits."""
    faults: int = 0
    """How many members `trimmed_mean`, `multi_krum` and `nearest_neighbor_mixing` bear, whatever they send."""
    bound: str = "median"
    """What `radius` counts in: the median length of the round's updates, or 1 (`length`)."""
    radius: float = 1.0
    """How long an update may be (`norm_bounded_mean`), or how far one may pull at once (`centered_clipping`)."""
    iterations: int = 5
    """How often `centered_clipping` and `geometric_median` move their point."""
    server: str = "none"
    """What acts on the merged update: an optimizer whose state is part of the checkpoint."""
    server_rate: float = 1.0
    """The optimizer's learning rate."""
    server_momentum: float = 0.9
    """How much of the last step stays in the next one."""
    server_decay: float = 0.99
    """How much of the last mean square stays in the next one (`fedadam`, `fedyogi`)."""
    server_floor: float = 0.001
    """What is added to the root of the mean square: how adaptive the adaptive ones are."""
    alarm_metric: str = ""
    """Of the metrics that members submit, one whose fall raises an alarm; greater is better. None if empty."""
    alarm_fall: float = 0.05
    """By how much it has to fall at half of the members, from one round to the next."""
    alarm_action: str = "tell"
    """What the run does then: `tell` people; `skip` back to the checkpoint before the fall; or skip back, and merge the
    round after it in `groups`."""
    personal: tuple[str, ...] = ()
    """Patterns, as in a shell, of the tensors that stay at each site: `["bn*", "head.*"]`."""
    proximal: float = 0.0
    """FedProx: how strongly a step pulls back to the round's checkpoint (mu); 0 does not."""
    scaffold: bool = False
    """SCAFFOLD: control variates take the sites' drift out of their steps, and travel with the parameters."""
    sync_interval_max: int = 0
    """How far the sync interval may grow while the loss falls; 0: it stays what it is."""
    sync_growth: float = 1.5
    """By what factor it grows, and shrinks when the loss rises."""
    work_s: float = 0.0
    """How long a site trains in a round at most: then it submits what it has; 0: until the interval."""
    best_metric: str = ""
    """Of the metrics that members submit, the one that names the best checkpoint. None if empty."""
    best_mode: str = "max"
    """Whether the greatest or the least value is the best one."""
    patience: int = 0
    """The run is over after so many checkpoints that are no better; 0: after its rounds."""
    min_delta: float = 0.0
    """How much better a checkpoint has to be to count for `patience`."""
    epsilon: float = 0.0
    """Differential privacy: what each site may spend in the whole run at most; 0: the run is not private."""
    delta: float = 0.0
    """With what chance the bound may fail; below one in as many records, or patients, as a site has."""
    clip: float = 0.0
    """How long a record's, or patient's, gradient may be: a longer one is cut to this length."""
    unit: str = "record"
    """Whom epsilon protects: one `record`, or one `patient` with all its records."""
    replace_batchnorm: bool = False
    """Each BatchNorm of the model is a GroupNorm in this run, from the first checkpoint on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "personal", tuple(self.personal))  # JSON and TOML have lists

    def stays(self, name: str) -> bool:
        """Whether a tensor of this name stays at each site."""
        return any(fnmatchcase(name, pattern) for pattern in self.personal)

    @property
    def corrects_steps(self) -> bool:
        """Whether every step of training is corrected between the backward pass and the optimizer."""
        return self.proximal > 0 or self.scaffold

    @property
    def encoded(self) -> bool:
        """Whether updates are smaller on the way than the model's tensors."""
        return self.encoding != "float32"

    @property
    def private(self) -> bool:
        """Whether sites train with differential privacy."""
        return self.epsilon > 0

    def allows(self, metrics: Mapping[str, float]) -> bool:
        """Whether a submission with these metrics is within the privacy budget: it has to declare what was spent."""
        return not self.private or 0 < metrics.get(EPSILON, math.inf) <= self.epsilon

    @property
    def acts_on_alarm(self) -> bool:
        """Whether a checkpoint with which the agreed metric fell is given up."""
        return self.alarm_action != "tell"

    @property
    def reads_metrics(self) -> bool:
        """Whether the run goes on by what the members told with their submissions."""
        return self.sync_interval_max > 0 or bool(self.best_metric)

    @property
    def by_chunks(self) -> bool:
        """Whether one chunk of the merge takes the same chunk of its inputs and nothing else."""
        return self.merge in CHUNK_RULES and self.server == "none" and not self.blind and not self.encoded

    def encode(self) -> bytes:
        """Canonical bytes: JSON, keys sorted, no spaces.

        `alarm_action` came later: a policy that leaves it out keeps the bytes, and the digest, that it always had.
        """
        document = asdict(self)
        if self.alarm_action == Policy.alarm_action:
            del document["alarm_action"]
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Policy:
        """The policy in canonical bytes.

        Raises:
            ConfigError: not a policy, or one that cannot work.
        """
        if len(data) > POLICY_BYTES_MAX:
            raise ConfigError(f"not a policy: {len(data)} bytes, at most {POLICY_BYTES_MAX} are read")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not a policy: {error}") from error
        policy = _policy(document, "policy")
        if policy.encode() != data:
            raise ConfigError("the policy is not in its canonical form")
        return policy


def load_policy(path: Path) -> Policy:
    """The policy in a TOML file with one table `[run]`."""
    document = read(path)
    only(document, {"run"}, path)
    return _policy(table_of(document, "run", path), str(path))


def _policy(document: object, where: str) -> Policy:
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: a policy is a table of settings")
    kinds = {field.name: field.type for field in fields(Policy)}
    unknown = sorted(set(document) - set(kinds))
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r} is no setting of a run; there are {', '.join(sorted(kinds))}")
    values: dict[str, Any] = {}
    for key, value in document.items():
        kind = kinds[key]
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind == "tuple[str, ...]":
            if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                raise ConfigError(f"{where}: {key} is a list of texts, found {value!r}")
        elif type(value).__name__ != kind:
            raise ConfigError(f"{where}: {key} is a {kind}, found {value!r}")
        values[key] = value
    missing = [field.name for field in fields(Policy) if field.default is MISSING and field.name not in values]
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing")
    policy = Policy(**values)
    _check_policy(policy, where)
    return policy


def _check_policy(policy: Policy, where: str) -> None:
    def need(holds: bool, key: str, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{where}: {key} = {getattr(policy, key)!r}, but it has to be {wanted}")

    need(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", policy.name) is not None, "name", "1 to 64 plain characters")
    need(1 <= policy.rounds <= 1_000_000, "rounds", "1 to 1000000")
    need(1 <= policy.sync_interval <= 1_000_000_000, "sync_interval", "1 to 1000000000 batches")
    need(policy.merge in MERGE_RULES, "merge", f"one of {', '.join(MERGE_RULES)}")
    need(policy.weights in WEIGHT_RULES, "weights", f"one of {', '.join(WEIGHT_RULES)}")
    need(policy.bound in BOUND_RULES, "bound", f"one of {', '.join(BOUND_RULES)}")
    need(policy.server in SERVER_RULES, "server", f"one of {', '.join(SERVER_RULES)}")
    need(
        policy.merge not in EQUAL_ONLY or policy.weights == "equal",
        "weights",
        f"'equal' where merge = {policy.merge!r}",
    )
    need(8 <= policy.step_bits <= 40, "step_bits", "8 to 40")
    need(0 < policy.range < 2**40, "range", "above 0 and below 2**40")
    steps = policy.range * 2**policy.step_bits
    need(1 <= steps < 2**51, "range", f"1 to 2**51 steps of 2**-{policy.step_bits}")
    need(1 <= policy.weight_max < 2**40, "weight_max", "1 to 2**40 samples")
    need(1 <= policy.weight_ratio_max < 2**40, "weight_ratio_max", "1 to 2**40")
    need(1 <= policy.submissions_min <= MEMBERS_MAX, "submissions_min", f"1 to {MEMBERS_MAX}")
    need(0 <= policy.verify_all_members <= MEMBERS_MAX, "verify_all_members", f"0 to {MEMBERS_MAX}")
    need(0 <= policy.verify_all_bytes < 2**48, "verify_all_bytes", "0 to 2**48 bytes")
    _check_blind(policy, need)
    _check_encoding(policy, need)
    _check_merge(policy, need)
    _check_server(policy, need)
    _check_alarm(policy, need)
    for key in ("submit_s", "merge_s", "attest_s"):
        need(0.1 <= getattr(policy, key) <= 30 * 86_400, key, "0.1 seconds to 30 days")
    _check_local(policy, need)
    _check_course(policy, need)
    _check_private(policy, need)
    weight_sum = MEMBERS_MAX * (policy.weight_max if policy.weights == "samples" else 1)
    if weight_sum * policy.range * 2**policy.step_bits >= 2**63:
        raise ConfigError(
            f"{where}: {MEMBERS_MAX} members x weight_max x range x 2**step_bits passes 2**63, so a sum could "
            "overflow; lower weight_max, range or step_bits"
        )


def _check_merge(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What one rule asks of its own settings; those of other rules stay as they are, or they would look obeyed."""
    taken = MERGE_RULES[policy.merge]
    for key in ("faults", "bound", "radius", "iterations"):
        if key not in taken:
            wanted = getattr(Policy, key)
            need(getattr(policy, key) == wanted, key, f"left out ({wanted}): merge = {policy.merge!r} takes no {key}")
    if "faults" in taken:
        bears = (policy.submissions_min - (3 if policy.merge == "multi_krum" else 1)) // 2
        need(policy.faults >= 1, "faults", f"1 or more where merge = {policy.merge!r}")
        need(
            policy.faults <= bears,
            "faults",
            f"at most {max(bears, 0)}: submissions_min = {policy.submissions_min} updates bear no more "
            f"where merge = {policy.merge!r}",
        )
    need(1 <= policy.iterations <= 100, "iterations", "1 to 100")
    need(2.0**-policy.step_bits <= policy.radius < 2**40, "radius", f"2**-{policy.step_bits} to 2**40")
    if policy.merge in ("norm_bounded_mean", "centered_clipping", "geometric_median", "nearest_neighbor_mixing"):
        need(
            policy.range * 2**policy.step_bits < 2**42,
            "range",
            f"below 2**42 steps of 2**-{policy.step_bits} where merge = {policy.merge!r}",
        )


def _check_blind(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """Masks cancel in a sum and in nothing else."""
    need(policy.norm_max == 0 or policy.blind, "norm_max", "left out (0) without blind = true")
    need(0 <= policy.norm_max < 2**40, "norm_max", "0 or more")
    if policy.blind:
        need(policy.merge == "mean", "merge", "'mean' where blind = true: only a sum can be taken of masked updates")
        need(policy.submissions_min >= 3, "submissions_min", "3 or more where blind = true: a sum of two hides nothing")
        need(not policy.scaffold, "scaffold", "left out where blind = true: control variates are not masked")


def _check_encoding(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What can travel as less than it is, so that what is lost comes later."""
    need(policy.encoding in ENCODINGS, "encoding", f"one of {', '.join(ENCODINGS)}")
    if policy.encoded:
        wanted = "left out ('float32')"
        need(not policy.blind, "encoding", f"{wanted} where blind = true: masked updates have an encoding of their own")
        need(policy.merge != "sum", "encoding", f"{wanted} where merge = 'sum': no later round brings what is lost")
        need(
            policy.encoding != "float16" or policy.range <= 65504,
            "range",
            "at most 65504 where encoding = 'float16', which holds no more",
        )
        for key in ("verify_all_members", "verify_all_bytes"):
            unset = getattr(Policy, key)
            need(
                getattr(policy, key) == unset,
                key,
                f"left out ({unset}) where encoding = {policy.encoding!r}: everybody merges everything again, because "
                "one chunk of the checkpoint comes from several of each update",
            )


def _check_server(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What the optimizer on the merged update asks of its settings."""
    taken = SERVER_RULES[policy.server]
    need(policy.server == "none" or policy.merge != "sum", "server", "'none' where merge = 'sum': no step is agreed on")
    for key in SERVER_RULES["fedadam"]:
        if key not in taken:
            wanted = getattr(Policy, key)
            need(getattr(policy, key) == wanted, key, f"left out ({wanted}): server = {policy.server!r} takes no {key}")
    need(0 < policy.server_rate <= 1000, "server_rate", "above 0, at most 1000")
    need(0 <= policy.server_momentum < 1, "server_momentum", "0 or more and below 1")
    need(0 <= policy.server_decay < 1, "server_decay", "0 or more and below 1")
    need(1e-12 <= policy.server_floor <= 1, "server_floor", "1e-12 to 1")


def _check_alarm(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    need(len(policy.alarm_metric.encode()) <= 64, "alarm_metric", "a metric's name, at most 64 bytes")
    need(0 < policy.alarm_fall < 2**40, "alarm_fall", "above 0")
    unset = policy.alarm_fall == Policy.alarm_fall
    need(unset or bool(policy.alarm_metric), "alarm_fall", f"left out ({Policy.alarm_fall}) without an alarm_metric")
    need(policy.alarm_action in ALARM_ACTIONS, "alarm_action", f"one of {', '.join(ALARM_ACTIONS)}")
    if not policy.acts_on_alarm:
        return
    need(bool(policy.alarm_metric), "alarm_action", "left out ('tell') without an alarm_metric")
    need(
        policy.alarm_action != "groups" or policy.blind, "alarm_action", "'tell' or 'skip' where updates are not blind"
    )
    need(policy.merge != "sum", "alarm_action", "left out ('tell') where merge = 'sum': no model is trained")
    need(not policy.scaffold, "alarm_action", "left out ('tell') where scaffold = true: sites keep control variates of "
         "rounds that would be given up")  # fmt: skip
    need(policy.rounds >= 2, "rounds", "2 or more where an alarm acts: the last round judges and merges nothing")


def _check_local(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What sites do between two rounds, beside their own loop."""
    model = policy.merge != "sum"
    need(not policy.personal or model, "personal", "left out where merge = 'sum': no model is trained")
    need(
        len(set(policy.personal)) == len(policy.personal) <= PERSONAL_MAX,
        "personal",
        f"{PERSONAL_MAX} patterns, each once",
    )
    for pattern in policy.personal:
        good = pattern.isprintable() and 1 <= len(pattern.encode()) <= 256 and pattern == pattern.strip()
        need(good, "personal", "patterns of 1 to 256 plain bytes")
        need(pattern.strip("*") != "", "personal", "patterns that leave something to share")
        need(not pattern.startswith("swarm."), "personal", "patterns of the model's names; swarm.* is the run's own")
    need(0 <= policy.proximal <= 1000, "proximal", "0 to 1000")
    need(policy.proximal == 0 or model, "proximal", "left out where merge = 'sum': no model is trained")
    if policy.scaffold:
        need(
            policy.merge == "mean",
            "merge",
            "'mean' where scaffold = true: a bounded or ranked update's control variate would be another update's",
        )
        need(
            policy.server == "none", "server", "'none' where scaffold = true: it would act on the control variates too"
        )
    need(policy.work_s == 0 or 0.1 <= policy.work_s <= 30 * 86_400, "work_s", "0, or 0.1 seconds to 30 days")
    need(
        policy.work_s < policy.submit_s,
        "work_s",
        f"less than submit_s = {policy.submit_s:g}: who trains longer comes after the round's deadline",
    )


def _check_course(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """How the run goes on by what its members tell."""
    grows = policy.sync_interval_max > 0
    need(
        not grows or policy.sync_interval < policy.sync_interval_max <= 1_000_000_000,
        "sync_interval_max",
        f"0, or more than sync_interval = {policy.sync_interval}",
    )
    need(not grows or policy.rounds > 2, "sync_interval_max", "0 in a run of so few rounds: nothing could grow")
    need(1 < policy.sync_growth <= 10, "sync_growth", "above 1, at most 10")
    unset = policy.sync_growth == Policy.sync_growth
    need(grows or unset, "sync_growth", f"left out ({Policy.sync_growth}) without a sync_interval_max")
    need(len(policy.best_metric.encode()) <= 64, "best_metric", "a metric's name, at most 64 bytes")
    need(policy.best_mode in BEST_MODES, "best_mode", f"one of {', '.join(BEST_MODES)}")
    need(bool(policy.best_metric) or policy.best_mode == "max", "best_mode", "left out without a best_metric")
    need(not policy.patience or bool(policy.best_metric), "patience", "left out without a best_metric")
    need(
        0 <= policy.patience < max(policy.rounds - 1, 1),
        "patience",
        f"0 to {max(policy.rounds - 2, 0)}: of {policy.rounds} rounds {policy.rounds - 1} checkpoints are judged",
    )
    need(0 <= policy.min_delta < 2**40, "min_delta", "0 or more")
    need(policy.min_delta == 0 or policy.patience > 0, "min_delta", "left out without patience")


def _check_private(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What differential privacy asks for, and what would tell of rows beside it."""
    for key in ("delta", "clip", "unit"):
        unset = getattr(Policy, key)
        need(policy.private or getattr(policy, key) == unset, key, f"left out ({unset}) without an epsilon")
    need(0 <= policy.epsilon <= 1000, "epsilon", "0 (not private) to 1000")
    need(policy.unit in PRIVACY_UNITS, "unit", f"one of {', '.join(PRIVACY_UNITS)}")
    if not policy.private:
        return
    need(policy.epsilon >= 0.05, "epsilon", "0 (not private), or 0.05 to 1000: less is within the accountant's error")
    need(1e-12 <= policy.delta <= 0.01, "delta", "1e-12 to 0.01 where a run is private")
    need(1e-6 <= policy.clip <= 1e6, "clip", "0.000001 to 1000000 where a run is private")
    need(policy.merge != "sum", "merge", "one that averages where a run is private: no model is trained for a sum")
    steps = policy.rounds * policy.sync_interval
    need(steps <= 10_000_000, "rounds", "such that rounds x sync_interval is at most 10000000 steps")
    for key in ("scaffold", "proximal", "sync_interval_max"):
        why = "the losses of its rows" if key == "sync_interval_max" else "gradients without noise"
        need(not getattr(policy, key), key, f"left out where a run is private: it works on {why}")
    need(policy.best_metric != "loss", "best_metric", "another one where a run is private: no loss is told")
    need(policy.alarm_metric != "loss", "alarm_metric", "another one where a run is private: no loss is told")
