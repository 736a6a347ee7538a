"""A leak check's files, and the metric by which a submission states their digest on the ledger.

The report holds true records, so it is no object that other members could fetch. Metrics are numbers by name: the
digest is in the name, `swarm.leak_check.` and 64 hexadecimal digits, and the number is the records that were
recognised.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarm.config import LEAK_CHECK, LEAK_CHECK_RESULTS
from swarm.encoding import sha256
from swarm.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

METRICS_MAX_BYTES = 512
"""What the ledger keeps with a submission."""
RESULTS, REPORT = LEAK_CHECK_RESULTS.name, "report.html"
RESULTS_MAX_BYTES = 1 << 20


def write(folder: Path, results: Mapping[str, Any], page: str) -> str:
    """Write both files; the digest of results.json, which names that of the report.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(page)
        whole = {**results, "report_sha256": sha256(page.encode()).hex()}
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
        (folder / RESULTS).write_text(text)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    return sha256(text.encode()).hex()


def stated(site_folder: Path) -> dict[str, float]:
    """The metric that goes with a site's submission: empty where the site has no leak check.

    Raises:
        StorageError: there is one, and it cannot be read or is damaged.
    """
    path = site_folder / LEAK_CHECK_RESULTS
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            data = file.read(RESULTS_MAX_BYTES + 1)
        if len(data) > RESULTS_MAX_BYTES:
            raise ValueError(f"more than {RESULTS_MAX_BYTES} bytes")
        recognised = sum(int(one["recognised"]) for one in json.loads(data)["attacks"].values())
        report = sha256((path.parent / REPORT).read_bytes()).hex()
        if json.loads(data)["report_sha256"] != report:
            raise ValueError(f"{REPORT} beside it is another one")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path} is no leak check ({error}); run it again, or move it away") from error
    return {LEAK_CHECK + sha256(data).hex(): float(recognised)}


def with_leak_check(site_folder: Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """A submission's metrics with what the site states; without it, and a warning, where the ledger has no room.

    Raises:
        StorageError: the site's leak check cannot be read or is damaged.
    """
    whole = {**metrics, **stated(site_folder)}
    if len(json.dumps(whole, separators=(",", ":"))) <= METRICS_MAX_BYTES:
        return whole
    logger.warning("the leak check is not stated on the ledger: the round's metrics leave no room; name fewer")
    return dict(metrics)
