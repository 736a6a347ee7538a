"""`/metrics` for Prometheus: beside the ledger's JSON-RPC, or alone where somebody else's nodes serve that."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from swarm.config import RpcConfig
from swarm.ledger.web_guard import Buckets, Guard, client_of, is_loopback


class MetricsPage:
    """The page. What it shows comes from outside: this floor knows no node."""

    def __init__(self, config: RpcConfig, buckets: Buckets, clock: Callable[[], float]) -> None:
        self.text: Callable[[], bytes] | None = None
        """Prometheus's text format; None: there is nothing to show."""
        self._config = config
        self._buckets = buckets
        self._clock = clock

    async def answer(self, request: Request) -> Response:
        """The text, for this machine or for everybody, as the site says."""
        client = client_of(request)
        if not (self._config.metrics or is_loopback(client)):
            return Response("metrics are for this machine: `metrics = true` in [rpc] shows them to others\n", 403)
        if self.text is None:
            raise HTTPException(404)
        if refused := self._buckets.refused(client, self._clock()):
            return refused
        begun_s = self._clock()
        text = self.text()
        now_s = self._clock()
        self._buckets.spend_time(client, now_s - begun_s, now_s)
        return Response(text, media_type="text/plain; version=0.0.4")


class MetricsAlone:
    """An app with that page and nothing else, behind the same guard."""

    def __init__(self, config: RpcConfig, *, clock: Callable[[], float]) -> None:
        self.config = config
        self.metrics = MetricsPage(config, Buckets(config.requests_s), clock)
        routes = [Route("/metrics", self.metrics.answer, methods=["GET"])]
        self.app: ASGIApp = Guard(Starlette(routes=routes, exception_handlers={HTTPException: _elsewhere}), config)

    @property
    def shows(self) -> str:
        """What whoever reaches it reads."""
        return "this node's metrics" if self.config.metrics else ""

    def notify(self) -> None:
        """A block changes nothing here: whoever asks gets what holds then."""


def _elsewhere(request: Request, error: Exception) -> Response:
    told = "this node shows /metrics; JSON-RPC is served by the nodes of the chain itself (`swarm status` names one)\n"
    return Response(told, error.status_code if isinstance(error, HTTPException) else 500)
