"""A model that thinks may think freely, and is held to the grammar afterwards."""

import json
import re

import pytest

from rhizome_engine.core.translate import to_grammar
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import CallBegun, Reasoning, Text
from rhizome_gateway.parsing.formats import REASONING_FORMATS, TOOL_FORMATS, OutputFormats, output_parser
from rhizome_gateway.structure.request_grammar import grammar_for
from rhizome_gateway.structure.schema import ResponseFormat, StructuredOutputs
from rhizome_gateway.structure.thinking import Thinking

from .conftest import calls_of, tool

YES = StructuredOutputs.model_validate({"choice": ["yes", "no"]})


def parsed(text, name, *, starts_inside, tools=None):
    formats = OutputFormats(TOOL_FORMATS[tools] if tools else None, REASONING_FORMATS[name])
    parser = output_parser(formats, ["f"] if tools else [], starts_inside=starts_inside)
    events = [*parser.push(text), *parser.finish()]
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    shown = "".join(event.text for event in events if isinstance(event, Text))
    return thought, shown, [event.name for event in events if isinstance(event, CallBegun)]


def spoken(model, grammar, opening, closing, seed):
    """What a model says that gets to the point: at random, but for the end of its thinking."""

    matcher = model.speaker.matcher(to_grammar(grammar))
    ids = model.speaker.encode(opening + "hm {" + closing)
    matcher.accept_all(ids)
    return opening + "hm {" + closing + model.speaker.text(model.speaker.say(matcher, seed, force=True))


@pytest.mark.parametrize("starts_inside", [True, False])
@pytest.mark.parametrize("name", list(REASONING_FORMATS))
@pytest.mark.parametrize(
    ("asked", "check"),
    [
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "<[a-c]{2}>"}, lambda text: re.fullmatch("<[a-c]{2}>", text)),
        ({"grammar": 'start: w "!"\nw: /[a-z]{2}/'}, lambda text: re.fullmatch("[a-z]{2}!", text)),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 7}}, lambda text: 5 <= json.loads(text) <= 7),
    ],
    ids=["choice", "regex", "grammar", "json"],
)
async def test_after_the_thinking_the_answer_conforms(model, name, starts_inside, asked, check):
    markers = REASONING_FORMATS[name]
    grammar = await grammar_for(
        model.checker,
        structured_outputs=StructuredOutputs.model_validate(asked),
        thinking=Thinking(markers, starts_inside),
    )
    for seed in range(5):
        opening = "" if starts_inside else markers.opening
        text = spoken(model, grammar, opening, markers.closing, seed)
        thought, shown, _ = parsed(text, name, starts_inside=starts_inside)
        assert thought == "hm {" and check(shown), text


async def test_a_model_that_may_think_may_answer_at_once(model):
    thinking = Thinking(REASONING_FORMATS["think"], False)
    grammar = await grammar_for(model.checker, structured_outputs=YES, thinking=thinking)
    said = {text for seed in range(20) if (text := model.say(grammar, seed, most=30))}
    assert said & {"yes", "no"}


async def test_a_model_inside_its_thinking_has_to_end_it(model):

    thinking = Thinking(REASONING_FORMATS["think"], True)
    grammar = await grammar_for(model.checker, structured_outputs=YES, thinking=thinking)
    matcher = model.speaker.matcher(to_grammar(grammar))
    matcher.accept_all(model.speaker.encode("yes"))
    assert not matcher.may_end
    matcher.accept_all(model.speaker.encode("</think>\n\nno"))
    assert matcher.may_end


@pytest.mark.parametrize("tools", ["hermes", "llama3_json", "mistral", "pythonic"])
async def test_a_forced_call_comes_after_the_thinking(model, tools):
    calls, _ = calls_of(tools, tool("f", None), parallel=False)
    markers = REASONING_FORMATS["think"]
    grammar = await grammar_for(model.checker, tool_calls=calls, thinking=Thinking(markers, True))
    text = spoken(model, grammar, "", markers.closing, 1)
    thought, shown, names = parsed(text, "think", starts_inside=True, tools=tools)
    assert (thought, shown.strip(), names) == ("hm {", "", ["f"])


async def test_thinking_alone_binds_nothing(plain):
    text = ResponseFormat.model_validate({"type": "text"})
    thinking = Thinking(REASONING_FORMATS["think"], True)
    assert await grammar_for(plain.checker, response_format=text, thinking=thinking) is None


async def test_a_wrong_answer_format_is_named_although_the_thinking_surrounds_it(plain):

    thinking = Thinking(REASONING_FORMATS["think"], True)
    wrong = StructuredOutputs.model_validate({"regex": "(a"})
    with pytest.raises(ApiError, match="unclosed group") as raised:
        await grammar_for(plain.checker, structured_outputs=wrong, thinking=thinking)
    assert (raised.value.code, raised.value.param) == ("invalid_value", "structured_outputs.regex")
