import json
from pathlib import Path

import pytest
from tests.gateway.parsing.outcome import Outcome, outcome

from rhizome_gateway.parsing.detect import UnknownFormatError, choose_formats
from rhizome_gateway.parsing.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    OutputFormats,
    ToolFormat,
    output_parser,
)

DEMO = Path(__file__).parents[3] / "models" / "demo"
HERMES = "{% if tools %}<tools>{{ tools }}</tools> Answer in <tool_call></tool_call>.{% endif %}"


def name(tools: ToolFormat | None) -> str | None:
    return tools.name if tools else None


@pytest.mark.parametrize(
    ("template", "special", "tools"),
    [
        (HERMES, (), "hermes"),
        ("{% for tool in tools %}", (), "llama3_json"),
        ("[func_name1(params_name1=params_value1), func_name2(params)] {{ tools }}", (), "pythonic"),
        ("{{ '[TOOL_CALLS]' + tool_calls|tojson }}", (), "mistral"),
        ("{{ tools }}", ("[TOOL_CALLS]", "[INST]"), "mistral"),
        (HERMES + "<function=example>", (), None),
        ("{{ tools }}<tool_call>{{ name }}<arg_key>{{ key }}</arg_key>", (), None),
        ("{{ tools }}<\uff5ctool\u2581calls\u2581begin\uff5c>", (), None),
        ("{{ tools }}<|channel|>commentary", (), None),
        ("{{ messages }} pitools", (), None),
        ("", (), None),
    ],
)
def test_tool_formats_are_recognised_by_the_chat_template(template: str, special, tools: str | None) -> None:
    assert name(choose_formats(template, special_tokens=special).tools) == tools


@pytest.mark.parametrize(
    ("template", "special", "reasoning"),
    [
        ("{{ content.split('</think>')[-1] }}", (), "think"),
        ("{{ messages }}", ("<think>", "</think>"), "think"),
        ("{{ messages }}", ("[THINK]", "[/THINK]"), "mistral"),
        ("<thinking></thinking>", (), "thinking"),
        ("{{ messages }}", (), None),
    ],
)
def test_thinking_is_recognised_by_its_markers(template: str, special, reasoning: str | None) -> None:
    expected = REASONING_FORMATS[reasoning] if reasoning else None
    assert choose_formats(template, special_tokens=special).reasoning == expected


def test_the_bundled_model_writes_llama_json() -> None:
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    special = {token["content"] for token in config["added_tokens_decoder"].values() if token["special"]}
    formats = choose_formats((DEMO / "chat_template.jinja").read_text(), special_tokens=special)
    assert name(formats.tools) == "llama3_json"
    assert formats.reasoning is None
    assert formats.visible_markers & special == {"<|python_tag|>"}


def test_settings_win_over_what_the_checkpoint_says() -> None:
    formats = choose_formats(HERMES, tool_parser="llama3-json", reasoning_parser="think")
    assert (name(formats.tools), formats.reasoning) == ("llama3_json", REASONING_FORMATS["think"])
    assert choose_formats(HERMES, tool_parser="none", reasoning_parser="none") == OutputFormats()


@pytest.mark.parametrize("setting", ["tool_parser", "reasoning_parser"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(setting: str) -> None:
    with pytest.raises(UnknownFormatError, match=r"auto, none, .*response_template"):
        choose_formats(HERMES, **{setting: "harmony"})
    with pytest.raises(UnknownFormatError, match="tokenizer_config"):
        choose_formats(HERMES, **{setting: "response_template"})


def test_markers_that_must_be_visible() -> None:
    formats = choose_formats(HERMES + "</think>")
    assert formats.visible_markers == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    mistral = TOOL_FORMATS["mistral"].markers
    assert mistral == {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}
    assert OutputFormats().visible_markers == set()


def test_no_parser_is_made_where_nothing_is_to_be_parsed() -> None:
    assert output_parser(OutputFormats(), {"add"}) is None
    assert output_parser(OutputFormats(TOOL_FORMATS["hermes"]), ()) is None
    thinking_only = output_parser(OutputFormats(TOOL_FORMATS["hermes"], REASONING_FORMATS["think"]), ())
    assert thinking_only
    text = "<think>a</think><tool_call>"
    assert outcome(thinking_only, list(text)) == Outcome("<tool_call>", "a")
    assert thinking_only.visible_markers == {"<think>", "</think>"}
    tools_only = output_parser(OutputFormats(TOOL_FORMATS["llama3_json"]), {"add"}, parallel=False)
    assert tools_only and not tools_only.inside and tools_only.reasoning_chars == 0
    assert outcome(tools_only, ['{"name": "add"}; {"name": "add"}']) == Outcome(calls=[("add", "{}")])
