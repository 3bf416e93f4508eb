import contextlib
from typing import Any

import pytest

from rhizome_testing.circles import left_in_circles
from rhizome_text.chat_template import ChatTemplate, ChatTemplateError

USER = [{"role": "user", "content": "Hi <&> 你好"}]


def _render(source: str, **kwargs: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(USER, **kwargs)


def test_special_tokens_and_messages_are_known() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{% endfor %}{{ eos_token }}"
    )
    assert _render(source) == "<s>[user] Hi <&> 你好</s>"


def test_renders_what_transformers_renders() -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (
        "{%- if tools %}\n{{ tools | tojson(indent=2) }}\n{%- endif %}\n"
        "{% for m in messages %}\n  {% if loop.index > 5 %}{% break %}{% endif %}\n"
        "  {{ m.role }}: {{ m.content | trim }} {{ m | tojson }}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tools = [{"type": "function", "function": {"name": "f", "description": "<ü>"}}]
    theirs, _ = transformers.render_jinja_template(
        [USER], tools=tools, chat_template=source, add_generation_prompt=True
    )
    assert _render(source, tools=tools) == theirs[0]


def test_a_template_can_refuse() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        _render("{{ raise_exception('roles must alternate') }}")


def test_a_failing_template_says_so_without_a_traceback() -> None:
    with pytest.raises(ChatTemplateError, match="TypeError"):
        _render("{{ messages[0].content + 1 }}")


def test_a_broken_template_names_the_line() -> None:
    with pytest.raises(ChatTemplateError, match="line 2"):
        ChatTemplate("\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ range(10000000) | list | length }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        _render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ (FORMAT | safe).format(messages) }}",
        "{{ (FORMAT | e).format(a=messages) }}",
        "{{ (FORMAT | safe).format_map({'a': messages}) }}",
        "{% set ns = namespace() %}{% set ns.f = (FORMAT | safe).format %}{{ ns.f(messages) }}",
        "{% set ns = namespace() %}{% set ns.f = FORMAT.format %}{{ ns.f(messages) }}",
        "{{ (FORMAT | safe)['format'](messages) }}",
    ],
)
@pytest.mark.parametrize("field", ["__class__", "append.__self__.__class__", "__init__.__globals__"])
def test_a_format_sees_no_more_than_the_template(source: str, field: str) -> None:
    name = "a" if "a=" in source or "'a'" in source else "0"
    written = f"'<{{{name}.{field}}}>'"
    try:
        rendered = _render(source.replace("FORMAT", written))
    except ChatTemplateError:
        return
    assert "class" not in rendered and "{" not in rendered


def test_a_format_of_safe_text_escapes_and_stays_safe() -> None:
    source = "{{ ('<b>{}</b>' | safe).format('<i>') + '<u>' }} {{ '<{}>'.format('<i>') + '<u>' }}"
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs, _ = transformers.render_jinja_template([USER], chat_template=source)
    assert _render(source) == theirs[0] == "<b>&lt;i&gt;</b>&lt;u&gt; <<i>><u>"


@pytest.mark.parametrize(
    "call", ["center(10**9)", "format(1)", "replace('{', 'x' * 99999999)", "ljust(10**9)"]
)
def test_safe_text_is_no_way_around_the_budget(call: str) -> None:
    with pytest.raises(ChatTemplateError, match="cannot render"):
        _render("{{ ('{:>999999999}' | safe)." + call + " }}")


def test_variables_of_a_template_can_be_set() -> None:
    assert (
        _render("{{ enable_thinking }} {{ strftime_now('%Y') | length }}", enable_thinking=False) == "False 4"
    )


async def test_nothing_of_a_render_outlives_it() -> None:
    template = ChatTemplate(
        "{% macro text(n) %}{{ n }}{% if n %}{{ text(n - 1) }}{% endif %}{% endmacro %}"
        "{% set ns = namespace(n=3) %}{{ text(ns.n) }}{% if refuse %}{{ raise_exception('no') }}{% endif %}"
    )

    async def render() -> None:
        assert template.render(USER) == "3210"
        with contextlib.suppress(ChatTemplateError):
            template.render(USER, refuse=True)

    assert not await left_in_circles(render)
