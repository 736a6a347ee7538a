"""`/metrics` on its own, where the chain's own nodes serve JSON-RPC: who may read it, and how often."""

from __future__ import annotations

import httpx
import pytest

from swarm.config import RpcConfig
from swarm.ledger.web_metrics import MetricsAlone

HERE, ELSEWHERE = ("127.0.0.1", 5000), ("10.1.0.4", 5000)


def alone(*, metrics: bool = False, requests_s: int = 200) -> MetricsAlone:
    app = MetricsAlone(RpcConfig("127.0.0.1", 8545, metrics=metrics, requests_s=requests_s), clock=lambda: 0.0)
    app.metrics.text = lambda: b"swarm_height 7.0\n"
    return app


async def asked(
    app: MetricsAlone, client: tuple[str, int] = HERE, *, method: str = "GET", path: str = "/metrics", **headers: str
) -> httpx.Response:
    transport = httpx.ASGITransport(app.app, client=client)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as browser:
        return await browser.request(method, path, headers=headers)


async def test_this_machine_reads_it() -> None:
    answer = await asked(alone())
    assert (answer.status_code, answer.text) == (200, "swarm_height 7.0\n")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(("metrics", "status"), [(False, 403), (True, 200)])
async def test_others_read_it_where_the_site_says_so(metrics: bool, status: int) -> None:
    answer = await asked(alone(metrics=metrics), ELSEWHERE)
    assert answer.status_code == status
    assert ("metrics = true" in answer.text) == (status == 403)


async def test_a_web_page_of_a_stranger_reads_nothing() -> None:
    assert (await asked(alone(), origin="https://page.example")).status_code == 403
    assert (await asked(alone(), host="rebound.example")).status_code == 403


async def test_who_asks_too_often_waits() -> None:
    app = alone(requests_s=1)
    assert [(await asked(app)).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/", 404), ("GET", "/", 404), ("POST", "/metrics", 405)]
)
async def test_whoever_looks_for_json_rpc_is_told_where_it_is(method: str, path: str, status: int) -> None:
    answer = await asked(alone(), method=method, path=path)
    assert answer.status_code == status
    assert "JSON-RPC is served by the nodes of the chain itself" in answer.text


async def test_before_there_is_anything_to_show_nothing_is_shown() -> None:
    app = alone()
    app.metrics.text = None
    assert (await asked(app)).status_code == 404
