r"""`{"name": "f", "parameters": {...}}`, bare: Llama 3.1 and later, and the bundled model.

A bare call must be the first thing in the answer; several are separated by `;`, `,` or white space. After
`<|python_tag|>` a call may stand anywhere. The bundled model separates its calls by a newline.
"""

from __future__ import annotations

from rhizome_gateway.parsing.json_calls import Notation

LLAMA3_JSON = Notation(opening="<|python_tag|>", bare=True, separators=";,")
