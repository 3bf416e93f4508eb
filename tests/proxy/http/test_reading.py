"""What a body tells a policy."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import orjson

from rhizome_proxy.http.reading import read_ask
from rhizome_relay.request import RelayRequest
from rhizome_routing.policies.ask import Ask

PICTURE = b64encode(np.random.default_rng(7).bytes(1 << 20)).decode()
OTHER = b64encode(np.random.default_rng(8).bytes(1 << 20)).decode()


def ask_of(*parts: dict[str, Any]) -> Ask:
    request = RelayRequest(b"POST", b"/v1/chat/completions", b"/v1/chat/completions", "1.1", [])
    request.body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]})
    ask = read_ask(request)
    assert ask is not None
    return ask


def picture(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def sound(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def common(one: Ask, other: Ask) -> int:
    return len(set(one.chain(16).hashes) & set(other.chain(16).hashes))


def test_a_picture_is_about_a_thousand_tokens_however_large():
    for part in (picture(PICTURE), sound(PICTURE)):
        assert 1000 < ask_of(part, text("What is this?")).prompt_tokens < 1200
    assert 2000 < ask_of(picture(PICTURE), picture(OTHER)).prompt_tokens < 2300


def test_equal_pictures_are_equal_prefixes_and_others_are_not():
    asked = ask_of(picture(PICTURE), text("What is this?"))
    again = ask_of(picture(PICTURE), text("Why is it blue?"))
    assert common(asked, again) >= 15
    assert common(asked, ask_of(picture(OTHER), text("What is this?"))) == 0


def test_text_stays_text():
    said = 'She wrote "data":"' + "na " * 2000 + '" and ;base64,' + "x" * 500
    assert ask_of(text(said)).prompt_tokens >= len(said) // 4
