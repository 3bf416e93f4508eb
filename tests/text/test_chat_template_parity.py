"""Every template renders here as in transformers, to the byte and to the token."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.text.chat_conversations import CONVERSATIONS, TOOLS, USER

from rhizome_text.chat_template import ChatTemplate, ChatTemplateError
from rhizome_text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
DEMO = Path(__file__).parents[2] / "models" / "demo"
TEMPLATES = {path.stem: path.read_text() for path in Path(__file__).parent.glob("chat_templates/*.jinja")}
TEMPLATES["demo"] = (DEMO / "chat_template.jinja").read_text()
VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {
        "enable_thinking": True,
        "reasoning_effort": "high",
        "date_string": "1 May 2026",
        "controls": {"length": "x"},
    },
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.from_directory(DEMO)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_renders_and_tokenises_as_transformers_does(source: str, theirs: Any, ours: Tokenizer) -> None:
    template = ChatTemplate(source, **ours.special_tokens)
    rendered = 0
    for name, messages in CONVERSATIONS.items():
        for tools in (None, TOOLS):
            for variables in VARIABLES:
                for opened in (True, False):
                    given = {"tools": tools, "add_generation_prompt": opened, **variables}
                    case = f"{name} {given}"
                    expected = expected_ids = None
                    try:
                        expected = theirs.apply_chat_template(
                            messages, chat_template=source, tokenize=False, **given
                        )
                        expected_ids = theirs.apply_chat_template(
                            messages, chat_template=source, return_dict=False, **given
                        )
                    except (jinja2.TemplateError, TypeError):
                        with pytest.raises(ChatTemplateError):
                            template.render(messages, **given)
                        continue
                    assert template.render(messages, **given) == expected, case
                    assert ours.encode(expected) == expected_ids, case
                    rendered += 1
    assert rendered > len(CONVERSATIONS)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"dumps"}))
@pytest.mark.parametrize("text", ["The answer is ", "The answer is", " \n", "é\n\n"])
def test_an_open_last_message_ends_where_it_does_in_transformers(name: str, theirs: Any, text: str) -> None:
    source = TEMPLATES[name]
    template = ChatTemplate(source, **theirs.special_tokens_map)
    messages = [*USER, {"role": "assistant", "content": text}]
    try:
        expected = theirs.apply_chat_template(
            messages, chat_template=source, tokenize=False, continue_final_message=True
        )
    except (ValueError, jinja2.TemplateError):
        pytest.skip("transformers cannot continue this one")
    assert template.render_open(messages) == expected


def test_a_template_can_be_asked_for_the_time() -> None:
    before = datetime.now()
    rendered = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}").render([])
    assert before.replace(microsecond=0) <= datetime.fromisoformat(rendered) <= datetime.now()


def test_reasoning_can_be_continued_inside_its_span() -> None:
    template = ChatTemplate(TEMPLATES["qwen3"])
    last = {"role": "assistant", "content": "", "reasoning_content": "First,", "thinking": "First,"}
    rendered = template.render_open([*USER, last], field="reasoning_content")
    assert rendered.endswith("<|im_start|>assistant\n<think>\nFirst,")


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(ChatTemplateError, match="leaves out the message"):
        ChatTemplate("{{ messages[0].content }}").render_open([*USER, {"role": "assistant", "content": "x"}])


def test_json_keeps_the_order_of_what_was_sent() -> None:
    tool = {"z": 1, "a": {"y": None, "b": True}}
    assert json.loads(ChatTemplate("{{ tools[0] | tojson }}").render([], [tool])) == tool
    assert list(json.loads(ChatTemplate("{{ tools[0] | tojson }}").render([], [tool]))) == ["z", "a"]
