"""The stack's pulse: figures that move, a light that tells, and an engine that is killed under an answer."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from rhizome_testing.running_stack import RunningStack

LONG = "Count from 1 to 50."


def test_the_gateway_is_asked_every_two_seconds_and_not_while_hidden(
    visit: Callable[..., Any], stack: RunningStack
):
    one = visit(stack.url)
    page = one.page
    asked: list[float] = []
    page.on(
        "request", lambda request: asked.append(time.monotonic()) if "/v1/metrics" in request.url else None
    )
    one.open()
    page.wait_for_timeout(4800)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(asked) == 3
    assert all(gap > 1.6 for gap in gaps)
    page.evaluate("""() => {
        Object.defineProperty(document, 'hidden', {value: true, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }""")
    page.wait_for_timeout(300)
    before = len(asked)
    page.wait_for_timeout(2500)
    assert len(asked) == before


def test_figures_change_with_what_the_stack_does(visit: Callable[..., Any], stack: RunningStack):
    one = visit(stack.url)
    page = one.open()
    page.wait_for_selector(".pulse .light-connected")
    one.ask("What is the capital of Italy?")
    one.ask("What is the capital of Spain?")
    rate = (
        "() => parseFloat(document.querySelector('.tile[data-figure=tokenRate] .tile-value').textContent) > 0"
    )
    page.wait_for_function(rate)
    page.wait_for_function(
        "() => /ms/.test(document.querySelector('.tile[data-figure=ttft] .tile-value').textContent)"
    )
    expect(page.locator(".engine-ready")).to_have_count(2)
    page.wait_for_selector(".radix-preview .node")
    page.wait_for_function(
        "() => parseInt(document.querySelector('.cache-sums b').textContent.replace(',', '')) > 0"
    )


def test_the_cache_is_drawn_and_can_be_walked(visit: Callable[..., Any], stack: RunningStack):
    one = visit(stack.url)
    page = one.open()
    one.ask("What is the opposite of hot?")
    one.ask("What is the opposite of big?")
    page.keyboard.press("Alt+c")
    page.wait_for_selector(".tree .node.fresh")
    node = page.locator(".tree .node").first
    node.focus()
    page.keyboard.press("Enter")
    # How often the first node was used depends on which engines the questions of this file went to.
    expect(page.locator(".chosen-node p")).to_have_text(
        re.compile(r"^[\d,]+ tokens? · (1 use|\d+\+? uses) · .+ · Σ [\d,]+$")
    )
    page.keyboard.press("Alt+c")
    expect(page.locator(".composer")).to_be_visible()


def test_stop_reaches_the_engine_of_the_stack(visit: Callable[..., Any], stack: RunningStack):
    aborted = "async () => (await (await fetch('/v1/metrics')).json()).engine.aborted_requests"
    one = visit(stack.url)
    page = one.open()
    before = page.evaluate(aborted)
    page.keyboard.press("Alt+Comma")
    page.click(".settings details summary")
    page.fill("#setting-min_tokens", "1500")
    page.keyboard.press("Escape")
    one.ask(LONG, wait=False)
    page.wait_for_function("() => (document.querySelector('.answer .markdown')?.innerText.length ?? 0) > 10")
    page.keyboard.press("Escape")
    one.answered()
    for _ in range(200):
        if page.evaluate(aborted) == before + 1:
            break
        page.wait_for_timeout(100)
    assert page.evaluate(aborted) == before + 1
    page.reload()
    page.click(".entry-open")
    expect(page.locator(".ending")).to_have_text("Stopped.")


def test_a_killed_engine_shows_and_its_answer_goes_on(visit: Callable[..., Any], stack: RunningStack):
    """Last of its file: the stack has one engine less for a while."""
    one = visit(stack.url)
    page = one.open()
    page.wait_for_selector(".engine-ready")
    page.keyboard.press("Alt+Comma")
    page.fill("#setting-temperature", "0")
    page.click(".settings details summary")
    page.fill("#setting-min_tokens", "1500")
    page.keyboard.press("Escape")
    one.ask(LONG, wait=False)
    page.wait_for_function("() => (document.querySelector('.answer .markdown')?.innerText.length ?? 0) > 40")
    running = """async () => {
        for (;;) {
            const {engines} = await (await fetch('/v1/rhizome/pulse')).json();
            const running = engines.map(engine => engine.running_requests ?? 0);
            if (Math.max(...running)) return running;
            await new Promise(resolve => setTimeout(resolve, 100));
        }
    }"""  # the last look may have been too early for it
    busy = page.evaluate(running)
    victim = stack.service(f"engine-{busy.index(max(busy))}")
    victim.kill()
    page.wait_for_selector(".event-down")
    page.wait_for_selector(".engine-down, .engine-ejected")
    page.wait_for_selector(".event-resumed")
    one.answered()
    expect(page.locator(".answer .failure")).to_have_count(0)
    assert int(page.locator(".answer [data-figure=output] b").inner_text().replace(",", "")) >= 1500
