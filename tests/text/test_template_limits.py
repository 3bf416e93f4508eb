"""No template takes long or makes much, however it tries."""

import resource
import time

import pytest

from rhizome_text.chat_template import ChatTemplate, ChatTemplateError, PromptTooLongError
from rhizome_text.template_budget import TemplateLimits

USER = [{"role": "user", "content": "Hi <&> 你好"}]
DOUBLE = "{% set ns = namespace(x='ab', l=[1], t=(1,)) %}{% for i in range(60) %}"

BOMBS = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops over nothing": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}"
    "{% endfor %}",
    "loops that write": "{% for i in range(100000) %}{% for j in range(100000) %}xxxxxxxxxx{% endfor %}"
    "{% endfor %}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a string times a number": "{{ 'x' * 10**9 }}",
    "a number times a string": "{{ 1000000000 * messages[0].content }}",
    "a list times a number": "{{ ([0] * 1000000000) | length }}",
    "a list of lists times": "{% set l = [[0] * 9999] * 9999 %}{{ l }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a variable": "{% set n = messages|length + 9 %}{{ n ** (n ** n) }}",
    "product": "{% set ns = namespace(n=3) %}{% for i in range(90) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}{{ ns.n }}",
    "center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ messages[0].content.ljust(1000000000) }}",
    "zfill by name": "{{ messages[0].content['zfill'](1000000000) }}",
    "the center filter": "{{ 'a' | center(1000000000) }}",
    "the center filter by name": "{{ ['a'] | map('center', 1000000000) | list }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(9999 * 9999) }}",
    "indent": "{{ ('\n' * 999999) | indent(99999) }}",
    "indent by text": "{{ ('\n' * 999999) | indent('x' * 99999) }}",
    "wordwrap": "{{ ('xy' * 999999) | wordwrap(1, wrapstring='x' * 99999) }}",
    "replace": "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
    "replace nothing": "{{ ('a' * 999999).replace('', 'b' * 999999) }}",
    "the replace filter": "{{ ('a' * 999999) | replace('a', 'b' * 999999) }}",
    "replace bytes": "{{ ('a' * 999999).encode().replace('a'.encode(), ('b' * 999999).encode()) | length }}",
    "join": "{{ ('x' * 999999).join('y' * 99999) }}",
    "the join filter": "{{ range(100000) | join('x' * 999999) }}",
    "join of one string many times": "{{ ([('x' * 9999999)] * 99999) | join }}",
    "map and join": "{{ range(100000) | map('string') | map('center', 9999) | join }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent many": "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
    "the format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format in format": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format many": "{{ ('{0}' * 99999).format('x' * 99999) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "doubling by plus": DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by tilde": DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by a block": DOUBLE
    + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling by a macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set ns.x = m(ns.x) %}{% endfor %}",
    "doubling by a filter": DOUBLE + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubling by a format": DOUBLE + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubling lists": DOUBLE + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "doubling nested lists": DOUBLE + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "doubling tuples": DOUBLE + "{% set ns.t = (ns.t + ns.t) | batch(2) | list %}{% endfor %}{{ {ns.t: 1} }}",
    "doubling namespaces": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set new = namespace() %}"
    "{% set new.a = ns.x %}{% set new.b = ns.x %}{% set ns.x = new %}{% endfor %}{{ ns.x }}",
    "batches": DOUBLE + "{% set ns.l = (ns.l + ns.l) | batch(2) | list %}{% endfor %}{{ ns.l | tojson }}",
    "keeping slices": "{% set ns = namespace(l=[], x='x' * 9999999) %}{% for i in range(10000) %}"
    "{% set ns.l = ns.l + [ns.x[i:]] %}{% endfor %}",
    "keeping copies": "{% set ns = namespace(l=[], x='x' * 9999999) %}{% for i in range(10000) %}"
    "{% set ns.l = ns.l + [ns.x.upper()] %}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(100) }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "itself in a namespace": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "json indented": "{{ messages | tojson(indent=1000000000) }}",
    "json deep and indented": DOUBLE
    + "{% set ns.l = [ns.l] %}{% endfor %}{{ ([ns.l] * 2000) | tojson(indent=64) * 99 }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "slice": "{{ [1] | slice(1000000000) | list | length }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "lipsum": "{{ lipsum(n=1000000000) }}",
    "sum of lists": "{{ ([range(99999) | list] * 999) | sum(start=[]) | length }}",
    "translate": "{{ ('a' * 99999).translate({97: 'x' * 99999}) }}",
    "many filters": "{% for i in range(100000) %}{{ range(100000) | sum }}{% endfor %}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_a_bomb_fails_at_once_and_stays_small(source: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.thread_time()
    with pytest.raises(ChatTemplateError, match="the model's chat template") as failure:
        ChatTemplate(source).render(USER)
    assert time.thread_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 512 * 1024
    assert len(str(failure.value)) < 200


@pytest.mark.parametrize(
    "source",
    ["(" * 5000 + ")" * 5000, "{{ " + "[" * 5000 + "]" * 5000 + " }}", "{% if 1 %}" * 2000, "x" * 2**21],
)
def test_an_absurd_template_does_not_break_the_compiler(source: str) -> None:
    began = time.thread_time()
    try:
        assert ChatTemplate(source).render(USER)
    except ChatTemplateError as error:
        assert len(str(error)) < 300
    assert time.thread_time() - began < 2


def test_the_next_render_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for i in range(n) %}{% for j in range(1000) %}{% endfor %}{% endfor %}x")
    with pytest.raises(ChatTemplateError):
        template.render(USER, n=100_000)
    assert template.render(USER, n=10) == "x"


def test_an_honest_long_conversation_is_within_the_limits() -> None:
    turns = [{"role": role, "content": "word " * 80} for role in ("user", "assistant")] * 5000
    template = ChatTemplate(
        "{% set ns = namespace(kept=[]) %}"
        "{% for m in messages %}{% if m.role != 'x' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<' + m.role + '>' + m['content'] | trim ~ '\n' }}{% endfor %}",
    )
    template.limits = TemplateLimits(cpu_s=10)  # of a machine that may be busy
    assert len(template.render(turns)) > 3_500_000


def test_a_prompt_longer_than_asked_for_says_how_long_it_is() -> None:
    with pytest.raises(PromptTooLongError) as failure:
        ChatTemplate("{{ messages[0].content * 10 }}").render(USER, max_chars=20)
    assert failure.value.chars == 10 * len(USER[0]["content"])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused the messages: roles must alternate"),
        (
            "{{ raise_exception('unknown role: ' + messages[0].content) }}",
            "refused the messages: unknown role: …",
        ),
        ("{{ raise_exception(messages[0].content) }}", "refused the messages: …"),
        ("{{ messages[0][messages[0].content].x }}", "failed on the messages: UndefinedError"),
        ("{{ {}[messages[0].content] + 1 }}", "failed on the messages: UndefinedError"),
        ("{{ messages[0].content | int + 'x' }}", "failed on the messages: TypeError"),
    ],
)
def test_errors_are_the_templates_words_and_never_the_clients(source: str, said: str) -> None:
    with pytest.raises(ChatTemplateError) as failure:
        ChatTemplate(source).render([{"role": "user", "content": "SECRET"}])
    assert str(failure.value).endswith(said)
