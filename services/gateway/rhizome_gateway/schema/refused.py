"""Fields that would change an answer in ways this server does not offer: refused where they ask for it.

Clients send some of them with a value that asks for nothing, and are not to be troubled for that.
"""

from __future__ import annotations

from typing import Any

from rhizome_gateway.schema.fields import refuse

REFUSED = frozenset(
    {
        "custom_logit_processor",
        "logits_processors",
        "lora_path",
        "return_hidden_states",
        "stop_regex",
        "use_beam_search",
    }
)
"""What vLLM and SGLang offer, in chats and in completions."""


def refuse_unsupported(fields: Any, names: frozenset[str]) -> None:
    """Refuse a request that asks for something with one of these fields.

    Raises:
        PydanticCustomError: with the name of the field.
    """
    if not isinstance(fields, dict) or names.isdisjoint(fields):
        return
    for name in sorted(names & fields.keys()):
        value = fields[name]
        # 0 is a number and may ask for something; False is not, though Python takes them for the same.
        if value is not None and value is not False and value not in ("", [], {}):
            raise refuse("unsupported_parameter", f"{name} is not supported; leave it out.")
