"""What the panel and the cache say, told figures that a test has made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from rhizome_testing.talking_engine import Pause, Say

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
NOBODY: dict[str, Any] = dict.fromkeys(
    (
        "in_flight_requests",
        "total_requests",
        "failed_requests",
        "served_requests",
        "running_requests",
        "waiting_requests",
        "tokens_per_second",
        "kv_utilization_percent",
        "cached_percent",
        "hit_rate",
    )
)
LOAD = {"in_flight_requests": 2, "total_requests": 900, "served_requests": 3, "kv_utilization_percent": 4.0}


def engine(name: str, state: str, **figures: Any) -> dict[str, Any]:
    return {**NOBODY, "name": name, "address": "", "kind": "rhizome", "state": state, "reason": "", **figures}


def event(kind: str, requests: int = 0, reason: str = "") -> dict[str, Any]:
    told = {"at": 1_800_000_000, "engine": "engine-1", "kind": kind, "reason": reason}
    return {**told, "requests": requests}


PULSE: dict[str, Any] = {
    "engines": [
        engine("engine-0", "ready", **LOAD),
        engine("engine-1", "down", reason="connection refused " * 9, **LOAD),
    ],
    "events": [
        event("ready"),
        event("unreachable", reason="nobody answers " * 9),
        event("resumed", 2),
        event("resumed", 1),
    ],
    "trace_url": None,
    "admin": True,
    "cache_text": False,
    "history": {
        "at": [1_800_000_000, 1_800_000_300, 1_800_000_600],
        "waiting": [0, 0, 7],
        "running": [None, None, 5],
        "hit_percent": [50, 50, None],
        "first_token_p50_ms": [5, 10, 40],
        "first_token_p95_ms": [50, 60, 80],
    },
}


def node(name: int, parent: int | None, tokens: int, uses: int = 1) -> dict[str, Any]:
    told = {"id": name, "parent": parent, "tokens": tokens, "uses": uses}
    return {**told, "idle": 5, "locks": 0, "pinned": False}


def cache(*nodes: dict[str, Any], truncated: bool = False) -> dict[str, Any]:
    namespace = {"name": "", "cached_tokens": sum(one["tokens"] for one in nodes), "nodes": nodes}
    tree = {"engine": "engine-0", "page_size": 16, "pages_total": 9, "truncated": truncated}
    return {"trees": [{**tree, "namespaces": [namespace]}]}


FORKS = cache(
    node(1, None, 32, uses=255),
    node(2, 1, 16),
    node(3, 2, 16),
    node(4, 2, 16),
    node(5, 1, 1),
    node(6, None, 64),
    truncated=True,
)


def tells(page: Any, path: str, answer: dict[str, Any]) -> None:
    page.route(f"**/v1/rhizome/{path}*", lambda route: route.fulfill(json=answer))


def test_the_panel_says_what_is_true(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    tells(one.page, "pulse", PULSE)
    tells(one.page, "cache", FORKS)
    page = one.open()
    panel = page.locator(".pulse")
    expect(panel.locator(".light-partly")).to_have_text("1 of 2 engines")
    tile = "[data-figure={}] .tile-value"
    expect(panel.locator(tile.format("waiting"))).to_have_text("7")
    expect(panel.locator(tile.format("hitRate"))).to_have_text("–")  # nobody asked in the last minute
    expect(panel.locator("[data-figure=ttft] .tile-second")).to_have_text("p95 80 ms")
    spark = panel.locator("[data-figure=ttft] .spark svg")
    expect(spark).to_have_attribute("aria-label", "first token, gateway, last 10 minutes")
    spark.hover()  # its middle
    expect(panel.locator("[data-figure=ttft] .spark-value")).to_contain_text("10 ms · p95 60 ms")
    expect(panel.locator(".engine-ready small")).to_have_text("2 open · 3 served")
    expect(panel.locator(".event-resumed").first).to_contain_text("1 answer went on elsewhere")
    expect(panel.locator(".event-resumed").last).to_contain_text("2 answers went on elsewhere")
    expect(panel.locator(".event-unreachable")).to_contain_text("cannot be reached")
    assert panel.evaluate("panel => panel.scrollHeight - panel.clientHeight") <= 0  # one screen


def test_rings_say_what_nobody_can_tell(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)

    def without(route: Any) -> None:
        told = route.fetch().json()
        route.fulfill(json={**told, "gpu": None, "cpu": {**told["cpu"], "utilization_percent": None}})

    one.page.route("**/v1/metrics", without)
    page = one.open()
    expect(page.locator(".ring").first).to_have_attribute("aria-label", "CPU not known 2 cores")
    expect(page.locator(".ring").last).to_have_attribute("aria-label", "GPU none here")


def test_figures_of_a_gateway_that_is_gone_fade_and_go(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    page = one.open()
    running = page.locator("[data-figure=requestRate] .tile-value")
    memory = page.locator(".ring text").nth(1)
    expect(page.locator(".engine-ready")).to_have_count(1)
    expect(running).not_to_have_text("–")
    one.causes.append("net::ERR_FAILED")
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator(".pulse .light-unreachable")).to_be_visible()
    expect(page.locator(".pulse.stale")).to_have_count(1)
    expect(running).to_have_text("–", timeout=15_000)
    expect(memory).to_have_text("–")
    expect(page.locator(".engine-ready")).to_have_count(0)
    page.unroute_all()
    expect(page.locator(".engine-ready")).to_have_count(1)
    expect(memory).not_to_have_text("–")
    expect(page.locator(".pulse.stale")).to_have_count(0)


def test_a_gateway_that_writes_six_answers_is_not_called_unreachable(visit: Callable[..., Any], talker: Any):
    """They take all connections that a browser opens, so that it cannot be asked for figures."""
    talker.says(lambda prompt: [step for _ in range(200) for step in (Say("So "), Pause(0.1))])
    one = visit(talker.url)
    page = one.open()
    for _ in range(6):
        one.ask("Go on", wait=False)
        expect(page.locator(".answer .markdown")).to_be_visible()
        page.keyboard.press("Alt+n")
    page.wait_for_event("requestfailed", lambda request: request.url.endswith("/v1/metrics"))
    expect(page.locator(".pulse.stale")).to_be_visible()
    expect(page.locator(".pulse .light")).to_have_text("connected")


def test_without_a_key_nothing_is_called_empty(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    page = one.page
    refused = {"error": {"message": "no key", "code": "invalid_api_key"}}
    one.causes.append("401 (Unauthorized)")
    page.route("**/v1/**", lambda route: route.fulfill(status=401, json=refused))
    page.goto(one.url)
    expect(page.locator(".pulse .light-keyNeeded")).to_have_text("key needed")
    for place in (".radix-preview", ".pulse section:has(.nothing) >> nth=1"):
        expect(page.locator(place)).to_contain_text("Not shown without a key.")


def test_a_cache_that_nobody_sees_is_not_asked_for(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url, **PHONE)
    page = one.open()
    with page.expect_response("**/v1/metrics"):
        pass  # another round
    assert not [url for url in one.requests if "/cache" in url]
    with page.expect_request("**/v1/rhizome/cache"):
        page.click(".tab:has-text('Pulse')")
    with page.expect_request("**/v1/rhizome/cache"):
        page.click(".tab:has-text('Prefix cache')")


def test_a_tree_is_walked_with_arrows_and_is_one_stop(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    tells(one.page, "pulse", PULSE)
    tells(one.page, "cache", FORKS)
    page = one.open()
    page.keyboard.press("Alt+c")
    expect(page.locator(".tree .node")).to_have_count(6)
    stops = page.locator(".tree .node[tabindex='0']")
    expect(stops).to_have_count(1)
    stops.focus()
    focused = page.locator(".tree .node:focus")
    for key, reached in (
        ("ArrowRight", 2),
        ("ArrowRight", 3),
        ("ArrowDown", 4),
        ("ArrowLeft", 2),
        ("ArrowDown", 5),
        ("ArrowLeft", 1),
        ("ArrowDown", 6),
        ("Home", 1),
    ):
        page.keyboard.press(key)
        expect(focused).to_have_attribute("data-id", str(reached))
    expect(stops).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator(".chosen-node")).to_contain_text("255+ uses")
    expect(page.locator(".tree figcaption")).to_contain_text("145 tokens · 6 nodes (of those shown")
    expect(page.locator(".tree .node[data-id='2'] text.inner")).to_have_text("16")  # there is room
    expect(page.locator(".legend")).to_contain_text("neither in use nor pinned is evictable")


@pytest.mark.parametrize(
    ("language", "only", "legend"),
    [("en", "in host memory", "comes back by a copy"), ("zh-CN", "在主机内存中", "复制即可取回")],
)
def test_what_only_the_host_has_is_drawn_apart(
    visit: Callable[..., Any], talker: Any, language: str, only: str, legend: str
):
    one = visit(talker.url, locale=language)
    tells(one.page, "pulse", PULSE)
    trees = cache({**node(1, None, 32), "tier": "both"}, {**node(2, 1, 48), "tier": "host"}, node(3, 1, 16))
    tells(one.page, "cache", trees)
    page = one.open()
    page.keyboard.press("Alt+c")
    expect(page.locator(".tree .node")).to_have_count(3)
    assert legend not in page.locator(".legend").inner_text(), "there is no host tier"
    trees["trees"][0]["host_pages_total"] = 90
    expect(page.locator(".legend .key-host")).to_contain_text(legend)
    expect(page.locator(".tree .node.host")).to_have_attribute("data-id", "2")
    expect(page.locator(".tree .link.host")).to_have_count(1)
    assert page.locator(".tree .link.host").evaluate("one => getComputedStyle(one).strokeDasharray") != "none"
    page.locator(".tree .node.host .halo").click()
    expect(page.locator(".chosen-node")).to_contain_text(only)
    expect(page.locator(".tree figcaption")).to_contain_text("48")


def test_one_node_stays_small_and_texts_are_offered_where_they_can_be_told(
    visit: Callable[..., Any], talker: Any
):
    one = visit(talker.url)
    tells(one.page, "pulse", PULSE)
    tells(one.page, "cache", cache(node(1, None, 16)))
    page = one.open()
    drawing = page.locator(".radix-preview .roots:has(.node)")
    assert drawing.evaluate("drawing => drawing.getBoundingClientRect().width") < 100
    page.keyboard.press("Alt+c")
    expect(page.locator(".tree figcaption")).to_contain_text("1 node")
    expect(page.locator(".tree figcaption")).not_to_contain_text("nodes")
    expect(page.locator(".radix-head")).to_contain_text("without a proxy")
    expect(page.locator(".radix-head input")).to_have_count(0)
    page.unroute_all()
    tells(page, "pulse", {**PULSE, "cache_text": True})
    tells(page, "cache", cache(node(1, None, 16)))
    expect(page.locator(".radix-head input")).to_have_count(1)
    expect(page.locator(".radix-head")).not_to_contain_text("without a proxy")
