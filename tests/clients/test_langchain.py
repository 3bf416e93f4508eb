"""LangChain's OpenAI integration."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr
from tests.clients.conftest import KEY

MODEL = "rhizome-demo"
QUESTION = "What is the capital of France?"
PARIS = "The capital of France is Paris."


class Forecast(BaseModel):
    """The weather of the next days."""

    days: int = Field(ge=1, le=9)
    unit: Literal["celsius", "fahrenheit"]


@tool
def get_weather(days: Literal[1, 2, 3]) -> str:
    """The weather of the next days."""
    return '{"weather": "sunny", "temperature": 21}'


@pytest.fixture
def chat(base_url: str) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=base_url, api_key=SecretStr(KEY), temperature=0, max_retries=0)


def test_it_is_invoked(chat: ChatOpenAI) -> None:
    answer = chat.invoke(QUESTION)
    assert answer.content == PARIS
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


def test_it_streams(chat: ChatOpenAI) -> None:
    pieces = [str(chunk.content) for chunk in chat.stream(QUESTION)]
    assert "".join(pieces) == PARIS and len(pieces) > 3


async def test_it_streams_asynchronously_with_usage(chat: ChatOpenAI) -> None:
    whole: Any = None
    async for chunk in chat.astream(QUESTION, stream_usage=True):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == PARIS
    assert whole.usage_metadata["total_tokens"] > whole.usage_metadata["input_tokens"] > 0


def test_it_takes_a_batch(chat: ChatOpenAI) -> None:
    answers = chat.batch([QUESTION, "What colour is the sky?", "你是谁？"])
    assert [answer.content for answer in answers] == [
        PARIS,
        "The sky is blue.",
        "我是 Rhizome，一个小语言模型。",
    ]


def test_bound_tools_are_called_and_answered(chat: ChatOpenAI) -> None:
    forced = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    called = forced.invoke("What is the weather in Paris?")
    (call,) = called.tool_calls
    assert call["name"] == "get_weather" and call["args"]["days"] in (1, 2, 3)
    returned = get_weather.invoke(call)
    assert isinstance(returned, ToolMessage)
    conversation = [HumanMessage("What is the weather in Paris?"), called, returned]
    answer = chat.bind_tools([get_weather]).invoke(conversation)
    assert "21" in str(answer.content)


def test_calls_come_together_from_a_stream(chat: ChatOpenAI) -> None:
    forced = chat.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    whole: Any = None
    for chunk in forced.stream("What is the weather in Paris?"):
        whole = chunk if whole is None else whole + chunk
    assert [call["name"] for call in whole.tool_calls] == ["get_weather"]
    assert whole.tool_calls[0]["args"]["days"] in (1, 2, 3)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_of_its_type(chat: ChatOpenAI, method: Any) -> None:
    structured = chat.with_structured_output(Forecast, method=method, include_raw=True)
    answer = structured.invoke(QUESTION)
    assert isinstance(answer, dict)
    assert isinstance(answer["raw"], AIMessage) and answer["parsing_error"] is None
    assert isinstance(answer["parsed"], Forecast)


def test_json_mode_is_json(chat: ChatOpenAI) -> None:
    structured = chat.bind(max_tokens=400).with_structured_output(None, method="json_mode", include_raw=True)
    answer = structured.invoke("Answer in JSON: Hi")
    assert isinstance(answer, dict)
    if answer["raw"].response_metadata["finish_reason"] == "stop":
        assert isinstance(answer["parsed"], dict)


def test_log_probabilities_reach_the_metadata(chat: ChatOpenAI) -> None:
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).startswith(PARIS)


def test_the_responses_api(base_url: str) -> None:
    chat = ChatOpenAI(
        model=MODEL, base_url=base_url, api_key=SecretStr(KEY), temperature=0, use_responses_api=True
    )
    assert chat.invoke(QUESTION).text == PARIS
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == PARIS


def test_plain_completions(base_url: str) -> None:
    llm = OpenAI(model=MODEL, base_url=base_url, api_key=SecretStr(KEY), temperature=0, max_tokens=2)
    assert "12" in llm.invoke("7 + 5 =")


async def test_embeddings(base_url: str) -> None:
    # Its own tokeniser is for OpenAI's models; for others its documentation switches it off.
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=base_url, api_key=SecretStr(KEY), check_embedding_ctx_length=False
    )
    one = embeddings.embed_query("Paris")
    many = await embeddings.aembed_documents(["Paris", "The sky is blue."])
    assert many[0] == pytest.approx(one, abs=1e-5)
    assert len(many) == 2
