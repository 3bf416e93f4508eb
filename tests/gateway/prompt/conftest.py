import json
from collections.abc import Callable

import pytest

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome_gateway.served_model import ServedModel, TextModel
from rhizome_testing.byte_tokenizer import byte_tokenizer_json

TEMPLATE = """{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- for m in messages %}[{{ m.role }}]{% if m.name %}({{ m.name }}){% endif %}\
{% if m.reasoning_content is string %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|eot_id|>{% endfor -%}
{%- if add_generation_prompt %}[assistant]{% if enable_thinking is defined and enable_thinking is false %}\
<think></think>{% else %}<think>
{% endif %}{% endif -%}"""

Serve = Callable[..., ServedModel]


@pytest.fixture
def serve() -> Serve:
    def serve(
        template: str | None = TEMPLATE, context: int = 4096, think_is_token: bool = False
    ) -> ServedModel:
        tokenizer = byte_tokenizer_json(300)
        if think_is_token:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            for token_id, text in ((300, "<think>"), (301, "</think>")):
                tokenizer["added_tokens"].append({"id": token_id, "content": text, "special": False, **flags})
        config = {} if template is None else {"chat_template": template}
        files = {"tokenizer.json": json.dumps(tokenizer), "tokenizer_config.json": json.dumps(config)}
        text = TextModel.from_files({name: content.encode() for name, content in files.items()})
        info = GetModelInfoResponse(model="m", max_context_tokens=context, vocab_size=302)
        return ServedModel(info, text)

    return serve
