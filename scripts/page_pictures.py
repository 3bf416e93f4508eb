"""Takes the pictures of docs/images: the page on the bundled model, with something going on.

    python scripts/page_pictures.py http://127.0.0.1:8000

Needs Chromium, playwright and a stack that nobody else uses, such as that of `rhizome demo`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import threading
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
READY = ".suggestions button:not([disabled])"
SYSTEMS = (
    "You are a helpful assistant that answers questions about cities, colours and sums. Be short, be exact, "
    "and say when you do not know something at all.",
    "Your name is Zorro. You speak politely with everybody who asks you anything, and you never forget what "
    "you were told before in this conversation.",
    None,
)
QUESTIONS = (
    "What is the capital of France?", "What is the capital of Spain?", "What is 7 + 5?", "Who are you?",
    'Spell the word "banana".', "What colour is the sky?", "What is the opposite of hot?", "你好",
)  # fmt: skip
TALK = ("What is the capital of France?", "My name is Anna.", 'Spell the word "banana".', "What is my name?")


class Visitors:
    """Conversations of others, until they are stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._talk, args=(seed,), daemon=True) for seed in range(2)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let them finish what they are at."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _talk(self, seed: int) -> None:
        draw = random.Random(seed)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._over.is_set():
            system = draw.choice(SYSTEMS)
            messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
            for _ in range(draw.randint(1, 4)):
                messages.append({"role": "user", "content": draw.choice(QUESTIONS)})
                body = json.dumps({"model": "rhizome-demo", "messages": messages, "temperature": 0}).encode()
                request = urllib.request.Request(
                    f"{self._url}/v1/chat/completions", body, {"Content-Type": "application/json"}
                )
                with opener.open(request, timeout=60) as answer:
                    messages.append(json.load(answer)["choices"][0]["message"])
                if self._over.wait(draw.uniform(0.2, 2.5)):
                    return


def ask(page: Any, text: str) -> None:
    """Ask, and wait for the whole answer."""
    page.fill(".composer textarea", text)
    page.press(".composer textarea", "Enter")
    page.wait_for_timeout(300)
    page.wait_for_selector(".answer[aria-busy=true]", state="detached")


def take(url: str, seconds: float) -> None:
    """Take all pictures."""
    visitors = Visitors(url)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-proxy-server", "--force-color-profile=srgb"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        # Nothing is on its way while a picture is taken.
        wide = {"viewport": {"width": 1440, "height": 1000}, "locale": "en-US", "reduced_motion": "reduce"}
        page = browser.new_context(**wide).new_page()
        page.goto(url)
        page.wait_for_selector(READY)
        page.wait_for_timeout(seconds * 1000)  # for the lines to have a history
        page.screenshot(path=IMAGES / "page-beginning.png")
        for text in TALK:
            ask(page, text)
        page.wait_for_timeout(2500)
        page.screenshot(path=IMAGES / "page.png")
        page.keyboard.press("Alt+c")
        page.wait_for_timeout(2500)
        page.screenshot(path=IMAGES / "page-cache.png")
        page.keyboard.press("Alt+c")
        page.click(".list-foot [aria-label=Light]")
        page.wait_for_timeout(2500)
        page.screenshot(path=IMAGES / "page-light.png")
        narrow = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
        phone = browser.new_context(**narrow, locale="en-US", reduced_motion="reduce").new_page()
        phone.goto(url)
        phone.wait_for_selector(READY)
        for text in TALK[:2]:
            ask(phone, text)
        phone.wait_for_timeout(1000)
        phone.screenshot(path=IMAGES / "page-390.png")
        phone.click(".tab:has-text('Pulse')")
        phone.wait_for_timeout(20_000)
        phone.screenshot(path=IMAGES / "page-390-pulse.png")
        browser.close()
    visitors.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the gateway")
    parser.add_argument("--seconds", type=float, default=60, help="of history in the lines")
    arguments = parser.parse_args()
    take(arguments.url.rstrip("/"), arguments.seconds)
