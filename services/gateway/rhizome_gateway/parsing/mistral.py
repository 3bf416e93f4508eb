"""`[TOOL_CALLS]`: an array of calls, or, in newer models, `name{...}`, `name[ARGS]{...}` for each call.

The newest also write an id: `name[CALL_ID]id[ARGS]{...}`. It is dropped, for ids of calls are made here.
"""

from __future__ import annotations

from rhizome_gateway.parsing.json_calls import Notation

MISTRAL = Notation(
    opening="[TOOL_CALLS]",
    arrays=True,
    named=True,
    id_tag="[CALL_ID]",
    arguments_tag="[ARGS]",
    separators=",",
)
