"""A real browser on the real page: of the whole stack, or of an engine that says what a test wants."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any

import pytest

from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.ports import free_port
from rhizome_testing.running_stack import RunningStack, demo_stack_settings, running_stack
from rhizome_testing.talking_engine import Script, TalkingEngine

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
READY = ".suggestions button:not([disabled])"


@pytest.fixture(scope="session")
def chromium() -> str:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    return CHROMIUM


@pytest.fixture(scope="module")  # while it is open, no test can be asynchronous
def browser(chromium: str) -> Iterator[Any]:
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-proxy-server", "--disable-gpu"]
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


class Visit:
    """One visitor's page, which fails its test if anything was wrong on it.

    Attributes:
        page: Playwright's.
        requests: addresses of all requests.
        problems: exceptions, and what the browser's console called an error.
        causes: words of problems that the test causes. They are heard at any time, also as the page closes.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.causes: list[str] = []
        page.set_default_timeout(30_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def open(self) -> Any:
        self.page.goto(self.url)
        self.page.wait_for_selector(READY)
        return self.page

    def ask(self, text: str, *, wait: bool = True) -> None:
        answers = self.page.locator(".answer").count()
        self.page.fill(".composer textarea", text)
        self.page.press(".composer textarea", "Enter")
        self.page.wait_for_function("n => document.querySelectorAll('.answer').length > n", arg=answers)
        if wait:
            self.answered()

    def answered(self) -> None:
        self.page.wait_for_selector(".answer[aria-busy=true]", state="detached")

    @property
    def unexpected(self) -> list[str]:
        return [told for told in self.problems if not any(words in told for words in self.causes)]

    @property
    def answers(self) -> list[str]:
        """What they say; not by their inner text, which is empty where no frame has shown it yet."""
        shown = self.page.locator(".answer .markdown")
        assert all(one.is_visible() for one in shown.all())
        return [text.strip() for text in shown.all_text_contents()]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    contexts: list[Any] = []
    visits: list[Visit] = []

    def begin(url: str, **options: Any) -> Visit:
        settings = {"viewport": {"width": 1440, "height": 900}, "locale": "en-US", "reduced_motion": "reduce"}
        context = browser.new_context(**(settings | options))
        contexts.append(context)
        visits.append(Visit(context.new_page(), f"{url}/"))
        return visits[-1]

    yield begin
    for context in contexts:
        context.close()
    assert [problem for one in visits for problem in one.unexpected] == []


@pytest.fixture(scope="session")
def stack(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    settings = demo_stack_settings(tmp_path_factory.mktemp("page"), port=free_port())
    with running_stack(settings) as running:
        yield running


class Talker:
    """A talking engine, and a gateway in front of it.

    Attributes:
        engine: set its `script` at any time.
        url: of the gateway.
    """

    def __init__(self, engine: TalkingEngine, url: str) -> None:
        self.engine = engine
        self.url = url

    def says(self, script: Script) -> None:
        self.engine.script = script


@contextmanager
def running_talker(log_dir: Any, *arguments: str) -> Iterator[Talker]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    scope = AsyncExitStack()
    try:
        engine = TalkingEngine(max_context_tokens=200_000)
        run(scope.enter_async_context(engine))
        with GatewayProcess(engine.target, log_dir, *arguments) as gateway:
            gateway.wait_ready()
            yield Talker(engine, gateway.url)
    finally:
        run(scope.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="session")
def talker(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    with running_talker(tmp_path_factory.mktemp("talker")) as running:
        yield running


@pytest.fixture(scope="module")
def talker_with(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Talker]]:
    """Begins a talker whose gateway has more arguments."""
    with ExitStack() as running:
        yield lambda *arguments: running.enter_context(
            running_talker(tmp_path_factory.mktemp("talker"), *arguments)
        )
