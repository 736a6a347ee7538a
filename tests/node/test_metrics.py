"""What a running node tells Prometheus, and a person who asks for the network."""

from __future__ import annotations

import urllib.error
import urllib.request
from io import StringIO
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from swarm.cli.status import in_bytes, view
from swarm.config import load_site
from tests.node.hospitals import Hospitals

NAMES = ["north", "east", "south", "west"]


def scraped(url: str) -> dict[str, dict[str, float]]:
    """Every sample by its name, then by its label."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})["/".join(sample.labels.values())] = sample.value
    return found


def test_a_node_that_takes_part_tells_what_it_does(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=3)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(90)
        rpc = load_site(hospitals.sites["north"]).rpc
        assert rpc is not None
        url = f"http://{rpc.host}:{rpc.port}"
        seen = scraped(url)
        assert seen["swarm_height"][""] > 3
        assert seen["swarm_caught_up"][""] in (0, 1)
        assert seen["swarm_tasks"][""] > 1
        assert seen["swarm_run_round"] == {"test": 3}
        others = set(NAMES) - {"north"}
        for name in ("sent_bytes_total", "received_bytes_total", "connections_total", "round_trip_seconds"):
            assert set(seen[f"swarm_peer_{name}"]) == others
            assert all(value > 0 for value in seen[f"swarm_peer_{name}"].values()), name
        assert seen["swarm_peer_connected"] == dict.fromkeys(others, 1)
        assert seen["process_open_fds"][""] > 3

        network = hospitals.ask("north", "swarm_network")
        console = Console(file=StringIO(), width=300)
        console.print(view({**hospitals.ask("north", "swarm_status"), "network": network}))
        assert isinstance(console.file, StringIO)
        text = console.file.getvalue()
        assert "round trip" in text
        assert all(in_bytes(one["sent_bytes"]) in text for one in network["members"])

        request = urllib.request.Request(f"{url}/metrics", headers={"origin": "https://page.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):  # a web page of a stranger
            urllib.request.urlopen(request, timeout=10)
        hospitals.stop()
