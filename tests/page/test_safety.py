"""What a model writes stays text, and nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
PATHOLOGICAL = ("*" * 4000, "[" * 4000, "`" * 3999 + " ", "> " * 400, "_a" * 3000, "![[(" * 1500, "$" * 3999)


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
        page.evaluate(
            "window.longest = 0; new PerformanceObserver(list => { for (const entry of list.getEntries())"
            " window.longest = Math.max(window.longest, entry.duration) }).observe({type: 'longtask'})"
        )
        one.ask("Go")
        assert page.evaluate("window.longest") < 2000


def test_the_browser_itself_would_refuse_scripts_and_styles(visit: Callable[..., Any], talker: Any):
    """The policy is the second wall, for the day that the first one has a hole."""
    one = visit(talker.url)
    page = one.open()
    assert page.evaluate("() => { try { document.body.innerHTML = ''; } catch { return true; } }")
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
    assert any("img-src" in problem for problem in one.problems)
    one.problems.clear()
