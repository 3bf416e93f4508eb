"""What programs do with LiteLLM; runs in its own environment and prints what came of it as JSON.

    python litellm_program.py BASE_URL KEY

One process for all, because LiteLLM takes seconds to import.
"""

import asyncio
import json
import sys
import traceback

import litellm

BASE_URL, KEY = sys.argv[1:]
SERVER = {"api_base": BASE_URL, "api_key": KEY, "num_retries": 0, "timeout": 60}
CHAT = {"model": "openai/rhizome-demo", "temperature": 0, **SERVER}
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"sides": {"enum": [6, 20]}},
    "required": ["sides"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "roll", "parameters": PARAMETERS}}]


def completion():
    answer = litellm.completion(messages=MESSAGES, **CHAT)
    usage = answer.usage
    return {
        "text": answer.choices[0].message.content,
        "reason": answer.choices[0].finish_reason,
        "adds_up": usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0,
    }


def acompletion():
    async def ask():
        answers = await asyncio.gather(*(litellm.acompletion(messages=MESSAGES, **CHAT) for _ in range(4)))
        return [answer.choices[0].message.content for answer in answers]

    return asyncio.run(ask())


def streaming():
    chunks = list(
        litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **CHAT)
    )
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "built": built.choices[0].message.content,
        "tokens": built.usage.completion_tokens,
    }


def astreaming():
    async def ask():
        stream = await litellm.acompletion(messages=MESSAGES, stream=True, **CHAT)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    return asyncio.run(ask())


def tools():
    asked = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = litellm.completion(**asked, **CHAT).choices[0]
    chunks = list(litellm.completion(**asked, stream=True, **CHAT))
    streamed = litellm.stream_chunk_builder(chunks).choices[0]
    return [
        [choice.finish_reason, call.function.name, json.loads(call.function.arguments)]
        for choice in (whole, streamed)
        for call in choice.message.tool_calls
    ]


def json_schema():
    form = {"type": "json_schema", "json_schema": {"name": "roll", "schema": PARAMETERS, "strict": True}}
    answer = litellm.completion(messages=MESSAGES, response_format=form, **CHAT)
    return json.loads(answer.choices[0].message.content)


def embedding():
    answer = litellm.embedding(model="openai/rhizome-demo", input=["Paris", "The sky is blue."], **SERVER)
    floats = litellm.embedding(
        model="openai/rhizome-demo", input=["Paris"], encoding_format="float", **SERVER
    )
    return {
        "lengths": [len(item["embedding"]) for item in answer.data],
        "distance": max(
            abs(a - b) for a, b in zip(answer.data[0]["embedding"], floats.data[0]["embedding"], strict=True)
        ),
    }


def text_completion():
    answer = litellm.text_completion(
        model="text-completion-openai/rhizome-demo", prompt="7 + 5 =", max_tokens=2, temperature=0, **SERVER
    )
    return answer.choices[0].text


def responses():
    answer = litellm.responses(input=MESSAGES[0]["content"], **CHAT)
    return [part.text for item in answer.output if item.type == "message" for part in item.content]


def errors():
    seen = {}
    for name, changed in {
        "temperature": {"temperature": 9},
        "model": {"model": "openai/no-such-model"},
        "key": {"api_key": "sk-nobody"},
        "context": {"max_tokens": 100_000},
    }.items():
        try:
            litellm.completion(messages=MESSAGES, **CHAT | changed)
        except Exception as error:
            seen[name] = [type(error).__name__, error.status_code]
    return seen


seen = {}
for scenario in (
    completion,
    acompletion,
    streaming,
    astreaming,
    tools,
    json_schema,
    embedding,
    text_completion,
    responses,
    errors,
):
    try:
        seen[scenario.__name__] = scenario()
    except Exception:
        seen[scenario.__name__] = traceback.format_exc()
print(json.dumps(seen))
