"""An answer of ten thousand tokens, and the page stays smooth."""

from __future__ import annotations

import statistics
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
PIECES = 4
FRAME_S = 1 / 60
FRAMES = """() => {
    window.frames_ms = [];
    let last = performance.now();
    const frame = now => {
        window.frames_ms.push(now - last);
        last = now;
        requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}"""
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


class MainThread:
    """What the page's main thread did between `start` and `stop`."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._session = page.context.new_cdp_session(page)
        self._events: list[dict[str, Any]] = []
        self._complete = False
        self._session.on("Tracing.dataCollected", lambda data: self._events.extend(data["value"]))
        self._session.on("Tracing.tracingComplete", self._end)

    def _end(self, _: Any) -> None:
        self._complete = True

    def start(self) -> None:
        self._session.send("Tracing.start", {"categories": "cc,devtools.timeline"})

    def stop(self) -> list[float]:
        """Processor seconds of each frame: scripts, styles, layout and paint together."""
        self._session.send("Tracing.end")
        while not self._complete:
            self._page.wait_for_timeout(50)
        return [
            event["tdur"] / 1e6
            for event in self._events
            if event["name"] == "ProxyMain::BeginMainFrame" and "tdur" in event
        ]


def test_a_long_answer_is_drawn_in_little_time(visit: Callable[..., Any], talker: Any):
    def script(prompt: str) -> list[Say | Pause]:
        texts = (PART.format(number=number) for number in range(PARTS))
        pieces = (
            text[begin : begin + -(-len(text) // PIECES)]
            for text in texts
            for begin in range(0, len(text), -(-len(text) // PIECES))
        )
        return [step for piece in pieces for step in (Say(piece, at_once=True), Pause(0.008))]

    talker.says(script)
    one = visit(talker.url)
    page = one.open()
    page.evaluate(WATCH)
    page.evaluate(FRAMES)
    thread = MainThread(page)
    thread.start()
    one.ask("Go on")
    frames = page.evaluate("() => window.frames_ms")
    spent_s = thread.stop()
    # The last frames, of the whole answer: a third of a frame's time is left to the rest of the page. About
    # 5 ms are used, as at its beginning; 18 where each block is a part of its own.
    assert len(spent_s) > 40
    assert statistics.median(spent_s[-len(spent_s) // 4 :]) < FRAME_S * 2 / 3
    assert statistics.median(frames) < 1.2 * FRAME_S * 1e3
    assert page.evaluate("() => window.shifted") < 0.1
    expect(page.locator(".answer .code")).to_have_count(PARTS)
    assert f"part_{PARTS - 1}" in page.locator(".answer .markdown").text_content()
    page.wait_for_function(AT_THE_END)  # it followed all the time
    page.mouse.move(600, 400)
    page.mouse.wheel(0, -2000)
    page.wait_for_selector(".to-end")
    page.click(".to-end")
    page.wait_for_function(AT_THE_END)
