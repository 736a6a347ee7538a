"""What a node can be watched by, as Prometheus reads it: members' traffic, strangers, blocks, runs, this process.

Names and units are Prometheus's own conventions: counters end in `_total`, units are bytes and seconds.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from swarm.node.node import Node
from swarm.rounds import Phase

_COUNTED = {
    "sent_bytes": ("swarm_peer_sent_bytes", "Bytes sent to a member."),
    "received_bytes": ("swarm_peer_received_bytes", "Bytes received of a member."),
    "connections": ("swarm_peer_connections", "Connections made with a member, by either side."),
    "lost": ("swarm_peer_connections_lost", "Connections with a member that ended without our wish."),
    "dials_failed": ("swarm_peer_dials_failed", "Dials of a member that came to nothing."),
    "requests": ("swarm_peer_requests", "Requests to a member."),
    "requests_failed": ("swarm_peer_requests_failed", "Requests to a member that it did not answer."),
    "dropped": ("swarm_peer_messages_dropped", "Messages to a member that gave way because its queue was full."),
    "pauses": ("swarm_peer_pauses", "Times that a member said more than its share and was not read from."),
}
_MEASURED = {
    "connected": ("swarm_peer_connected", "Whether a member can be reached now."),
    "sent_bytes_s": ("swarm_peer_sent_bytes_per_second", "Bytes a second sent to a member, over ten seconds."),
    "received_bytes_s": ("swarm_peer_received_bytes_per_second", "Bytes a second received, over ten seconds."),
    "round_trip_s": ("swarm_peer_round_trip_seconds", "Round trip of the last ping."),
}


class Metrics:
    """The measurements of one node; asked on its loop."""

    def __init__(self, node: Node) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Collector(node))

    def text(self) -> bytes:
        """All of them in Prometheus's text format 0.0.4, UTF-8."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        """One family after the other; called by the library at each scrape."""
        node = self._node
        yield InfoMetricFamily(
            "swarm_node", "Whose node this is.", {"name": node.name, "peer_id": node.identity.peer_id}
        )
        yield GaugeMetricFamily("swarm_tasks", "Tasks of this process's event loop.", len(asyncio.all_tasks()))
        yield GaugeMetricFamily("swarm_height", "Number of the last block.", node.chain.height)
        yield GaugeMetricFamily("swarm_caught_up", "Whether no later block is known of.", int(node.chain.caught_up))
        yield from _peers(node.network())
        refused = CounterMetricFamily(
            "swarm_refused_connections", "Connections sent away before a message, by what was wrong.", labels=["reason"]
        )
        for reason, count in node.transport.meter.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield from self._runs()

    def _runs(self) -> Iterable[Metric]:
        labels = ["run"]
        rounds = GaugeMetricFamily("swarm_run_round", "Closed rounds of a run.", labels=labels)
        views = GaugeMetricFamily("swarm_run_view", "Leaders that were replaced in this round.", labels=labels)
        phases = GaugeMetricFamily("swarm_run_phase", "1 for the phase that a round is in.", labels=["run", "phase"])
        for effort in self._node.participation.efforts.values():
            name, state = effort.run.name, effort.state
            rounds.add_metric([name], effort.run.round)
            if state is not None:
                views.add_metric([name], state.view)
                for phase in Phase:
                    phases.add_metric([name, phase.name.lower()], int(state.phase is phase))
        yield from (rounds, views, phases)


def _peers(members: list[dict[str, Any]]) -> Iterable[Metric]:
    for kinds, family in ((_COUNTED, CounterMetricFamily), (_MEASURED, GaugeMetricFamily)):
        for key, (name, meaning) in kinds.items():
            metric = family(name, meaning, labels=["member"])
            for member in members:
                if member[key] is not None:
                    metric.add_metric([member["name"]], float(member[key]))
            yield metric
