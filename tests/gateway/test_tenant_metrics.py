"""Numbers of tenants: a bounded number of them, and not for everybody to see."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.metrics.tenants import TENANT_PREFIX


def tenants(metrics: GatewayMetrics) -> dict[tuple[str, str], float]:
    """Values by name and tenant."""
    return {
        (sample.name.removeprefix(TENANT_PREFIX), sample.labels["tenant"]): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.startswith(TENANT_PREFIX)
    }


def ask(metrics: GatewayMetrics, tenant: str, tokens: int = 3) -> None:
    meter = metrics.generation("chat", "m", 0.0, tenant)
    choice = meter.choice()
    for index in range(tokens):
        choice.observe_tokens(1.0 + index, 1)
    meter.observe_prompts(10, 4)
    meter.close(9.0)


def test_each_tenant_is_counted() -> None:
    metrics = GatewayMetrics()
    ask(metrics, "research", 40)
    ask(metrics, "research", 2)
    ask(metrics, "sales")
    metrics.refused("rate_limit_exceeded", "sales")
    found = tenants(metrics)
    assert (found["requests_total", "research"], found["requests_total", "sales"]) == (2, 1)
    assert (found["generated_tokens_total", "research"], found["generated_tokens_total", "sales"]) == (42, 3)
    assert (found["prompt_tokens_total", "research"], found["cache_hit_tokens_total", "research"]) == (20, 8)
    assert (found["requests_refused_total", "research"], found["requests_refused_total", "sales"]) == (0, 1)


def test_beyond_the_bound_they_are_counted_together() -> None:
    metrics = GatewayMetrics(max_tenants=2)
    for tenant in ("a", "b", "c", "d", "a"):
        ask(metrics, tenant)
    found = tenants(metrics)
    assert {tenant for _, tenant in found} == {"a", "b", "other"}
    assert found["requests_total", "other"] == found["requests_total", "a"] == 2


def test_nobody_is_counted_where_that_was_switched_off() -> None:
    metrics = GatewayMetrics(max_tenants=0)
    ask(metrics, "a")
    metrics.refused("overloaded", "a")
    assert not tenants(metrics)


async def test_only_who_operates_the_server_reads_them(start_gateway, engine, tmp_path: Path) -> None:
    keys = {"alice": "sk-alice", "root": "sk-root"}
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
            f"admin = {str(name == 'root').lower()}\n"
            for name, key in keys.items()
        )
    )
    async with start_gateway(engine.target, keys_file=file) as gateway:
        pages = [
            (await gateway.http.get("/metrics", headers={"Authorization": f"Bearer {key}"})).text
            for key in keys.values()
        ]
    assert all("http_server_active_requests" in page for page in pages)
    assert [TENANT_PREFIX in page for page in pages] == [False, True]
