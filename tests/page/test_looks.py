"""By keyboard, on a phone, with a screen reader, in two languages, and there at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from rhizome_testing.talking_engine import Hang, Say

AXE = Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
ANSWER = (
    "# Title\n\nText with `code`, a [link](https://example.com) and\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    "```python\nprint('a rather long line of code that does not fit on a phone', 1234567890)\n```\n\n$x^2$"
)
FOCUSED = """() => {
    const {activeElement} = document;
    return activeElement.getAttribute('aria-label') ?? activeElement.textContent;
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_everything_is_reached_by_keyboard(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say("Answer.")])
    one = visit(talker.url)
    page = one.open()
    page.keyboard.type("Question")  # the composer has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .markdown")
    one.answered()
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(FOCUSED))
    assert {
        "Search",
        "Rename",
        "Delete",
        "Export all",
        "Settings",
        "Model",
        "Edit",
        "Copy",
        "Another answer",
        "Ask something",
        "Pulse",
    } <= reached
    page.focus(".answer [aria-label='Another answer']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .branches")
    page.keyboard.press("Alt+Comma")
    page.wait_for_function("() => document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    page.keyboard.press("Alt+n")
    page.wait_for_selector(".beginning")


def test_the_focus_is_never_lost(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say("Answer.")])
    one = visit(talker.url)
    page = one.open()
    one.ask("Question")
    composer = page.get_by_label("Ask something")
    page.get_by_label("Another answer").press("Enter")
    expect(page.locator(".answer .branches")).to_be_visible()
    expect(composer).to_be_focused()
    one.answered()
    page.locator(".question").get_by_label("Edit").press("Enter")
    expect(page.get_by_role("textbox", name="Edit")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".question").get_by_label("Edit")).to_be_focused()
    talker.says(lambda prompt: [Say("It begins"), Hang()])
    one.ask("Go on", wait=False)
    page.locator(".send.stop").press("Enter")
    one.answered()
    expect(composer).to_be_focused()
    page.focus(".entry-open")
    page.locator(".entry").get_by_label("Rename").press("Enter")
    page.keyboard.type("Something else")
    page.keyboard.press("Escape")
    expect(page.locator(".entry-open")).to_be_focused()
    expect(page.locator(".entry")).to_have_text(["Question"])


def test_a_renaming_that_ends_before_a_frame_is_drawn_gives_the_focus_back(
    visit: Callable[..., Any], talker: Any
):
    talker.says(lambda prompt: [Say("Answer.")])
    one = visit(talker.url)
    page = one.open()
    one.ask("Question")
    page.evaluate(
        """async () => {
            document.querySelector(".entry [aria-label=Rename]").click();
            for (let turns = 0; turns < 9; turns++) await null;
            const keys = {key: "Escape", bubbles: true};
            document.querySelector(".title-input").dispatchEvent(new KeyboardEvent("keydown", keys));
        }"""
    )
    expect(page.locator(".entry-open")).to_be_focused()


def test_what_is_typed_of_a_name_is_not_selected_when_the_list_is_drawn_again(
    visit: Callable[..., Any], talker: Any
):
    talker.says(lambda prompt: [Say("It begins"), Hang()])
    one = visit(talker.url)
    page = one.open()
    one.ask("Question", wait=False)
    expect(page.locator(".answer .markdown")).to_have_text("It begins")
    page.focus(".entry-open")
    page.locator(".entry").get_by_label("Rename").press("Enter")
    page.keyboard.type("Some")
    page.evaluate("document.querySelector('.send.stop').click()")
    one.answered()
    page.keyboard.type("thing")
    page.keyboard.press("Enter")
    expect(page.locator(".entry")).to_have_text(["Something"])


def test_escape_stops_the_answer_that_is_shown_and_nothing_from_a_field(
    visit: Callable[..., Any], talker: Any
):
    talker.says(lambda prompt: [Say("It begins"), Hang()])
    one = visit(talker.url)
    page = one.open()
    one.ask("First", wait=False)
    page.keyboard.press("Alt+n")
    one.ask("Second", wait=False)
    page.locator(".question").get_by_label("Edit").press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator(".edit-box")).to_have_count(0)
    expect(page.locator(".answer[aria-busy=true]")).to_have_count(1)
    said = page.locator(".chat > [role=status]")
    expect(said).to_have_text("An answer is being written.")
    page.focus(".composer textarea")
    page.keyboard.press("Escape")
    one.answered()
    expect(said).to_have_text("The answer is finished.")
    page.click(".entry-open >> text=First")
    expect(page.locator(".answer[aria-busy=true]")).to_have_count(1)
    expect(said).to_have_text("An answer is being written.")
    page.keyboard.press("Escape")
    one.answered()


def test_alt_writes_letters_on_a_mac(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    one.page.add_init_script("Object.defineProperty(navigator, 'platform', {value: 'MacIntel'})")
    page = one.open()
    page.focus(".composer textarea")
    page.keyboard.press("Alt+c")
    expect(page.locator(".composer")).to_be_visible()
    page.focus(".send, .new")
    page.keyboard.press("Alt+c")
    expect(page.locator(".radix")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_the_end_of_an_answer_moves_nothing(visit: Callable[..., Any], talker: Any, width: int):
    talker.says(lambda prompt: [Say("All that there is.", at_once=True), Hang()])
    one = visit(talker.url, viewport={"width": width, "height": 844})
    page = one.open()
    one.ask("Question", wait=False)
    expect(page.locator(".answer .markdown")).to_be_visible()
    foot = page.locator(".answer:last-child .foot")
    height = foot.bounding_box()["height"]
    page.keyboard.press("Escape")
    one.answered()
    assert foot.bounding_box()["height"] == height
    talker.says(lambda prompt: [Say("All that there is.")])
    one.ask("Question")
    expect(foot.locator("[data-figure=rate]")).to_be_visible()
    assert foot.bounding_box()["height"] == height


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing_serious(visit: Callable[..., Any], talker: Any, theme: str):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm install in the repository's root")
    talker.says(lambda prompt: [Say(ANSWER, at_once=True)])
    one = visit(talker.url, bypass_csp=True)  # for axe itself
    one.page.add_init_script(f"localStorage.setItem('rhizome.theme', JSON.stringify('{theme}'))")
    page = one.open()
    page.evaluate(AXE.read_text())
    found = [("beginning", page.evaluate("() => axe.run()"))]
    one.ask("Question")
    found.append(("answer", page.evaluate("() => axe.run()")))
    page.keyboard.press("Alt+c")
    found.append(("cache", page.evaluate("() => axe.run()")))
    page.keyboard.press("Alt+Comma")
    page.click(".settings details summary")
    found.append(("settings", page.evaluate("() => axe.run()")))
    serious = [
        (place, violation["id"], [node["html"][:120] for node in violation["nodes"][:3]])
        for place, result in found
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_a_phone_shows_one_part_at_a_time_and_nothing_sticks_out(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say(ANSWER, at_once=True)])
    one = visit(talker.url, **PHONE)
    page = one.open()
    one.ask(
        "A question that is so long that it needs several lines on a screen as narrow as this one is, really"
    )
    assert page.evaluate(OVERFLOW) == 0
    for tab, part in (
        ("Pulse", ".pulse"),
        ("Prefix cache", ".radix"),
        ("Conversations", ".list"),
        ("Chat", ".chat"),
    ):
        page.click(f".tab:has-text('{tab}')")
        expect(page.locator(part)).to_be_visible()
        assert page.evaluate(OVERFLOW) == 0


def test_the_page_speaks_chinese(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url, locale="zh-CN")
    page = one.open()
    page.wait_for_function("() => document.documentElement.lang === 'zh-Hans'")
    expect(page.get_by_placeholder("问点什么")).to_be_visible()
    page.click(".list-foot [aria-label=English]")
    expect(page.get_by_placeholder("Ask something")).to_be_visible()


def test_dark_is_dark_and_light_is_light(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    page = one.open()
    luminance = """() => {
        const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
        return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
    }"""
    page.wait_for_function(f"() => ({luminance})() < 0.1")
    page.click(".list-foot [aria-label=Light]")
    page.wait_for_function(f"() => ({luminance})() > 0.85")
    page.reload()
    page.wait_for_function(f"() => ({luminance})() > 0.85")


def test_a_question_in_the_address_is_not_sent(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    page = one.page
    page.goto(f"{one.url}?q=secret#q=secret")
    page.wait_for_selector(".suggestions button:not([disabled])")
    assert not [url for url in one.requests if "chat" in url]


def test_the_first_picture_comes_at_once(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    page = one.open()
    loaded_bytes = """() => performance.getEntriesByType('resource')
        .filter(entry => entry.name.includes('/assets/'))
        .reduce((sum, entry) => sum + entry.transferSize, 0)"""
    assert 0 < page.evaluate(loaded_bytes) < 120_000
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 2500  # of a shared, busy machine; a quiet one takes about 150 ms
