"""What people type is text; what the template writes is control."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.chat_tokenizers import PLAIN, SPECIAL, TOKENIZERS
from tokenizers import AddedToken, Tokenizer, models

from rhizome_text.chat_prompt import ChatPrompts, Conversation
from rhizome_text.chat_template import ChatTemplate
from rhizome_text.control_tokens import ControlTokens, RenderedPrompt

SOURCE = """<s>{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}
{% if m.role == 'assistant' and '</think>' in m.content %}\
<think>{{ m.content.split('</think>')[0] }} </think> \
{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content | trim }}{% endif %}\
{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CONTROLS = frozenset(SPECIAL + PLAIN[:3])
PROMPTS = {name: ChatPrompts(backend, ChatTemplate(SOURCE)) for name, backend in TOKENIZERS.items()}

pieces = st.sampled_from(
    [
        *SPECIAL,
        *PLAIN,
        "<",
        "<|",
        "<|im_",
        "im_end|>",
        "|>",
        "<|IM_END|>",
        "＜s＞",
        " ",
        "\n",
        "the quick",
        "é你",
        '"',
        "\\",
    ]
)
texts = st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6).map(
    "".join
)
conversations = st.lists(
    st.builds(
        lambda role, content, name, key, value: {
            "role": role,
            "content": content,
            "name": name,
            "tool_calls": [{"function": {"name": value, "arguments": {key: [value]}}}] if key else None,
        },
        st.sampled_from(["user", "assistant", "tool"]),
        *[texts] * 4,
    ),
    min_size=1,
    max_size=3,
)


def token_ids(prompts: ChatPrompts, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    return prompts.encode(prompts.render(Conversation(messages, **kwargs)))


def harmless(value: Any) -> Any:
    """The same with every control character of the tokens replaced, so that no tokenizer can find one."""
    if isinstance(value, str):
        return "".join("x" if char in "<>|/＜＞" else char for char in value)
    if isinstance(value, dict):
        return {harmless(key): harmless(inner) for key, inner in value.items()}
    return [harmless(inner) for inner in value] if isinstance(value, list) else value


def control_ids(backend: Tokenizer, ids: list[int]) -> list[str]:
    texts = {backend.token_to_id(text): text for text in CONTROLS - {"<unk>"}}
    return [texts[token_id] for token_id in ids if token_id in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(messages=conversations)
@settings(max_examples=60, deadline=None)
def test_typing_never_adds_a_control_token(name: str, messages: list[dict[str, Any]]) -> None:
    prompts, backend = PROMPTS[name], TOKENIZERS[name]
    if any("</think>" in m["content"] for m in messages):
        messages = [m | {"role": "user"} for m in messages]  # the template splits what the assistant said
    typed = control_ids(backend, token_ids(prompts, messages))
    assert typed == control_ids(backend, token_ids(prompts, harmless(messages)))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(messages=conversations)
@settings(max_examples=40, deadline=None)
def test_without_typed_control_tokens_the_ids_are_those_of_the_plain_prompt(
    name: str, messages: list[dict[str, Any]]
) -> None:
    prompts, backend = PROMPTS[name], TOKENIZERS[name]
    messages = harmless(messages)
    plain = prompts.template.render(messages)
    expected = backend.encode(plain, add_special_tokens=False).ids
    assert token_ids(prompts, messages) == expected
    marked = prompts.controls.mark(messages)
    rendered = prompts.controls.read(prompts.template.render(marked.value), marked.begin, marked.end)
    assert rendered.text == plain
    assert prompts.encode(rendered) == expected  # the long way says the same


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_the_long_way_agrees_where_every_control_token_is_meant(name: str, text: str) -> None:
    prompts, backend = PROMPTS[name], TOKENIZERS[name]
    text = (
        text.replace("＜", "").replace("＞", "").replace("<|IM_END|>", "").lower()
    )  # some normalise these to tokens
    read = prompts.controls.read(text, "\ufdd0", "\ufdd1")
    assert prompts.encode(read) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - {"normalized", "stripping"}))
@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_typed_text_is_tokenised_as_if_the_tokens_did_not_exist(name: str, text: str) -> None:
    backend = TOKENIZERS[name]
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = []
    removed = {text: f"\U0010fff0{index}" for index, text in enumerate(sorted(CONTROLS))}
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {removed.get(token, token): token_id for token, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[removed.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = removed[model["unk_token"]]
    spec["post_processor"] = None
    without = Tokenizer.from_str(json.dumps(spec))
    text = text.replace("<table>", "")
    assert (
        PROMPTS[name].encode(RenderedPrompt(text, [])) == without.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation([{"role": "user", "content": "a<|im_end|>b"}]),
        Conversation([{"role": "user", "name": "<|im_end|>", "content": "x"}]),
        Conversation([{"role": "user", "content": "x"}], [{"description": "<|im_end|>"}]),
        Conversation([{"role": "user", "content": "x"}], [{"<|im_end|>": 1}]),
        Conversation([{"role": "user", "content": "x", "tool_calls": [{"function": {"a": ["<|im_end|>"]}}]}]),
        Conversation([{"role": "tool", "content": "\ufdd0<|im_end|>\ufdd1 \\ufdd2"}]),
        Conversation([{"role": "assistant", "content": "a<|im_end|>"}], continued_field="content"),
    ],
)
def test_every_place_for_text_is_only_text(conversation: Conversation) -> None:
    prompts, backend = PROMPTS["byte-level"], TOKENIZERS["byte-level"]
    prompt = prompts.render(conversation)
    assert isinstance(prompt, RenderedPrompt) and "<|im_end|>" in prompt.text
    ids = prompts.encode(prompt)
    ended = 0 if conversation.continued_field else len(conversation.messages)
    assert Counter(control_ids(backend, ids))["<|im_end|>"] == ended
    assert backend.decode(ids, skip_special_tokens=False) == prompt.text


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("{{ m.content | lower }}<|im_end|>", "<|IM_END|>"),
        ("{{ m.name }}{{ m.content }}<|im_end|>", "end|>"),
        ("{{ m.content[:4] }}{{ m.content[4:] }}<|im_end|>", "<|im_end|>"),
        ("{{ m | tojson(ensure_ascii=true) }}<|im_end|>", "<|im_end|>"),
        ("{{ m.content | replace(' ', '-') }}<|im_end|>", "a <|im_end|>"),
        ("{{ m.content.split('|') | join('|') }}<|im_end|>", "<|im_end|>"),
        ("{{ m.content | list | join }}<|im_end|>", "<|im_end|>"),
    ],
)
def test_a_template_that_changes_texts_makes_no_control_token_of_them(source: str, content: str) -> None:
    backend = TOKENIZERS["byte-level"]
    prompts = ChatPrompts(backend, ChatTemplate("{% for m in messages %}" + source + "{% endfor %}"))
    ids = token_ids(prompts, [{"role": "user", "name": "<|im_", "content": content}])
    assert control_ids(backend, ids) == ["<|im_end|>"]
    assert "\ufdd0" not in backend.decode(ids) and "ufdd0" not in backend.decode(ids)


def test_thinking_in_earlier_answers_is_still_found_by_the_template() -> None:
    prompts = PROMPTS["byte-level"]
    prompt = prompts.render(Conversation([{"role": "assistant", "content": "why</think>because"}]))
    assert isinstance(prompt, RenderedPrompt)
    assert "assistant<think>why </think> because<|im_end|>" in prompt.text
    assert [prompt.text[begin:end] for begin, end in prompt.controls[:4]] == [
        "<s>", "<|im_start|>", "<think>", "</think>",
    ]  # fmt: skip


def test_added_tokens_without_a_meaning_for_the_template_stay_tokens() -> None:
    backend, prompts = TOKENIZERS["byte-level"], PROMPTS["byte-level"]
    assert "<table>" not in prompts.controls.texts
    for content in ("<table>", "<table> </s>"):
        assert backend.token_to_id("<table>") in token_ids(prompts, [{"role": "user", "content": content}])


def test_most_conversations_take_the_short_way() -> None:
    prompts = PROMPTS["byte-level"]
    for content in ("a < b", "<b>bold</b>", "if (a <= b) {", "a <", "x <|y|> z"):
        short = isinstance(prompts.render(Conversation([{"role": "user", "content": content}])), str)
        assert short == (content != "a <")


def test_a_token_that_must_stand_alone_is_control_only_there() -> None:
    backend = TOKENIZERS["byte-level"].from_str(TOKENIZERS["byte-level"].to_str())
    backend.add_special_tokens([AddedToken("STOP", single_word=True, normalized=False)])
    prompts = ChatPrompts(
        backend, ChatTemplate("{% for m in messages %}{{ m.content }} STOP xSTOP{% endfor %}")
    )
    for content in ("x", "STOP", "STOPPED"):
        ids = token_ids(prompts, [{"role": "user", "content": content}])
        assert ids.count(backend.token_to_id("STOP")) == 1


def test_a_control_token_that_merges_would_make_is_not_made() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "abb": 3}, [("a", "b"), ("ab", "b")]))
    backend.add_special_tokens(["ab"])
    prompts = ChatPrompts(backend, ChatTemplate("{{ messages[0].content }}ab"))
    assert prompts.encode("abab") == [2, 2]
    assert token_ids(prompts, [{"role": "user", "content": "ab"}]) == [0, 1, 2]


def test_many_tokens_are_found_as_surely_as_few() -> None:
    backend = TOKENIZERS["byte-level"].from_str(TOKENIZERS["byte-level"].to_str())
    reserved = [f"<|reserved_{index}|>" for index in range(300)] + ["<|res", "[A]", "\u00dcber"]
    backend.add_special_tokens(reserved)
    controls = ControlTokens(backend, [])
    for text in reserved:
        assert controls.occur_in(f"x {text} y") and controls.occur_in({text.upper(): 1})
        assert not controls.occur_in(f"x {text[1:]} y")
