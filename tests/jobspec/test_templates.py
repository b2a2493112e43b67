"""Templates cannot reach Python, and no row can take a worker's memory or hours."""

from __future__ import annotations

import threading
import time
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError

from batchinfer.jobspec import PromptSpec
from batchinfer.jobspec.sandbox import MAX_WORK
from batchinfer.jobspec.templates import compile_template
from batchinfer.prompting.prompts import Prompt, PromptMaker


def rendered(template, **row):
    return compile_template(template).renderer()(row)


def refused(template, **row):
    """The message of what rendering raised."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever it raises becomes the row's error
        rendered(template, **row)
    return f"{type(caught.value).__name__}: {caught.value}"


ROW = {"text": "xy", "number": 99, "items": ["a", None], "nested": {"none": None, "word": "v"}}


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ dict.__subclasses__() }}",
        "{{ range.__globals__ }}",
        "{{ text | attr('__class__') | attr('__mro__') }}",
        "{{ [text] | sum(attribute='__class__') }}",
        "{{ '{a.__class__}'.format_map({'a': text}) }}",
        "{{ ('{0.__class__}' | attr('format'))(text) }}",
        "{% set f = '{0.__class__.__mro__}'.format %}{{ f(text) }}",
        "{{ (items | map('upper')).gi_frame.f_globals }}",
        "{{ missing.__class__ }}",
        "{{ nested.missing._undefined_exception }}",
        "{% for x in items %}{{ loop._iterator.__class__ }}{% endfor %}",
        "{% for x in items %}{{ loop }}{% endfor %}",
        "{{ range }}",
    ],
)
def test_a_known_way_out_of_the_sandbox_is_closed(attack):
    try:
        message = refused(attack, **ROW)
    except ValueError as error:  # a template that names what does not exist is refused as a whole
        message = str(error)
    assert "<class" not in message
    assert "0x" not in message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ [text] | map(attribute='__class__') | list }}", "missing"),
        ("{{ [text] | map(attribute='nosuch') | list }}", "missing"),
        ("{{ [text] | map('attr', 'nosuch') | list }}", "missing"),
        ("{{ [text] | map('attr', 'nosuch') | join(',') }}", "missing"),
        ("{{ [{'a': nested.nosuch}] }}", "missing"),
        ("{{ [nested.nosuch] ~ 'x' }}", "missing"),
        ("{{ '%s' % [nested.nosuch] }}", "missing"),
        ("{{ '{}'.format([nested.nosuch]) }}", "missing"),
        ("{{ [nested.nosuch] | string }}", "missing"),
        ("{{ [range] }}", "a word of the template language"),
        ("{{ [cycler('a'), 1] }}", "a word of the template language"),
        ("{{ namespace(a=1) }}", "a word of the template language"),
        ("{{ [text.upper] }}", "a word of the template language"),
        ("{{ [{'a': 1}] | groupby('a') | map(attribute='count') | list }}", "a word of the template language"),
        ("{{ ['a'] | map('upper') }}", "add `| list`"),
        ("{{ 'x' ~ (['a'] | map('upper')) }}", "add `| list`"),
        ("{{ ['a'] | map('upper') | string }}", "add `| list`"),
    ],
)
def test_only_data_reaches_a_prompt(template, words):
    message = refused(template, **ROW)
    assert message.startswith("UndefinedError")
    assert words in message


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ text * 10**10 }}",
        "{{ text * 10**8 }}",
        "{{ ([1] * 10**10) | length }}",
        "{{ (number ** number) ** (number ** number) }}",
        "{{ text | center(10**10) }}",
        "{{ text | indent(10**10) }}",
        "{{ text.ljust(10**10) }}",
        "{{ text.zfill(10**10) }}",
        "{{ '%0999999999d' % number }}",
        "{{ '%*d' % (10**9, number) }}",
        "{{ '{:>9999999999}'.format(text) }}",
        "{{ ('x' * 10000) | replace('x', 'x' * 10000) }}",
        "{{ ('x' * 10000).replace('x', 'x' * 10000) }}",
        "{{ range(99999) | join('x' * 99999) }}",
        "{{ text | list | slice(10**9) | list }}",
        "{% for i in range(10**9) %}{{ text }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ text }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set n = namespace(x=text) %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=text) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}{{ text }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ text }}",
        "{% set x %}{% for i in range(9999) %}{{ 'x' * 10000 }}{% endfor %}{% endset %}{{ x | length }}",
        "{{ lipsum(n=10**6) }}",
    ],
)
def test_a_row_that_would_take_the_workers_memory_or_hours_is_a_row_with_an_error(bomb):
    maker = PromptMaker(PromptSpec(template=bomb + "{{ text }}{{ number }}"))
    began = time.process_time()
    made = maker.prompts(pa.table({"text": ["xy", "ab"], "number": [99, 99], "lipsum": ["", ""]}))
    assert time.process_time() - began < 20
    assert [prompt.code for prompt in made] == ["template_error"] * 2
    assert all(len(prompt.message) <= 500 for prompt in made)


BIG = {"big": "a" * 100_000, "many": ["ab"] * 100_000, "table": {"97": 1}, "fields": "{0}" * 33_000, "text": "xy"}


@pytest.mark.integration
@pytest.mark.parametrize(
    "bomb",
    [
        "{{ big.join(many) }}",
        "{{ big.join(many | map('upper')) }}",
        "{{ many | join(big) }}",
        "{{ many | join(d=big) }}",
        "{{ many | map('upper') | join(big) }}",
        "{{ big.translate({97: big}) }}",
        "{{ big | replace('a', big) }}",
        "{{ big | replace(old='a', new=big) }}",
        "{{ big.replace('a', big, 99999) }}",
        "{{ fields.format(big) }}",
        "{{ ('%s' * 30000) | format(big) }}",
        "{{ ('%(a)s' * 30000) % {'a': big} }}",
        "{{ ('{a}' * 30000).format_map({'a': big}) }}",
        "{{ big | indent(60000000, true) }}{{ (big | replace('a', '\n')) | indent(60000) }}",
        "{{ (big | replace('a', '\n')) | indent(big) }}",
        "{{ big | wordwrap(1, wrapstring=big) }}",
        "{{ many | batch(60000000, 'x') | list }}",
        "{{ many | slice(60000000) | list }}",
        "{{ [many, many] | tojson(indent=60000000) }}",
        "{{ ('\t' * 1000).expandtabs(60000000) }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ y }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ y | string }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ y ~ '' }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ '%s' % (y,) }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ '{}'.format(y) }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ y | tojson }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ y | upper }}",
        "{% set x = [many] * 1000 %}{% set y = [x] * 1000 %}{{ y | join }}",
        "{{ (many * 1000) | list | length }}",
    ],
)
def test_the_limit_holds_before_the_memory_is_taken(bomb):
    render = compile_template(bomb + "{{ text }}").renderer()
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(SecurityError):
        render(BIG)
    assert time.process_time() - began < 15, "a second, without tracemalloc"
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


def test_a_text_of_ten_megabytes_is_an_ordinary_value():
    text = "ä" * 10_000_000
    template = "{% for i in range(3) %}{{ i }}{% endfor %}{{ text | upper | trim }} and {{ text ~ '!' }}"
    assert rendered(template, text=text) == f"012{text.upper()} and {text}!"
    assert len(text) * 6 < MAX_WORK


def test_each_row_has_the_whole_allowance():
    render = compile_template("{{ text * 5000000 }}").renderer()
    assert {len(render({"text": "xy"})) for _ in range(20)} == {10_000_000}


def test_threads_have_an_allowance_each():
    template = compile_template("{% for i in range(90000) %}{{ text }}{% endfor %}")
    found = []

    def work():
        render = template.renderer()
        found.extend(render({"text": "xy"}) == "xy" * 90_000 for _ in range(2))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


@pytest.mark.parametrize(
    "template",
    [
        "{{ nested.none | upper }}",
        "{{ nested.none | trim }}",
        "{{ nested.none | string }}",
        "{{ nested['none'] | title }}",
        "{{ nested.get('none') | upper }}",
        "{{ nested.none ~ 'x' }}",
        "{{ nested.get('none') ~ 'x' }}",
        "{{ [nested.none, 'x'] | join }}",
        "{{ items | join }}",
        "{{ '%s' % nested.none }}",
        "{{ '%s' | format(nested.none) }}",
        "{{ '{}'.format(nested.none) }}",
        "{% for x in items %}{{ x | upper }}{% endfor %}",
        "{% for x in items %}{{ x ~ '' }}{% endfor %}",
        "{% for k, v in nested.items() %}{{ v | upper }}{% endfor %}",
    ],
)
def test_a_null_inside_a_value_never_reads_none(template):
    assert refused(template, **ROW).startswith("UndefinedError")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ nested.none | default('-') }}", "-"),
        ("{{ nested.none or '-' }}", "-"),
        ("{% if nested.none is defined %}x{% endif %}-", "-"),
        ("{% for x in items if x %}{{ x }}{% endfor %}", "a"),
        ("{% for x in items %}{{ x | default('-') }}{{ loop.length }}{{ loop.last }}{% endfor %}", "a2false-2true"),
        ("{{ nested | tojson }}", '{"none": null, "word": "v"}'),
        ("{% for k in nested %}{{ k }}{% endfor %}", "noneword"),
        ("{{ items | length }}{{ number * 2 }}{{ 'a' ~ number ~ 'b' }}{{ '%05.1f' % number }}", "2198a99b099.0"),
        ("{{ [1, 'a', [2.5]] }}{{ {'k': [text]} }}{{ (1, 2) }}", '[1, "a", [2.5]]{"k": ["xy"]}[1, 2]'),
        ("{{ [{'a': 1, 'b': 2}] | groupby('a') | map('first') | list }}", "[1]"),
        ("{{ [3, 1] | sort | join('-') }}{{ 'a b' | wordwrap(1) }}{{ 'a\nb' | indent }}", "1-3a\nba\n    b"),
        ("{{ ', '.join(['a', 'b']) }}{{ 'ab'.translate({97: 'x'}) }}{{ 'a b'.split() }}", 'a, bxb["a", "b"]'),
        ("{{ {'a': 1} | tojson(indent=1) }}{{ [1, 2, 3] | batch(2) | list }}", '{\n "a": 1\n}[[1, 2], [3]]'),
        ("{{ text.format() }}{{ '{a}-{a}'.format(a=text) }}{{ '%s %s' | format(1, 'b') }}", "xyxy-xy1 b"),
        ("{{ 'a' * 3 }}{{ [1] + [2] }}{{ 2 ** 10 }}{{ '{:>5}'.format(text) }}", "aaa[1, 2]1024   xy"),
    ],
)
def test_what_the_language_can_do_it_still_does(template, text):
    assert rendered(template, **ROW) == text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ text | nosuch }}", "No filter named 'nosuch'"),
        ("{{ text is nosuch }}", "No test named 'nosuch'"),
        ("{{ " + "(" * 5000 + "text" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% if text %}" * 3000, "nested too deeply"),
        ("{% if text %}" * 200 + "{% endif %}" * 200, "nested too deeply"),
    ],
)
def test_a_template_that_cannot_run_is_refused_before_it_does(template, words):
    with pytest.raises(ValueError, match=words):
        compile_template(template)


def test_half_a_surrogate_pair_is_this_rows_error():
    made = PromptMaker(PromptSpec(template="{{ text }}{{ '\\ud800' }}")).prompts(pa.table({"text": ["a"]}))
    assert made[0].code == "prompt_invalid"
    chat = ['[{"role": "user", "content": "\\ud800"}]', '[{"role": "user", "content": "\\ud83d\\ude00"}]']
    made = PromptMaker(PromptSpec(messages_column="chat")).prompts(pa.table({"chat": chat}))
    assert made[0].code == "prompt_invalid"
    assert isinstance(made[1], Prompt)


VALUES = st.one_of(
    st.text(max_size=8), st.none(), st.integers(), st.booleans(), st.lists(st.text(max_size=2), max_size=2)
)
PIECES = st.lists(
    st.sampled_from(["{{ a }}", "{{ b }}", "{{range}}", " text ", "{# note #}", "ü\n"]), min_size=1, max_size=6
)


@given(PIECES.map("".join), st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=5))
def test_a_template_of_texts_and_names_gives_what_the_whole_language_gives(source, rows):
    template = compile_template(source)
    columns = dict(zip(("a", "b", "range"), map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    filled = template.fill({name: columns.get(name, []) for name in ("a", "b", "range")}, len(rows))
    assert len(filled) == len(rows)
    for text, (a, b, c) in zip(filled, rows, strict=True):
        if text is not None:
            assert text == rendered(source, a=a, b=b, range=c)


def test_rows_of_texts_are_filled_without_the_language_and_no_others():
    assert compile_template("<{{ a }}|{{ b }}>").fill({"a": ["x", "", None, 1], "b": ["y"] * 4}, 4) == [
        "<x|y>",
        "<|y>",
        None,
        None,
    ]
    for source in ("{{ a | upper }}", "{{ a.b }}", "{% if a %}{{ a }}{% endif %}", "{{ a }}{{ self }}"):
        assert compile_template(source).fill({"a": ["x"]}, 1) == [None]
    assert compile_template("{{ a }}{{ a }}").fill({"a": ["x" * (MAX_WORK // 2 + 1)]}, 1) == [None]
