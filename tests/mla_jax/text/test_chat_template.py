import datetime
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_jax.errors import RequestError, TemplateError
from mla_jax.text import ChatTemplate, TemplateLimits

TOKENS = {"bos_token": "<｜begin｜>", "eos_token": "<｜end｜>"}

# In the manner of DeepSeek-V3's: system text first, then alternating turns, thoughts cut out of old answers.
DEEPSEEK_STYLE = """
{%- set ns = namespace(system="", waiting=false) -%}
{%- for message in messages if message.role == "system" -%}
    {%- set ns.system = ns.system + ("" if loop.first else "\\n\\n") + message["content"] -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- if tools -%}
    {{- "\\n\\n## Functions\\n" -}}
    {%- for tool in tools -%}
        {{- (tool | tojson) + "\\n" -}}
    {%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message["role"] == "system" -%}
        {%- continue -%}
    {%- endif -%}
    {%- if message["role"] == "user" -%}
        {{- "<｜User｜>" + message["content"] -}}
        {%- set ns.waiting = true -%}
    {%- elif message["role"] == "assistant" and message["content"] is none -%}
        {{- "<｜Assistant｜>" -}}
        {%- for call in message["tool_calls"] -%}
            {{- "<｜call｜>" + call.function.name + "(" + call.function.arguments + ")" -}}
        {%- endfor -%}
        {{- eos_token -}}
    {%- elif message["role"] == "assistant" -%}
        {%- set ns.waiting = false -%}
        {{- "<｜Assistant｜>" + message["content"].split("</think>")[-1] + eos_token -}}
    {%- elif message["role"] == "tool" -%}
        {{- "<｜result｜>" + message["content"] -}}
    {%- else -%}
        {{- raise_exception("unknown role " + message["role"]) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<｜Assistant｜>" + ("<think>" if thinking else "</think>") -}}
{%- endif -%}
"""


def user(content="hi"):
    return [{"role": "user", "content": content}]


def render(source, messages=None, **options):
    # Time enough for a crowded machine: what is too slow has tests of its own.
    template = ChatTemplate(source, special_tokens=TOKENS, limits=TemplateLimits(seconds=60.0))
    return template.render(messages or user(), **options)


def test_deepseek_style():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 😀"},
        {"role": "assistant", "content": "<think>hm</think>Hello."},
        {"role": "system", "content": "Still."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    begin = "<｜begin｜>Be brief.\n\nStill."
    turns = "<｜User｜>你好 😀<｜Assistant｜>Hello.<｜end｜><｜User｜>a\nb"
    assert render(DEEPSEEK_STYLE, messages) == begin + turns + "<｜Assistant｜></think>"
    assert render(DEEPSEEK_STYLE, messages, thinking=True) == begin + turns + "<｜Assistant｜><think>"
    assert render(DEEPSEEK_STYLE, messages, add_generation_prompt=False) == begin + turns
    tool = {"name": "wetter", "description": "für <Köln>"}
    functions = '\n\n## Functions\n{"name": "wetter", "description": "für <Köln>"}\n'
    assert (
        render(DEEPSEEK_STYLE, messages, tools=[tool])
        == begin + functions + turns + "<｜Assistant｜></think>"
    )


def test_tool_calls_keep_their_empty_content():
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    messages = [
        *user(),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3"},
    ]
    expected = "<｜begin｜><｜User｜>hi<｜Assistant｜><｜call｜>f({})<｜end｜><｜result｜>3"
    assert render(DEEPSEEK_STYLE, messages, add_generation_prompt=False) == expected
    without = [{"role": "assistant", "tool_calls": calls}]
    assert render("{{ messages[0].content is defined }}", without) == "False"


def test_template_refuses_messages():
    with pytest.raises(TemplateError, match=r"line \d+: refuses these messages: unknown role judge"):
        render(DEEPSEEK_STYLE, [{"role": "judge", "content": ""}])


def test_dialect():
    assert render("{% if true %}\n  a\n  {% endif %}\nb\n") == "  a\nb"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.date.today().year + i) for i in (-1, 0, 1)}
    assert render("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'
    assert (
        render("{{ {'b': 'é', 'a': 1} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 1,\n "b": "é"\n}'
    )
    assert render("{{ [1] | tojson(separators=(',', ':'), ensure_ascii=true) }}") == "[1]"
    assert render("{% generation %}{{ 1 }}{% endgeneration %}") == "1"
    assert render("{{ dict(a=1).a }}{{ namespace(self=2).self }}") == "12"
    assert render("[{{ nothing }}][{{ tools }}][{{ documents }}]") == "[][None][None]"
    assert render("{{ bos_token }}{{ eos_token }}{{ pad_token }}") == "<｜begin｜><｜end｜>"
    assert render("{{ bos_token }}", bos_token="x") == "x"
    assert render("<&>{{ messages[0].content }}", user("<&>")) == "<&><&>"


@settings(deadline=None)
@given(st.text())
def test_text_arrives_unchanged(text):
    assert render("{{ messages[0].content }}", user(text)) == text


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_variables_arrive_unchanged(value):
    assert json.loads(render("{{ value | tojson }}", value=value)) == value


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("a\n{% if %}", 2, "is not valid Jinja"),
        ("a\n{% nope %}", 2, "is not valid Jinja"),
        ("{{ 'a", 1, "is not valid Jinja"),
        ("a\n\n{{ 1 / 0 }}", 3, "ZeroDivisionError"),
        ("\n{{ messages[0].nope.nope }}", 2, "no attribute 'nope'"),
        ("\n{{ messages[0].content + 1 }}", 2, "TypeError"),
        ("\n{{ raise_exception() }}", 2, "refuses these messages"),
        ("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}", 2, "ZeroDivisionError"),
        ("{% include 'x' %}", 1, "no loader"),
        ("{{ nothing | tojson }}", 1, "not JSON serializable"),
    ],
)
def test_errors_name_template_and_line(source, line, reason):
    with pytest.raises(TemplateError, match=reason) as error:
        ChatTemplate(source, name="chat template 'x'").render(user())
    assert str(error.value).startswith(f"chat template 'x', line {line}: ")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ''|attr('__class__')|attr('mro') }}",
        "{{ tojson.__code__ }}",
        "{{ messages[0].content.__init__.__globals__ }}",
        "{{ (''|attr('format'))('{0.__class__}') }}",
    ],
)
def test_the_sandbox_holds(source):
    """Either refused, or the forbidden attribute is undefined and renders as nothing."""
    try:
        text = render(source)
    except TemplateError:
        return
    assert text == ""


LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (LOOP, r"was not done after 0\.5 s"),
        ("{{ lipsum(n=99999) }}", r"was not done after 0\.5 s"),
        ("{{ 10 ** (10 ** 9) }}", r"was not done after 0\.5 s|memory"),
        ("{{ 'a' * 10 ** 12 }}", "needed more than"),
        ("{{ ['a'] * 10 ** 9 }}", r"needed more than|was not done after 0\.5 s"),
        ("{{ 'a' | center(10 ** 11) }}", "needed more than"),
        ("{{ '%9999999999d' | format(1) }}", "needed more than|failed"),
        ("{{ 'ab' | replace('', 'a' * 10 ** 6) | replace('a', 'a' * 10 ** 6) }}", "needed more than"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "gave more than 8000000 characters"),
        ("{{ messages[0].content * 9000000 }}", "gave more than 8000000 characters"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}" * 2000 + "{{ m() }}", "RecursionError|not done"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "RecursionError|brought its process down"),
        ("{{ " + "-" * 50_000 + "1 }}", "RecursionError|brought its process down"),
        ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "failed|brought its process down|not valid Jinja"),
        ("{{ x }}" * 140_000, r"was not done after 0\.5 s|needed more than"),
        (
            "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            r"needed more than|was not done after 0\.5 s",
        ),
    ],
)
def test_hostile_templates_end_soon(source, reason):
    # Where another limit has to strike, a crowded machine gets the time that it needs.
    seconds = 0.5 if "not done" in reason else 60.0
    template = ChatTemplate(source, limits=TemplateLimits(seconds=seconds))
    with pytest.raises(TemplateError, match=reason) as error:
        template.render(user())
    assert len(str(error.value)) < 1000
    assert render("{{ messages[0].content }}") == "hi"


def test_default_time_limit():
    with pytest.raises(TemplateError, match=r"was not done after 2\.0 s"):
        ChatTemplate(LOOP).render(user())


def test_one_render_cannot_prepare_the_next():
    """Each template has an environment of its own, so what it manages to change is its own."""
    render("{% set bos_token = 'x' %}{% macro user() %}{% endmacro %}")
    with pytest.raises(TemplateError):
        render("{{ range.__dict__.update(a=1) }}")
    assert render("{{ bos_token }}{{ user }}") == "<｜begin｜>"


@pytest.mark.parametrize("source", [None, 3, b"a", ["a"]])
def test_source_that_is_no_text(source):
    with pytest.raises(TemplateError, match="expected a string"):
        ChatTemplate(source)


def test_limits_of_the_request():
    with pytest.raises(TemplateError, match="at most 5 characters, got 6"):
        ChatTemplate("a" * 6, limits=TemplateLimits(template_chars=5))
    limited = ChatTemplate("", limits=TemplateLimits(messages=2, request_bytes=2000))
    with pytest.raises(RequestError, match="messages: expected at most 2, got 3"):
        limited.render(user() * 3)
    with pytest.raises(RequestError, match="at most 2000 bytes of JSON"):
        limited.render(user("中" * 400))
    with pytest.raises(RequestError, match="at most 2000 bytes of JSON"):
        limited.render(user(), x="a" * 2000)


@pytest.mark.parametrize("name", ["documents"])
def test_reserved_variables(name):
    with pytest.raises(RequestError, match=f"^{name}: cannot be given"):
        render("", **{name: []})


@pytest.mark.parametrize("value", [object(), float("nan"), print, {1: 2}, b"a"])
def test_variables_are_json(value):
    with pytest.raises(RequestError, match=r"^variables\.x: expected"):
        render("", x=value)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_generation_prompt_is_a_bool(value):
    with pytest.raises(RequestError, match="add_generation_prompt: expected True or False"):
        render("", add_generation_prompt=value)


def test_a_long_conversation():
    messages = [{"role": ("user", "assistant")[i % 2], "content": "深度求索" * 50} for i in range(5000)]
    assert len(render(DEEPSEEK_STYLE, messages)) > 1_000_000


def test_warnings_as_errors_and_a_clean_exit():
    code = "from mla_jax.text import ChatTemplate as C; print(C('{{ 1 }}').render([{'role': 'a', 'content': ''}]))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
