"""`<tool_call>{"name": "f", "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5, Qwen 3 and many others.

Text may stand before, between and after the calls. A model that writes several objects, or an array, into
one pair of markers is understood, too.
"""

from __future__ import annotations

from rhizome_gateway.parsing.json_calls import Notation

HERMES = Notation(opening="<tool_call>", closing="</tool_call>", arrays=True, separators=",")
