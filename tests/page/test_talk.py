"""What a model says beside its answer, and who may ask it: reasoning, tool calls, keys, traces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from rhizome_testing.talking_engine import Hang, Say

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
KEY = "sk-of-a-reader"


@pytest.fixture(scope="module")
def thinker(talker_with: Callable[..., Any]) -> Any:
    """A gateway that knows thinking and tool calls, and where traces are shown."""
    traces = ("--trace-url", "http://127.0.0.1:16686/trace/{trace_id}")
    return talker_with("--tool-parser", "hermes", "--reasoning-parser", "think", *traces)


@pytest.fixture(scope="module")
def guarded(talker_with: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A gateway with keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    sha256 = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nname = "reader"\nsha256 = "{sha256}"\n')
    keys.chmod(0o600)
    return talker_with("--keys-file", str(keys))


def test_reasoning_is_folded_and_apart_from_the_answer(visit: Callable[..., Any], thinker: Any):
    thinker.says(lambda prompt: [Say("<think>Two and two are four.</think>It is **four**.")])
    one = visit(thinker.url)
    page = one.open()
    one.ask("How much is 2 + 2?")
    expect(page.locator(".answer-body > .markdown")).to_have_text("It is four.")
    reasoning = page.locator(".answer .reasoning")
    expect(reasoning.locator(".markdown")).to_be_hidden()
    reasoning.locator("summary").press("Enter")
    expect(reasoning.locator(".markdown")).to_have_text("Two and two are four.")


def test_a_tool_call_is_shown_and_its_typed_result_goes_back(visit: Callable[..., Any], thinker: Any):
    thinker.says(lambda prompt: [Say("It is sunny." if "21 degrees" in prompt else CALL)])
    one = visit(thinker.url)
    page = one.open()
    sent: list[dict[str, Any]] = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if "/chat/" in request.url else None
    )
    page.keyboard.press("Alt+Comma")
    page.locator(".field", has=page.get_by_label("Tools")).get_by_role("button", name="Example").click()
    page.click(".settings details summary")
    page.fill("#setting-tool_choice", "get_weather")
    page.select_option("#setting-parallel_tool_calls", "false")
    page.keyboard.press("Escape")
    one.ask("How is the weather in Oslo?")
    call = page.locator(".answer .call")
    expect(call.locator("summary code")).to_have_text("get_weather")
    assert json.loads(call.locator("pre").inner_text()) == {"city": "Oslo"}
    page.get_by_label("Result of get_weather").fill('{"weather": "21 degrees"}')
    page.get_by_role("button", name="Send result").click()
    expect(page.locator(".answer-body > .markdown")).to_have_text("It is sunny.")
    one.answered()
    assert sent[0]["tools"][0]["function"]["name"] == "get_weather"
    assert sent[0]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert sent[0]["parallel_tool_calls"] is False
    asked, called, result = sent[1]["messages"]
    assert asked["role"] == "user"
    assert called["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert result == {
        "role": "tool",
        "tool_call_id": called["tool_calls"][0]["id"],
        "content": '{"weather": "21 degrees"}',
    }


def test_thoughts_are_as_low_as_six_lines_and_show_the_last(visit: Callable[..., Any], thinker: Any):
    thoughts = "\n\n".join(f"Thought {number}." for number in range(60))
    thinker.says(lambda prompt: [Say(f"<think>{thoughts}", at_once=True), Hang()])
    one = visit(thinker.url, viewport={"width": 390, "height": 844})
    page = one.open()
    one.ask("Think", wait=False)
    last = page.get_by_text("Thought 59.")
    expect(last).to_be_in_viewport()
    assert page.locator(".thoughts").bounding_box()["height"] < 150
    page.keyboard.press("Escape")
    one.answered()


def test_a_stopped_and_a_refused_answer_tell_their_time_and_trace(visit: Callable[..., Any], thinker: Any):
    thinker.says(lambda prompt: [Say("It begins", at_once=True), Hang()])
    one = visit(thinker.url)
    page = one.open()
    one.ask("Go on", wait=False)
    expect(page.locator(".answer .markdown")).to_be_visible()
    page.click(".send.stop")
    one.answered()
    for name in ("seen", "total"):
        expect(page.locator(f".answer [data-figure={name}]")).to_contain_text("s")
    expect(page.locator(".answer a.trace")).to_have_count(1)
    one.causes.append("400 (Bad Request)")
    one.ask("word " * 60_000)
    expect(page.locator(".answer .failure")).to_have_count(1)
    expect(page.locator(".answer a.trace")).to_have_count(2)
    expect(page.locator(".answer [data-figure=total]")).to_have_count(2)


def test_an_answer_links_to_its_trace(visit: Callable[..., Any], thinker: Any):
    thinker.says(lambda prompt: [Say("Hello.")])
    one = visit(thinker.url)
    page = one.open()
    with page.expect_response(lambda response: "/chat/" in response.url) as heard:
        one.ask("Hello")
    trace_id = heard.value.headers["x-trace-id"]
    assert len(trace_id) == 32
    link = page.locator(".answer a.trace")
    expect(link).to_have_attribute("href", f"http://127.0.0.1:16686/trace/{trace_id}")
    expect(link).to_have_text(trace_id[:8])
    # On a wide screen all of it stands on one line.
    first = page.locator(".answer .figure").first.bounding_box()
    last = link.bounding_box()
    assert first["y"] < last["y"] + last["height"] / 2 < first["y"] + first["height"]


def test_a_setting_that_cannot_be_used_is_named_and_so_is_a_missing_model(
    visit: Callable[..., Any], thinker: Any
):
    one = visit(thinker.url)
    page = one.page
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": []}))
    page.goto(one.url)
    page.fill(".composer textarea", "Hello?")
    page.keyboard.press("Enter")
    problem = page.locator(".composer .failure")
    expect(problem).to_contain_text("No model is served now")
    page.unroute("**/v1/models")
    page.reload()
    page.wait_for_selector(".suggestions button:not([disabled])")
    page.keyboard.press("Alt+Comma")
    page.get_by_label("JSON schema").fill("{")
    page.keyboard.press("Escape")
    page.fill(".composer textarea", "Hello?")
    page.keyboard.press("Enter")
    expect(problem).to_contain_text("JSON schema: ")
    assert not [url for url in one.requests if "/chat/" in url]


def test_the_page_asks_for_a_key_and_says_when_it_is_wrong(visit: Callable[..., Any], guarded: Any):
    guarded.says(lambda prompt: [Say("You may ask.")])
    one = visit(guarded.url)
    one.causes.append("401 (Unauthorized)")
    page = one.page
    page.goto(one.url)
    sheet = page.locator(".key-sheet")
    expect(sheet).to_be_visible()
    refused = sheet.get_by_role("alert")
    expect(refused).to_have_count(0)
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    for _ in range(2):  # it asked once; now it is the reader's turn
        with page.expect_response(lambda response: response.status == 401 and "metrics" in response.url):
            pass
    expect(sheet).to_be_hidden()
    expect(page.locator(".beginning")).to_contain_text("wants a key")
    page.fill(".composer textarea", "May I?")
    page.keyboard.press("Enter")
    expect(sheet).to_be_visible()
    sheet.get_by_placeholder("sk-…").fill("sk-of-somebody-else")
    sheet.get_by_role("button", name="Use key").click()
    expect(refused).to_have_text("The gateway did not take the key.")
    # Browsers cannot even send this one.
    sheet.get_by_placeholder("sk-…").fill("密钥")
    sheet.get_by_role("button", name="Use key").click()
    expect(page.locator(".pulse .light")).to_have_text("key needed")
    expect(refused).to_have_text("The gateway did not take the key.")
    sheet.get_by_placeholder("sk-…").fill(KEY)
    sheet.get_by_role("button", name="Use key").click()
    expect(sheet).to_be_hidden()
    expect(page.locator(".key-needed")).to_have_count(0)
    page.wait_for_selector(".suggestions button:not([disabled])")
    one.ask("May I?")
    assert one.answers == ["You may ask."]
    # It was kept for this tab, and nowhere else.
    assert page.evaluate("() => [sessionStorage['rhizome.key'], localStorage['rhizome.key']]") == [KEY, None]
    with page.expect_response(lambda response: "/v1/models" in response.url) as heard:
        page.reload()
    assert heard.value.ok
    page.wait_for_selector(".answer")
    expect(sheet).to_be_hidden()
