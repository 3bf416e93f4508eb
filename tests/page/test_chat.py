"""Chat on the real stack and the bundled model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from rhizome_testing.running_stack import RunningStack
from rhizome_testing.talking_engine import Pause, Say

WATCH = """() => {
    window.lengths = new Set();
    new MutationObserver(() => {
        const text = document.querySelector('.answer .markdown');
        if (text) window.lengths.add(text.innerText.length);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def figure(page: Any, name: str) -> str:
    return str(page.locator(f".answer:last-child [data-figure={name}] b").inner_text())


def test_an_answer_of_the_bundled_model_comes_with_what_it_cost(
    visit: Callable[..., Any], stack: RunningStack
):
    one = visit(stack.url)
    page = one.open()
    one.ask("What is the capital of France?")
    expect(one.page.locator(".answer .markdown")).to_have_text(["The capital of France is Paris."])
    assert figure(page, "ttft").endswith("ms")
    assert float(figure(page, "rate").replace(",", "")) > 0
    assert int(figure(page, "prompt")) > int(figure(page, "cached")) >= 0
    assert int(figure(page, "output")) >= 8
    bar = page.locator(".answer .time-bar").get_attribute("aria-label")
    assert all(part in bar for part in ("queue", "prefill", "decode"))
    for _ in range(4):  # the conversation so far is in the cache of the engine that is chosen, if not at once
        one.ask("What is the capital of France?")
        if int(figure(page, "cached")) >= 16:
            break
    else:
        raise AssertionError("nothing was ever found in the cache")


def test_text_grows_in_steps(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [step for word in range(20) for step in (Say(f"word{word} "), Pause(0.05))])
    one = visit(talker.url)
    page = one.open()
    page.evaluate(WATCH)
    one.ask("Count")
    lengths = sorted(page.evaluate("[...window.lengths]"))
    assert len([length for length in lengths if 0 < length < lengths[-1]]) >= 5
    assert one.answers[0].split() == [f"word{word}" for word in range(20)]


def test_stop_reaches_the_engine_and_keeps_what_was_said(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [step for _ in range(600) for step in (Say("more "), Pause(0.05))])
    one = visit(talker.url)
    page = one.open()
    cancelled = len(talker.engine.cancelled)
    one.ask("Go on", wait=False)
    page.wait_for_function("() => document.querySelector('.answer .markdown')?.innerText.length > 10")
    page.click(".send.stop")
    one.answered()
    assert one.answers[0].startswith("more more")
    expect(page.locator(".ending")).to_have_text("Stopped.")
    for _ in range(200):
        if len(talker.engine.cancelled) > cancelled:
            break
        page.wait_for_timeout(50)
    assert len(talker.engine.cancelled) == cancelled + 1


def test_another_answer_and_an_edited_question_are_branches(visit: Callable[..., Any], talker: Any):
    said = iter(["first", "second", "third"])
    talker.says(lambda prompt: [Say(next(said))])
    one = visit(talker.url)
    page = one.open()
    one.ask("Question")
    page.click(".answer [aria-label='Another answer']")
    page.wait_for_function("() => document.querySelector('.answer .markdown')?.innerText === 'second'")
    one.answered()
    expect(page.locator(".answer .branches")).to_contain_text("2/2")
    page.click(".answer [aria-label='Previous version']")
    expect(one.page.locator(".answer .markdown")).to_have_text(["first"])
    page.hover(".question")
    page.click(".question [aria-label=Edit]")
    page.fill(".edit-box textarea", "Another question")
    page.press(".edit-box textarea", "Control+Enter")
    page.wait_for_function("() => document.querySelector('.answer .markdown')?.innerText === 'third'")
    one.answered()
    expect(page.locator(".bubble")).to_have_text(["Another question"])
    page.click(".question [aria-label='Previous version']")
    expect(page.locator(".bubble")).to_have_text(["Question"])
    expect(one.page.locator(".answer .markdown")).to_have_text(["second"])  # the newest of its branches


def test_conversations_stay_and_travel(visit: Callable[..., Any], stack: RunningStack, tmp_path: Path):
    one = visit(stack.url)
    page = one.open()
    one.ask("What colour is the sky?")
    page.reload()
    page.click(".entry-open")
    expect(one.page.locator(".answer .markdown")).to_have_text(["The sky is blue."])
    page.hover(".entry")
    page.click(".entry [aria-label=Rename]")
    page.keyboard.type("About the sky")
    page.keyboard.press("Enter")
    page.fill(".search input", "blue")
    expect(page.locator(".entry")).to_have_text(["About the sky"])
    page.fill(".search input", "green")
    expect(page.locator(".entry")).to_have_count(0)
    page.fill(".search input", "")
    with page.expect_download() as download:
        page.click(".list-foot [aria-label='Export all']")
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["conversations"][0]["title"] == "About the sky"
    page.on("dialog", lambda dialog: dialog.accept())
    page.hover(".entry")
    page.click(".entry [aria-label=Delete]")
    page.wait_for_selector(".entry", state="detached")
    page.set_input_files(".list-foot input[type=file]", file)
    page.click(".entry-open")
    expect(one.page.locator(".answer .markdown")).to_have_text(["The sky is blue."])
    file.write_text('{"format": "something else"}')
    page.set_input_files(".list-foot input[type=file]", file)
    page.locator(".notice", has_text="This is no file of conversations.").wait_for()


def test_settings_reach_the_request(visit: Callable[..., Any], stack: RunningStack):
    one = visit(stack.url)
    page = one.open()
    sent: list[dict[str, Any]] = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if "/chat/" in request.url else None
    )
    page.keyboard.press("Alt+Comma")
    page.fill(".settings textarea >> nth=0", "Your name is Zorro.")
    page.fill("#setting-temperature", "0")
    page.click(".settings details summary")
    page.fill("#setting-seed", "7")
    page.fill("#setting-stop", "model")
    page.fill("#setting-logit_bias", "5: -3")
    page.keyboard.press("Escape")
    one.ask("Who are you?")
    expect(one.page.locator(".answer .markdown")).to_have_text(["I am Zorro, a small language"])
    fields = {name: sent[0][name] for name in ("temperature", "seed", "stop", "logit_bias")}
    assert fields == {"temperature": 0, "seed": 7, "stop": ["model"], "logit_bias": {"5": -3}}


def test_a_json_schema_is_kept_to(visit: Callable[..., Any], stack: RunningStack):
    one = visit(stack.url)
    page = one.open()
    page.keyboard.press("Alt+Comma")
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Rome", "Paris"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    area = page.get_by_label("JSON schema")
    area.fill("{")
    expect(page.locator(".settings .wrong")).to_have_count(1)
    area.fill(json.dumps(schema))
    page.keyboard.press("Escape")
    one.ask("What is the capital of France?")
    assert json.loads(one.answers[0])["capital"] in ("Rome", "Paris")


def test_errors_are_told_in_plain_words(visit: Callable[..., Any], stack: RunningStack):
    one = visit(stack.url)
    one.causes.append("400 (Bad Request)")
    one.open()
    one.ask("word " * 3000)
    expect(one.page.locator(".answer .failure")).to_contain_text("longer than the model's context")
