from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.anthropic.conftest import BODY, HI, WEATHER

from rhizome_gateway.anthropic.billing_header import without_billing_header
from rhizome_gateway.anthropic.request import CountTokensRequest, MessagesRequest
from rhizome_gateway.anthropic.translation import chat_request
from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_testing.talking_engine import TalkingEngine

HEADER = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={};"


def translated(**fields: Any) -> ChatCompletionRequest:
    return chat_request(MessagesRequest.model_validate(BODY | fields))[0]


def messages(*turns: tuple[str, Any], system: Any = None) -> list[dict[str, Any]]:
    sent = [{"role": role, "content": content} for role, content in turns]
    request = translated(messages=sent, system=system)
    return [message.model_dump(exclude_none=True) for message in request.messages]


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words} | more


def use(call: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": "f", "input": arguments}


def result(call: str, content: Any = "done", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": content} | more


def called(call: str, **arguments: Any) -> dict[str, Any]:
    return {"id": call, "type": "function", "function": {"name": "f", "arguments": arguments}}


def tool(call: str, content: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | more


def test_blocks_of_text_are_paragraphs() -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert messages(
        ("user", [text("one", **cached), text("two")]), system=[text("be"), text("brief", **cached)]
    ) == [{"role": "system", "content": "be\n\nbrief"}, user("one\n\ntwo")]


def test_text_of_the_assistant_is_joined_as_it_was_written() -> None:
    assert messages(("user", "a"), ("assistant", [text("b, "), text("c")]), ("user", "d"))[1] == assistant(
        "b, c"
    )


def test_neighbours_of_the_same_role_are_one_turn() -> None:
    assert messages(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e")) == [
        user("a\n\nb"), assistant("cd"), user("e"),
    ]  # fmt: skip


def test_results_follow_their_calls_in_order_and_come_before_text() -> None:
    assert messages(
        ("user", "go"),
        ("assistant", [text("I try"), use("t1", x=1), use("t2")]),
        ("user", [text("first this"), result("t2", [text("two"), text("parts")])]),
        ("user", [result("t1", "no", is_error=True), text("then that")]),
    ) == [
        user("go"),
        assistant("I try", tool_calls=[called("t1", x=1), called("t2")]),
        tool("t1", "Error: no"),
        tool("t2", "two\n\nparts"),
        user("first this\n\nthen that"),
    ]


def test_a_result_may_be_empty() -> None:
    turns = ("user", "go"), ("assistant", [use("t")]), ("user", [{"type": "tool_result", "tool_use_id": "t"}])
    assert messages(*turns)[-1] == tool("t", "")


def test_thinking_goes_back_to_the_template() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "abc"}
    hidden = {"type": "redacted_thinking", "data": "abc"}
    assert messages(("user", "a"), ("assistant", [hidden, thought, text("b")]), ("user", "c"))[
        1
    ] == assistant("b", reasoning_content="hm")


def test_system_messages_before_anybody_spoke_are_part_of_the_prompt() -> None:
    sent = messages(("system", "and kind"), ("user", "a"), system="be brief")
    assert sent == [{"role": "system", "content": "be brief\n\nand kind"}, user("a")]


def test_later_system_messages_are_reminders_in_the_turn_of_the_user() -> None:
    reminder = "<system-reminder>\nnow\n</system-reminder>"
    assert messages(("user", "a"), ("system", "now"), ("assistant", "b"), ("user", "c")) == [
        user(f"a\n\n{reminder}"), assistant("b"), user("c"),
    ]  # fmt: skip
    between = messages(("user", "a"), ("assistant", [use("t")]), ("system", "now"), ("user", [result("t")]))
    assert between[2:] == [tool("t"), user(reminder)]


def test_an_assistant_at_the_end_is_continued() -> None:
    sent = [*HI, {"role": "assistant", "content": "Well,"}]
    request = translated(messages=sent)
    assert request.continue_final_message is True and request.add_generation_prompt is False
    assert translated().continue_final_message is None


async def test_the_model_goes_on_where_the_assistant_stopped(client, engine: TalkingEngine) -> None:
    await client.messages.create(**BODY | {"messages": [*HI, {"role": "assistant", "content": "Well,"}]})
    assert engine.prompts[0].endswith("assistant<|end_header_id|>\n\nWell,")


@pytest.mark.parametrize("system", [HEADER + "\nYou are", [HEADER, "You are"], [HEADER + "\n\nYou are"]])
def test_the_billing_header_does_not_reach_the_model(system: Any) -> None:
    def sent(nonce: str) -> Any:
        if isinstance(system, str):
            return system.format(nonce)
        return [text(block.format(nonce)) for block in system]

    prompts = [messages(("user", "a"), system=sent(nonce))[0] for nonce in ("12", "ab")]
    assert prompts == [{"role": "system", "content": "You are"}] * 2


@given(st.text(max_size=50))
def test_other_system_prompts_stay_as_they_are(prompt: str) -> None:
    assert without_billing_header(prompt) == prompt
    assert without_billing_header(f"{HEADER}\nA{prompt}\n{HEADER}") == f"A{prompt}\n{HEADER}"


@given(st.lists(st.integers(0, 3), max_size=6), st.randoms(use_true_random=False))
def test_every_result_stands_right_behind_its_call(rounds: list[int], random: Any) -> None:
    turns: list[tuple[str, Any]] = [("user", "go")]
    for number, calls in enumerate(rounds):
        ids = [f"t{number}-{call}" for call in range(calls)]
        turns.append(("assistant", [text("x"), *map(use, ids)]))
        random.shuffle(ids)
        cut = random.randint(0, len(ids))
        turns.append(("user", [*map(result, ids[:cut]), text("y")]))
        turns.append(("user", [text("z"), *map(result, ids[cut:])]))
    waiting: list[str] = []
    for message in messages(*turns):
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls", ())]
    assert not waiting


@pytest.mark.parametrize(
    "turns",
    {
        "a call without a result": (("user", "a"), ("assistant", [use("t")]), ("user", "b")),
        "a call at the end": (("user", "a"), ("assistant", [use("t")])),
        "one result missing": (
            ("user", "a"), ("assistant", [use("t"), use("u")]), ("user", [result("t")]),
        ),
        "a result without a call": (("user", [result("t")]),),
        "a result too late": (
            ("user", "a"), ("assistant", [use("t")]), ("user", [result("t")]), ("assistant", "b"),
            ("user", [result("t")]),
        ),
        "two results": (("user", "a"), ("assistant", [use("t")]), ("user", [result("t"), result("t")])),
        "two calls of one id": (
            ("user", "a"), ("assistant", [use("t"), use("t")]), ("user", [result("t")]),
        ),
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_calls_and_results_belong_together(turns: Any) -> None:
    with pytest.raises(ApiError) as raised:
        messages(*turns[1])
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("choice", "fields"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "get_weather"},
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
    ],
)
def test_choices_of_tools(choice: Any, fields: Any) -> None:
    request = translated(tools=[WEATHER], tool_choice=choice)
    assert request.model_dump(include={"tool_choice", "parallel_tool_calls"}, exclude_none=True) == fields


def test_tools_keep_their_schema() -> None:
    strict = WEATHER | {"type": "custom", "strict": True, "cache_control": None, "defer_loading": False}
    _, tools = chat_request(MessagesRequest.model_validate(BODY | {"tools": [strict]}))
    function = {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": WEATHER["input_schema"],
        "strict": True,
    }
    assert tools == [{"type": "function", "function": function}]
    assert list(tools[0]["function"]) == ["name", "description", "parameters", "strict"]
    assert translated(tools=[], tool_choice={"type": "auto"}).tools is None


@pytest.mark.parametrize(
    ("thinking", "on"),
    [
        ({"type": "enabled", "budget_tokens": 2000}, True),
        ({"type": "adaptive"}, True),
        ({"type": "disabled"}, False),
    ],
)
def test_thinking_reaches_the_template(thinking: Any, on: bool) -> None:
    request = translated(thinking=thinking, output_config={"effort": "low"})
    assert request.chat_template_kwargs is not None
    assert request.chat_template_kwargs["enable_thinking"] is on
    assert request.chat_template_kwargs["thinking_budget"] == thinking.get("budget_tokens")
    assert request.reasoning_effort == ("low" if on else "none")


def test_a_format_binds_the_answer() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    config = {"format": {"type": "json_schema", "schema": schema}}
    bound = translated(output_config=config).response_format
    assert bound is not None and bound.json_schema is not None and bound.json_schema.schema_ == schema


def test_what_is_counted_is_what_would_be_asked() -> None:
    fields = {"model": "m", "messages": HI, "system": "s", "tools": [WEATHER]}
    counted = chat_request(CountTokensRequest.model_validate(fields))
    asked = chat_request(MessagesRequest.model_validate(fields | {"max_tokens": 5}))
    assert counted == asked
