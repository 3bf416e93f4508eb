"""The response as an object: what the client asked for, once more, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from rhizome_gateway.generation.summary import Summary
from rhizome_gateway.openai.responses.objects import usage_object
from rhizome_gateway.openai.responses.request import ResponsesRequest, ToolPolicy
from rhizome_gateway.served_model import ServedModel


class ResponseObject:
    """Shows one response in its states. What the client sent may be large and is encoded once.

    Args:
        response_id: names it.
        request: what was asked.
        fields: the same, as it was sent.
        served: the model.
    """

    def __init__(
        self, response_id: str, request: ResponsesRequest, fields: Mapping[str, Any], served: ServedModel
    ) -> None:
        self._head = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": request.model,
            "background": False,
            "previous_response_id": None,
            "instructions": orjson.Fragment(orjson.dumps(request.instructions)),
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": _reasoning(request),
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": _in_effect(request.temperature, served, "temperature"),
            "text": _text(fields.get("text")),
            "tool_choice": _tool_choice(request.tool_choice, fields),
            "tools": orjson.Fragment(orjson.dumps(_tools(fields.get("tools")))),
            "top_logprobs": request.top_logprobs or 0,
            "top_p": _in_effect(request.top_p, served, "top_p"),
            "truncation": "disabled",
            "user": request.user,
        }

    def begun(self) -> dict[str, Any]:
        """Nothing came of it yet."""
        return self._in_state("in_progress", [])

    def ended(self, status: str, output: Sequence[dict[str, Any]], summary: Summary) -> dict[str, Any]:
        """It is complete, or as long as it may be."""
        whole = status == "completed"
        return self._in_state(status, output) | {
            "completed_at": int(time.time()) if whole else None,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "usage": usage_object(summary),
            "performance": summary.performance,
        }

    def failed(self, output: Sequence[dict[str, Any]], error: dict[str, Any]) -> dict[str, Any]:
        """An error broke it off."""
        return self._in_state("failed", output) | {"error": error}

    def _in_state(self, status: str, output: Sequence[dict[str, Any]]) -> dict[str, Any]:
        state = {"status": status, "output": output, "usage": None, "completed_at": None}
        return self._head | state | {"error": None, "incomplete_details": None}


def _in_effect(asked: float | None, served: ServedModel, name: Literal["temperature", "top_p"]) -> float:
    """What the client asked for, else the model's default, else the engine's."""
    if asked is not None:
        return asked
    defaults = served.info.default_sampling
    return round(getattr(defaults, name), 6) if defaults.HasField(name) else 1.0


def _reasoning(request: ResponsesRequest) -> dict[str, Any]:
    asked = request.reasoning
    return {
        "effort": None if asked is None else asked.effort,
        "summary": None if asked is None else asked.summary,
    }


def _text(sent: Any) -> dict[str, Any]:
    given: dict[str, Any] = {name: value for name, value in (sent or {}).items() if value is not None}
    return {"format": {"type": "text"}, "verbosity": "medium"} | given


def _tool_choice(policy: ToolPolicy | None, fields: Mapping[str, Any]) -> Any:
    """As it was sent; modes are words, also where they were sent as objects."""
    if policy is None:
        return "auto"
    return policy.type if policy.type in ("none", "auto", "required") else fields["tool_choice"]


def _tools(sent: Any) -> list[dict[str, Any]]:
    """The tools that the model was offered, as they were sent."""
    kept = []
    for tool in sent or ():
        if tool["type"] == "namespace":
            described = {"description": tool.get("description") or ""}
            kept.append(tool | described | {"tools": _tools(tool.get("tools"))})
        elif tool["type"] == "custom":
            kept.append(tool)
        elif tool["type"] == "function":
            kept.append({"description": None, "parameters": None, "strict": None} | tool)
    return kept
