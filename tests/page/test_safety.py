"""What a model writes stays text, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from rhizome_testing.talking_engine import Say

HOSTILE = """
<script>window.owned = 1</script>
<img src=x onerror="window.owned = 2"> <svg onload="window.owned = 3"></svg>
<iframe srcdoc="<script>parent.owned = 4</script>"></iframe>
[link](javascript:window.owned=5) [link](JaVaScRiPt:window.owned=5) [link](&#106;avascript:window.owned=5)
[link](data:text/html,<script>parent.owned=6</script>) [link](vbscript:owned) [x](  javascript:window.owned=5)
![image](https://elsewhere.example/pixel.png) ![i](x" onerror="window.owned=7)
<https://elsewhere.example/" onmouseover="window.owned=8> <javascript:window.owned=9>
[a](https://elsewhere.example/"onmouseover="window.owned=10) **<b onclick=window.owned=11>b</b>**
`<script>window.owned = 12</script>`

```html"><script>window.owned=13</script>
<script>window.owned = 14</script>
```

| <img src=x onerror=window.owned=15> | b |
|---|---|
| <script>window.owned=16</script> | `</td><script>window.owned=17</script>` |

$$\\text{<img src=x onerror=window.owned=18>} \\href{javascript:window.owned=19}{x}$$
$\\style{background:url(https://elsewhere.example/x)}{x}$ $<script>window.owned=20</script>$

<style>@import "https://elsewhere.example/x.css"; body{display:none}</style>
<meta http-equiv="refresh" content="0;url=https://elsewhere.example/"> <base href="https://elsewhere.example/">
<form action="https://elsewhere.example"><button>send</button></form> <a href="javascript:owned">x</a>
"""
# Too deep, as deep as it may be, too wide, and names that every object of JavaScript has.
DEEP = (
    *(f"${name * 1600}x$" for name in (r"\sqrt", r"\hat", r"\frac", r"\left(", r"\color{red}", "{", "x_")),
    "$" + r"\left(" * 98 + "x" + r"\right)" * 98 + "$",
    *("$" + name * 48 + "x" + "}" * 48 + "$" for name in ("x^{", "\\sqrt{", "\\frac{a}{")),
    r"$\begin{constructor}x\end{constructor} \constructor \left\valueOf$",
    "```constructor\ncode\n```",
    "$\\begin{matrix}" + "&" * 4000 + "a \\\\" * 1000 + "\\end{matrix}$",
    "- " * 2000 + "item",
)
PATHOLOGICAL = (
    *("*" * 4000, "[" * 4000, "`" * 3999 + " ", "> " * 400, "_a" * 3000, "![[(" * 1500, "$" * 3999),
    *(
        "\n\n".join(DEEP),
        "$$a\n" * 4000,
        "|a" * 2000 + "\n" + "|-" * 2000 + "\n" + "|\n" * 2000,
        "word \n" * 8000,
    ),
)
# Each was read in two ways at every place, which takes the square of its length.
LONG = 25_000
LONG_LINES = (
    "```" + " " * LONG + "`",
    "~" * LONG + "`",
    "- " + " " * LONG + "\u2028",
    "a|b\n-" + " " * LONG + "x",
    "# " + "#" * LONG + " x",
    "` " + "x" * LONG + "`",
)
POISON = """() => {
    const {replace} = String.prototype;
    String.prototype.replace = function (...given) {
        if (this.startsWith('Poison')) throw new RangeError('Maximum call stack size exceeded');
        return replace.apply(this, given);
    };
}"""
LONGEST = """() => {
    window.longest = 0;
    new PerformanceObserver(list => {
        for (const {duration} of list.getEntries()) window.longest = Math.max(window.longest, duration);
    }).observe({type: 'longtask'});
}"""
MATHS = {
    r"\lVert x \rVert": "‖x‖",
    r"a \color{red} b + c": "ab+c",
    r"\textcolor{#0a0}{b} + c": "b+c",
    r"\xrightarrow[below]{above}": "→belowabove",
    r"\sum_{\substack{i<j \\ j<n}} a_i": "∑i<jj<nai",
    r"a \hspace{1em} b": "ab",
    r"\begin{array}{c|c} \hline a & b \\ \hline c & d \\ \hline \end{array}": "abcd",
    r"\begin{alignedat}{2} a &= b \end{alignedat}": "a=b",
    r"x'^2": "x′2",
    r"\phantom{a} \cancel{b}": "ab",
}


def test_hostile_text_is_inert(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say(HOSTILE, at_once=True)])
    one = visit(talker.url)
    page = one.open()
    one.ask(HOSTILE)
    page.hover(".answer .markdown")
    for link in page.locator(".answer .markdown a").all():
        assert link.get_attribute("href").startswith(("https://", "http://", "mailto:"))
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    elements = page.evaluate(
        "[...new Set([...document.querySelectorAll('.answer .markdown *')].map(e => e.localName))]"
    )
    assert not {"script", "img", "iframe", "style", "form", "object", "embed", "base", "meta"} & set(elements)
    attributes = page.evaluate(
        "[...document.querySelectorAll('.answer .markdown *')].flatMap(e => e.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on")]
    assert page.evaluate("window.owned") is None
    assert [url for url in one.requests if not url.startswith(talker.url)] == []
    assert "window.owned = 1" in one.answers[0]  # and it is there to be read


def test_long_runs_of_marks_take_no_time(visit: Callable[..., Any], talker: Any):
    one = visit(talker.url)
    page = one.open()
    for text in PATHOLOGICAL:
        talker.says(lambda prompt, text=text: [Say(text, at_once=True)])
        page.evaluate(LONGEST)
        one.ask("Go")
        assert page.evaluate("window.longest") < 2000, text[:20]
        expect(page.locator(".raw")).to_have_count(0)
        expect(page.locator(".answer:last-child .markdown")).to_be_visible()


def test_a_long_line_takes_no_time(visit: Callable[..., Any], talker: Any):
    talker.says(lambda prompt: [Say("\n\n".join(LONG_LINES), at_once=True)])
    one = visit(talker.url)
    page = one.open()
    page.evaluate(LONGEST)
    one.ask("Go")
    expect(page.locator(".answer .markdown h3")).to_be_visible()
    assert page.evaluate("window.longest") < 1000


def test_a_message_that_cannot_be_drawn_is_text_and_the_others_live_on(
    visit: Callable[..., Any], talker: Any
):
    said = iter(["Poison for the page", "An *antidote*."])
    talker.says(lambda prompt: [Say(next(said), at_once=True)])
    one = visit(talker.url)
    one.page.add_init_script(f"({POISON})()")
    page = one.open()
    one.ask("First")
    expect(page.locator(".answer .raw")).to_have_text("Poison for the page")
    one.ask("Second")
    expect(page.locator(".answer .markdown em")).to_have_text("antidote")
    page.reload()
    page.click(".entry-open")
    expect(page.locator(".answer .raw")).to_have_text("Poison for the page")
    expect(page.locator(".answer .markdown em")).to_have_text("antidote")


def test_maths_that_models_write_is_set(visit: Callable[..., Any], talker: Any):
    text = "\n\n".join(f"$${tex}$$" for tex in [*MATHS, r"\sqrt{" * 30 + "x" + "}" * 30])
    talker.says(lambda prompt: [Say(text, at_once=True)])
    one = visit(talker.url)
    page = one.open()
    one.ask("Maths")
    expect(page.locator(".answer .tex")).to_have_count(0)
    set_ = page.evaluate("() => [...document.querySelectorAll('.answer math')].map(one => one.textContent)")
    assert [re.sub(r"\s", "", one) for one in set_] == [*MATHS.values(), "x"]
    colours = "() => [...document.querySelectorAll('[mathcolor]')].map(one => getComputedStyle(one).color)"
    assert page.evaluate(colours) == ["rgb(255, 0, 0)", "rgb(0, 170, 0)"]


def test_the_browser_itself_would_refuse_scripts_and_styles(visit: Callable[..., Any], talker: Any):
    """The policy is the second wall, for the day that the first one has a hole."""
    one = visit(talker.url)
    page = one.open()
    assert page.evaluate("() => { try { document.body.innerHTML = ''; } catch { return true; } }")
    one.causes += ["img-src", "TrustedHTML"]
    with page.expect_console_message(lambda told: told.type == "error" and "img-src" in told.text):
        page.evaluate("""() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => {
                window.violated = event.effectiveDirective;
                done();
            });
            const image = document.createElement('img');
            image.src = 'https://elsewhere.example/x';
            document.body.append(image);
        })""")
    assert page.evaluate("() => window.violated") == "img-src"
