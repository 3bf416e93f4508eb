"""An answer of ten thousand tokens, and the page stays smooth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from rhizome_testing.talking_engine import Pause, Say

PART = """
## Part {number}

A paragraph with **strong words**, `code`, some *emphasis* and enough text that it needs more than one line.

- one thing that is said
- another thing that is said

```python
def part_{number}(value: int) -> int:
    return value * {number}  # as often as that
```
"""
PARTS = 160  # about 10,000 tokens of a usual tokenizer
AT_THE_END = """() => {
    const box = document.querySelector('.scroll');
    return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}"""
WATCH = """() => {
    window.shifted = 0;
    new PerformanceObserver(list => {
        // What stands below a growing text moves with it; nothing else may.
        for (const entry of list.getEntries())
            if (entry.sources.some(source => !source.node?.closest?.('.foot'))) window.shifted += entry.value;
    }).observe({type: 'layout-shift'});
}"""


def test_a_long_answer_is_drawn_in_little_time(visit: Callable[..., Any], talker: Any):
    def script(prompt: str) -> list[Say | Pause]:
        return [
            step
            for number in range(PARTS)
            for step in (Say(PART.format(number=number), at_once=True), Pause(0.02))
        ]

    talker.says(script)
    one = visit(talker.url)
    page = one.open()
    page.evaluate(WATCH)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def spent_s() -> float:
        metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["ScriptDuration"] + metrics["LayoutDuration"] + metrics["RecalcStyleDuration"])

    before = spent_s()
    one.ask("Go on")
    # 160 arrivals of 60 tokens each, and a frame is 16 ms; on a quiet machine this takes 4.
    assert (spent_s() - before) / PARTS < 0.025
    assert page.evaluate("() => window.shifted") < 0.1
    expect(page.locator(".answer .code")).to_have_count(PARTS)
    assert f"part_{PARTS - 1}" in page.locator(".answer .markdown").text_content()
    page.wait_for_function(AT_THE_END)  # it followed all the time
    page.mouse.move(600, 400)
    page.mouse.wheel(0, -2000)
    page.wait_for_selector(".to-end")
    page.click(".to-end")
    page.wait_for_function(AT_THE_END)
