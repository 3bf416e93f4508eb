"""What is kept: by several tabs at once, from files, without a database, and while answers are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from rhizome_testing.talking_engine import Hang, Say

UNHEARD = "BroadcastChannel.prototype.postMessage = () => undefined;"
SLOW_DATABASE = """
const open = IDBFactory.prototype.open;
const answered = new Promise(resolve => { window.answerNow = resolve; });
IDBFactory.prototype.open = function (...names) {
    const real = open.apply(this, names);
    const shown = {get result() { return real.result; }};
    real.onupgradeneeded = () => shown.onupgradeneeded();
    real.onsuccess = () => answered.then(() => shown.onsuccess());
    return shown;
};"""
NO_DATABASE = "Object.defineProperty(window, 'indexedDB', {value: undefined});"
FULL_DATABASE = """
const put = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function (...values) {
    if (!window.hasRoom) throw new DOMException('full', 'QuotaExceededError');
    return put.apply(this, values);
};"""
COUNT_SEARCHED = """
window.searched = 0;
const lower = String.prototype.toLowerCase;
String.prototype.toLowerCase = function () {
    window.searched += this.length;
    return lower.apply(this);
};"""
STORED = """() => new Promise(resolve => {
    indexedDB.open('rhizome', 1).onsuccess = opened => {
        const all = opened.target.result.transaction('conversations').objectStore('conversations').getAll();
        all.onsuccess = () => {
            opened.target.result.close();
            resolve(all.result);
        };
    };
})"""
HAS_KEPT = f"""async text => (await ({STORED})()).some(
    ({{messages}}) => Object.values(messages).some(({{content, finish}}) => content === text && finish))"""
TALK = {"id": "talk", "title": "Talk", "created": 1, "updated": 1, "head": "a"}
FILE = ".list-foot input[type=file]"


@pytest.fixture
def echo(talker: Any) -> Any:
    """Answers with the number of the question that it was asked."""
    talker.says(lambda prompt: [Say(f"Answer to {prompt.rpartition('Question ')[2][:1]}")])
    return talker


def other_tab(one: Any, *, clock: bool = False) -> Any:
    """The same conversation in a tab of its own, if asked for with a clock that can be set."""
    page = one.page.context.new_page()
    if clock:
        page.clock.install()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: one.problems.append(str(error)))
    page.goto(one.url)
    page.click(".entry-open")
    return page


def ask(page: Any, text: str) -> None:
    page.fill(".composer textarea", text)
    page.press(".composer textarea", "Enter")


def wait_kept(page: Any, answer: str) -> None:
    page.wait_for_function(HAS_KEPT, arg=answer, polling=50)


def delete(page: Any) -> None:
    page.bring_to_front()  # a hidden tab has no frames, and the mouse waits for some
    page.once("dialog", lambda dialog: dialog.accept())
    page.hover(".entry")
    page.click(".entry [aria-label=Delete]")


def file_of(*conversations: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({"format": "rhizome.conversations.v1", "conversations": conversations})
    return {"name": "chats.json", "mimeType": "application/json", "buffer": text.encode()}


def message(name: str, parent: str | None, role: str, content: str) -> dict[str, Any]:
    return {"id": name, "parent": parent, "role": role, "content": content, "created": 1, "finish": "stop"}


def wait_cancelled(page: Any, talker: Any, count: int) -> None:
    for _ in range(200):
        if len(talker.engine.cancelled) >= count:
            return
        page.wait_for_timeout(50)
    raise AssertionError("the engine goes on")


def test_what_one_tab_asks_the_other_shows(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    page = one.open()
    one.ask("Question 1")
    other = other_tab(one)
    one.ask("Question 2")
    expect(other.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 2"])
    ask(other, "Question 3")
    expect(page.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 2", "Answer to 3"])
    delete(other)
    expect(page.locator(".entry")).to_have_count(0)
    expect(page.locator(".beginning")).to_be_visible()


def test_what_one_tab_writes_is_not_cut_in_the_other(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say("So"), Hang()])
    one = visit(talker.url)
    page = one.open()
    one.ask("Go on", wait=False)
    other = other_tab(one, clock=True)
    answer, ending = other.locator(".answer"), other.locator(".ending")
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(answer.locator(".markdown")).to_have_text("So")
    expect(ending).to_have_count(0)
    page.bring_to_front()
    page.click(".send.stop")
    expect(ending).to_have_text("Stopped.")
    expect(answer).to_have_attribute("aria-busy", "false")
    # A tab that is closed writes no more, and cannot say so.
    one.ask("Go on", wait=False)
    expect(answer.last).to_have_attribute("aria-busy", "true")
    page.close()
    other.bring_to_front()
    other.clock.fast_forward(10_000)
    expect(ending.last).to_have_text("The connection ended before the answer did.")


def test_tabs_that_know_nothing_of_each_other_lose_nothing(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    one.page.context.add_init_script(UNHEARD)
    page = one.open()
    one.ask("Question 1")
    other = other_tab(one)
    one.ask("Question 2")
    wait_kept(page, "Answer to 2")
    ask(other, "Question 3")
    expect(other.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 3"])
    wait_kept(other, "Answer to 3")
    other.reload()
    expect(other.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 3"])
    other.locator(".question").last.get_by_label("Previous version").click()
    expect(other.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 2"])
    # What is deleted in one does not come back by a question of the other.
    delete(page)
    page.wait_for_function(f"async () => (await ({STORED})()).length === 0", polling=50)
    ask(other, "Question 4")
    expect(other.locator(".entry")).to_have_count(0)
    assert other.evaluate(STORED) == []


def test_an_older_file_takes_nothing_away(visit: Callable[..., Any], echo: Any, tmp_path: Path):
    one = visit(echo.url)
    page = one.open()
    one.ask("Question 1")
    with page.expect_download() as download:
        page.click(".list-foot [aria-label='Export all']")
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    one.ask("Question 2")
    page.set_input_files(FILE, file)
    page.locator(".notice", has_text="Conversations taken in: 1.").wait_for()
    expect(page.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 2"])
    wait_kept(page, "Answer to 2")
    page.reload()
    expect(page.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 2"])


def test_a_file_may_hold_anything(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    page = one.open()
    circle = [
        message("a", "c", "user", "One"),
        message("b", "c", "user", "Two") | {"created": 2},
        message("c", "b", "assistant", "And?"),
    ]
    alone = {"d": message("d", "toString", "user", "Alone")}
    page.set_input_files(
        FILE,
        files=file_of(
            TALK | {"messages": {one["id"]: one for one in circle}},
            TALK | {"id": "odd", "title": "Odd", "head": "toString", "messages": alone},
            TALK | {"id": "lost", "title": "Lost", "head": "d", "messages": alone},
        ),
    )
    page.get_by_role("button", name="Talk").click()
    page.locator(".question").last.get_by_label("Next version").click()
    expect(page.locator(".bubble")).to_have_text(["Two", "One"])
    page.get_by_role("button", name="Odd").click()
    expect(page.locator(".beginning")).to_be_visible()
    page.get_by_role("button", name="Lost").click()
    expect(page.locator(".bubble")).to_have_text(["Alone"])


def test_figures_of_a_file_are_numbers_or_left_out(visit: Callable[..., Any], echo: Any):
    answer = message("b", "a", "assistant", "Alone") | {
        "figures": {
            "usage": {"prompt_tokens": "many"},
            "performance": {"queue_time_ms": 1},
            "totalMs": 119_700,
        }
    }
    one = visit(echo.url)
    page = one.open()
    talk = TALK | {"head": "b", "messages": {"a": message("a", None, "user", "Hi"), "b": answer}}
    page.set_input_files(FILE, file_of(talk))
    page.click(".entry-open")
    expect(page.locator(".answer .figure")).to_have_text(["2 min 0 s in all"])


def test_deleting_a_conversation_stops_its_answer(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say("So"), Hang()])
    cancelled = len(talker.engine.cancelled)
    one = visit(talker.url)
    page = one.open()
    one.ask("Go on", wait=False)
    expect(page.locator(".answer .markdown")).to_have_text("So")
    delete(page)
    wait_cancelled(page, talker, cancelled + 1)


def test_an_edited_question_stops_the_answer_to_what_it_was(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say("So"), Hang()])
    cancelled = len(talker.engine.cancelled)
    one = visit(talker.url)
    page = one.open()
    one.ask("Go on", wait=False)
    expect(page.locator(".answer .markdown")).to_have_text("So")
    page.hover(".question")
    page.click(".question [aria-label=Edit]")
    page.press(".edit-box textarea", "Control+Enter")
    wait_cancelled(page, talker, cancelled + 1)
    # On another branch there is still a button that stops what is written.
    page.click(".question [aria-label='Previous version']")
    expect(page.locator(".ending")).to_have_text("Stopped.")
    page.click(".send.stop")
    wait_cancelled(page, talker, cancelled + 2)


def test_a_question_waits_for_the_conversations(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    one.page.add_init_script(SLOW_DATABASE)
    one.page.goto(one.url)
    page = one.page
    page.locator("select option", has_text="talking-model").first.wait_for(state="attached")
    ask(page, "Question 1")
    expect(page.locator(".composer textarea")).to_have_value("Question 1")
    expect(page.locator(".send")).to_be_disabled()
    page.evaluate("() => window.answerNow()")
    page.click(".send")
    expect(page.locator(".answer .markdown")).to_have_text("Answer to 1")
    expect(page.locator(".entry")).to_have_count(1)


def test_a_browser_without_a_database_says_so(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    one.page.add_init_script(NO_DATABASE)
    page = one.open()
    expect(page.locator(".composer .notice")).to_contain_text("Not everything is kept")
    one.ask("Question 1")
    assert one.answers == ["Answer to 1"]


def test_a_full_database_says_so_until_there_is_room(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    one.page.add_init_script(FULL_DATABASE)
    page = one.open()
    expect(page.locator(".composer .notice")).to_have_count(0)
    one.ask("Question 1")
    expect(page.locator(".composer .notice")).to_contain_text("Not everything is kept")
    page.evaluate("() => { window.hasRoom = true; }")
    one.ask("Question 2")
    expect(page.locator(".composer .notice")).to_have_count(0)
    wait_kept(page, "Answer to 2")
    page.reload()
    expect(page.locator(".answer .markdown")).to_have_text(["Answer to 1", "Answer to 2"])


def test_an_empty_answer_is_not_sent_back(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Hang()] if "again" not in prompt else [Say("Here.")])
    one = visit(talker.url)
    page = one.open()
    sent: list[dict[str, Any]] = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if "/chat/" in request.url else None
    )
    one.ask("Hello?", wait=False)
    page.click(".send.stop")
    one.answered()
    one.ask("Hello again")
    assert sent[1]["messages"] == [
        {"role": "user", "content": "Hello?"},
        {"role": "user", "content": "Hello again"},
    ]


def test_a_search_reads_only_what_has_changed(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    one.page.add_init_script(COUNT_SEARCHED)
    page = one.open()
    many = [
        TALK | {"id": f"{number}", "messages": {"a": message("a", None, "user", "Question " * 2000)}}
        for number in range(40)
    ]
    page.set_input_files(FILE, files=file_of(*many))
    page.fill(".search input", "question")
    expect(page.locator(".entry")).to_have_count(40)
    assert page.evaluate("() => window.searched") > 40 * 18_000
    page.evaluate("() => { window.searched = 0; }")
    one.ask("Question 1")
    expect(page.locator(".entry")).to_have_count(41)
    assert page.evaluate("() => window.searched") < 18_000


def test_a_reload_keeps_the_draft_and_the_conversation(visit: Callable[..., Any], echo: Any):
    one = visit(echo.url)
    page = one.open()
    one.ask("Question 1")
    page.fill(".composer textarea", "Half a quest")
    wait_kept(page, "Answer to 1")
    page.reload()
    expect(page.locator(".answer .markdown")).to_have_text("Answer to 1")
    expect(page.locator(".composer textarea")).to_have_value("Half a quest")
    other = page.context.new_page()  # for this tab only
    other.goto(one.url)
    expect(other.locator(".beginning")).to_be_visible()
    expect(other.locator(".composer textarea")).to_have_value("")
