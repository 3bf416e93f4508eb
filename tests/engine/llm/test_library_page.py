"""The examples of docs/library.md run, and print what the page says they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples():
    """Code and what it prints, in order."""
    blocks = BLOCK.findall((ROOT / "docs" / "library.md").read_text(encoding="utf-8"))
    kinds = [kind for kind, _ in blocks]
    assert kinds == ["python", "text"] * (len(kinds) // 2) and len(kinds) >= 10
    texts = [text for _, text in blocks]
    return list(zip(texts[0::2], texts[1::2], strict=True))


def test_the_examples_print_what_the_page_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "docs.library"}
    for number, (code, expected) in enumerate(examples()):
        exec(compile(code, f"docs/library.md, example {number}", "exec"), namespace)
        assert capsys.readouterr().out == expected, f"example {number}"


@pytest.mark.parametrize("name", ["LLM", "AsyncLLM", "SamplingParams", "Grammar", "SchedulerConfig"])
def test_the_package_offers_what_the_page_uses(name):
    import rhizome_engine

    assert name in rhizome_engine.__all__ and getattr(rhizome_engine, name).__name__ == name
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert re.search(rf"from rhizome_engine import .*\b{name}\b", page)
