from typing import Any

import pytest

from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.responses.conversation import chat_messages
from rhizome_gateway.openai.responses.items import InputItem
from rhizome_gateway.prompt.written_arguments import certain_object

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def written(*items: dict[str, Any], instructions: str | None = None) -> list[dict[str, Any]]:
    return chat_messages(instructions, [InputItem.model_validate(item) for item in items])


def call(call_id: str, name: str, arguments: str | dict[str, Any]) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_what_is_said_first_by_system_and_developer_is_one_system_message() -> None:
    items = [{"role": "system", "content": "B"}, {"role": "developer", "content": "C"}, user("Hi")]
    assert written(*items, instructions="A") == [
        {"role": "system", "content": "A\n\nB\n\nC"},
        {"role": "user", "content": "Hi"},
    ]


def test_what_a_developer_says_later_is_part_of_the_users_turn() -> None:
    assert written(user("a"), {"role": "developer", "content": "b"}, user("c")) == [
        {"role": "user", "content": "a\n\n<developer>\nb\n</developer>\n\nc"}
    ]


def test_parts_of_a_text_are_joined() -> None:
    parts = [{"type": "input_text", "text": "Good "}, {"type": "input_text", "text": "day"}]
    assert written({"type": "message", "role": "user", "content": parts}) == [user("Good day")]


def test_an_answer_is_one_message_with_its_thinking_and_its_calls() -> None:
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}
    assert written(user("x"), thought, said, CALL, OUTPUT) == [
        user("x"),
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm",
            "tool_calls": [call("c1", "f", '{"a": 1}')],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]


def test_outputs_stand_in_the_order_of_their_calls() -> None:
    first, second = OUTPUT, OUTPUT | {"call_id": "c2", "output": "43"}
    messages = written(user("x"), CALL, CALL | {"call_id": "c2"}, user("wait"), second, first, user("y"))
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert [message["content"] for message in messages[2:]] == ["42", "43", "wait\n\ny"]


def test_calls_with_outputs_between_them_are_several_answers() -> None:
    messages = written(user("x"), CALL, OUTPUT, CALL | {"call_id": "c2"}, OUTPUT | {"call_id": "c2"})
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]


def test_a_custom_tool_is_a_function_with_one_argument() -> None:
    items = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "*** Begin"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "ok"}],
        },
    ]
    messages = written(user("x"), *items)
    assert messages[1]["tool_calls"] == [call("c1", "patch", {"input": "*** Begin"})]
    assert messages[2]["content"] == "ok"


def test_a_namespace_is_part_of_the_name() -> None:
    (_, answer, _) = written(user("x"), CALL | {"namespace": "git"}, OUTPUT)
    assert answer["tool_calls"][0]["function"]["name"] == "git__f"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [("", {}), ('{"a": [1, 2', {"a": [1, 2]}), ('{"a": 1, "b": "cu', {"a": 1}), ("{", {})],
)
def test_arguments_that_were_cut_off_are_what_is_certain_of_them(text: str, arguments: object) -> None:
    (_, answer, _) = written(user("x"), CALL | {"arguments": text}, OUTPUT)
    assert certain_object(answer["tool_calls"][0]["function"]["arguments"]) == arguments


@pytest.mark.parametrize("text", ["[1]", "x", '"a"', "1"])
def test_arguments_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as error:
        written(user("x"), CALL | {"arguments": text}, OUTPUT)
    assert error.value.param == "input[1].arguments"


def test_thinking_of_another_server_is_left_out() -> None:
    thought = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    assert written(user("x"), thought, user("y")) == [user("x\n\ny")]
