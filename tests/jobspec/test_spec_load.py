from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchinfer.errors import SpecError
from batchinfer.jobspec import JobSpec, key_values, load, parse, to_yaml
from batchinfer.jobspec.explain import explain
from tests.support.builders import make_spec, spec_text

LEAST = """\
name: a-job
model: {source: scripted}
input:
  uri: /in
prompt:
  template: "{{ text }}"
output:
  uri: /out
"""


def refusal(text, overrides=()):
    with pytest.raises(SpecError) as caught:
        parse(text, "job.yaml", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("  colunm: x", "job.yaml:9: output.colunm: unknown key; did you mean 'column'?"),
        ("sampling:\n  max_token: 3", "job.yaml:10: sampling.max_token: unknown key; did you mean 'max_tokens'?"),
        ("samplign: {}", "job.yaml:9: samplign: unknown key; did you mean 'sampling'?"),
        ("engine: {scripted: {load_second: 1}}", "scripted.load_second: unknown key; did you mean 'load_seconds'?"),
        ("shards: {zzz: 1}", "job.yaml:9: shards.zzz: unknown key; the keys here are rows, max_bytes"),
        ("resources:\n  replicas:\n    mim: 1\n    max: 2", "job.yaml:11: resources.replicas.mim: unknown key"),
        ("1: x", "job.yaml:9: 1: keys should be strings, not 1"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_that_exists(extra, message):
    assert message in refusal(LEAST + extra + "\n")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("sampling: {max_tokens: many}", "job.yaml:9: sampling.max_tokens: input should be a valid integer"),
        ("sampling: {max_tokens: 0}", "sampling.max_tokens: input should be greater than or equal to 1, not 0"),
        ("sampling: {max_tokens: 1.5}", "sampling.max_tokens: input should be a valid integer"),
        ("sampling: {temperature: .nan}", "sampling.temperature: input should be a finite number"),
        ("limits:\n  max_error_rate: 5", "job.yaml:10: limits.max_error_rate: input should be less than or equal to 1"),
        ("resources: {accelerator: H900}", "resources.accelerator: there is no 'H900': did you mean H200"),
        ("resources: {accelerator: A100}", "there is no 'A100': did you mean A100-40GB or A100-80GB or A10?"),
        ("resources: {accelerator: nvidia}", "there is no 'nvidia': it takes auto, cpu, T4"),
        ("engine: 3", "engine: input should be a valid dictionary"),
        ("sampling:", "job.yaml:9: sampling: input should be a valid dictionary"),
        ("sampling: {min_tokens: -0x" + "f" * 4000 + "}", "not a number of thousands of digits"),
        ("schedule: {cron: x, timezone: Mars/Olympus}", "schedule.timezone: there is no time zone 'Mars/Olympus'"),
    ],
)
def test_a_wrong_value_is_shown_with_its_key_and_line(extra, message):
    assert message in refusal(LEAST + extra + "\n")


@pytest.mark.parametrize("word", ["yes", "on", "true", "no"])
@pytest.mark.parametrize("key", ["sampling.max_tokens", "sampling.temperature", "shards.rows", "resources.replicas"])
def test_a_yes_is_no_number(key, word):
    section, name = key.split(".")
    message = refusal(LEAST + f"{section}: {{{name}: {word}}}\n")
    assert message.startswith(f"job.yaml:9: {key}: ")
    assert "is read by YAML as true or false" in message


def test_a_yes_among_numbers_is_no_number():
    message = refusal(LEAST + "sampling: {stop_token_ids: [3, yes]}\n")
    assert message.startswith("job.yaml:9: sampling.stop_token_ids: true is read by YAML as true or false")


def test_a_yes_where_it_is_meant_is_true():
    assert parse(LEAST + "sampling: {ignore_eos: yes}\n").sampling.ignore_eos is True


@pytest.mark.parametrize(
    ("choices", "numbers"), [("[yes, no]", (0, 1)), ("[ja, 1.10]", (1,)), ("[2026-01-01]", (0,)), ("[null, a]", (0,))]
)
def test_a_choice_that_yaml_reads_as_another_type_must_be_quoted(choices, numbers):
    message = refusal(LEAST + f"  choices: {choices}\n")
    assert [n for n in range(3) if f"output.choices.{n}: " in message] == list(numbers)
    assert message.count("put it in quotes") == len(numbers)
    assert "at least 1 item" not in message


def test_quoted_choices_are_the_texts_they_look_like():
    assert parse(LEAST + "  choices: ['yes', \"no\", '1.10']\n").output.choices == ("yes", "no", "1.10")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("{nam: a, prompt: x}", "steps.0.nam: unknown key; did you mean 'name'?"),
        (
            "{name: a, prompt: {template: '{{ x }}', sytem: s}}",
            "steps.0.prompt.sytem: unknown key; did you mean 'system'?",
        ),
        ("{name: a, prompt: '{{ x }}', sampling: {n: 0}}", "steps.0.sampling.n: "),
    ],
)
def test_a_mistake_in_a_step_is_named_with_its_line(step, words):
    known = yaml.safe_load(LEAST)
    del known["prompt"]
    text = yaml.safe_dump(known) + f"steps:\n- {step}\n"
    assert words in refusal(text)
    assert f"job.yaml:{text.count(chr(10))}: " in refusal(text)


def test_a_job_without_any_prompt_is_told_both_keys():
    known = json.loads(spec_text())
    del known["prompt"]
    told = "job.yaml: prompt: this key is missing (or steps, for several prompts a row)"
    assert refusal(json.dumps(known)) == told


@pytest.mark.parametrize("section", ["name", "model", "input", "output"])
def test_a_section_that_is_missing_is_named(section):
    known = json.loads(spec_text())
    del known[section]
    assert refusal(json.dumps(known)) == f"job.yaml: {section}: this key is missing"


def test_a_key_that_is_missing_in_a_section_is_named_with_the_sections_line():
    assert refusal(LEAST.replace("  uri: /in", "  format: parquet")) == "job.yaml:3: input.uri: this key is missing"


def test_several_mistakes_are_told_at_once():
    message = refusal(LEAST + "sampling: {n: 0}\nlimits: {max_error_rate: x}\nfoo: 1\n")
    assert message.startswith("3 mistakes:\n")
    assert all(word in message for word in ("sampling.n", "limits.max_error_rate", "foo: unknown key"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "resources.replicas: should be auto, a number from 1, or {min: N, max: N}, not 0"),
        ("many", "resources.replicas: should be auto, a number from 1, or {min: N, max: N}, not 'many'"),
        ("[1]", "resources.replicas: should be auto, a number from 1, or {min: N, max: N}"),
        ("{min: 3, max: 1}", "resources.replicas: min is above max"),
        ("{min: 0, max: 1}", "resources.replicas.min: input should be greater than or equal to 1, not 0"),
        ("{min: 1}", "resources.replicas.max: this key is missing"),
    ],
)
def test_a_key_of_several_types_gets_one_message_that_says_them_all(value, message):
    assert refusal(LEAST + f"resources: {{replicas: {value}}}\n") == f"job.yaml:9: {message}"


@pytest.mark.parametrize("key", ["resources.tensor_parallel", "resources.pipeline_parallel", "shards.rows"])
def test_auto_or_a_number_says_so(key):
    section, name = key.split(".")
    message = refusal(LEAST + f"{section}: {{{name}: few}}\n")
    assert message == f"job.yaml:9: {key}: should be auto or a number from 1, not 'few'"


@pytest.mark.parametrize("value", ["auto", 3, {"min": 1, "max": 8}])
def test_each_form_of_replicas_is_read(value):
    read = make_spec(resources={"replicas": value}).resources.replicas
    assert (read.model_dump() if isinstance(value, dict) else read) == value


def test_an_override_reaches_a_nested_key_and_a_section_that_the_file_lacks():
    spec = parse(LEAST, overrides=["sampling.max_tokens=32", "output.uri=/other", "engine.scripted.answer=a=b"])
    assert (spec.sampling.max_tokens, spec.output.uri, spec.engine.scripted.answer) == (32, "/other", "a=b")


def test_an_override_is_a_yaml_value():
    spec = parse(
        LEAST, overrides=["output.choices=[a, 'no']", "resources.replicas={min: 1, max: 2}", "model.revision="]
    )
    assert spec.output.choices == ("a", "no")
    assert spec.resources.replicas.max == 2
    assert spec.model.revision is None


def test_the_last_override_of_a_key_wins():
    assert parse(LEAST, overrides=["sampling.n=0", "sampling.max_tokens=2", "sampling.n=1"]).sampling.n == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.max_tokens", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("name.x=1", "'name' is not a mapping in this spec"),
        ("sampling.max_tokens={", "'{' is not a YAML value"),
        ("x=!!timestamp foo", "is not a YAML value"),
        ("x=" + "[" * 600, "is not a YAML value"),
        ("sampling.max_tokns=3", "sampling.max_tokns: unknown key; did you mean 'max_tokens'?"),
        ("sampling.max_tokens=few", "sampling.max_tokens: input should be a valid integer"),
        ("a..b=1", "a: unknown key"),
    ],
)
def test_a_wrong_override_is_refused_like_a_wrong_key(override, message):
    assert message in refusal(LEAST, [override])


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("  colunm: x", "output"),
        ("samplign: {}", ""),
        ("sampling: {n: 0}", "sampling.n"),
        ("resources: {replicas: {min: 0, max: 2}}", "resources.replicas.min"),
        ("storage: {s3://a: {regoin: x}}", "storage"),
        ("  choices: [no]", "output.choices"),
        ("sampling: {n: 0, top_p: 7}", "KEY"),
    ],
)
def test_the_remedy_names_the_command_that_explains_the_key(extra, key):
    with pytest.raises(SpecError) as caught:
        parse(LEAST + extra + "\n")
    assert caught.value.remedy == f"`{f'batchinfer explain {key}'.strip()}` says what belongs there"
    assert key == "KEY" or explain(key).path == key


def test_the_pairs_of_an_option_keep_their_order_and_what_follows_the_first_equals_sign():
    assert key_values("--label", ["b=1=2", "a=", "b=3"], "team=search") == [("b", "1=2"), ("a", ""), ("b", "3")]


def test_a_pair_that_no_file_could_hold_is_refused():
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        key_values("--label", ["team=\udcff"], "team=search")


@pytest.mark.parametrize("text", ["team", "=search", ""])
def test_what_is_no_pair_is_refused_with_an_example(text):
    with pytest.raises(SpecError, match=f"--label {text!r} is not KEY=VALUE") as caught:
        key_values("--label", ["a=b", text], "team=search")
    assert caught.value.remedy == "write for example --label team=search"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "job.yaml: a spec is a mapping of keys, not empty"),
        ("- a\n", "job.yaml: a spec is a mapping of keys, not a list"),
        ("just words", "job.yaml: a spec is a mapping of keys, not a str"),
        ("name: a\nmodel: [\n", "job.yaml:3: not valid YAML"),
        ("name: a\n b: c\n", "job.yaml:2: not valid YAML: mapping values are not allowed here"),
        ("name: \x00", "job.yaml: not valid YAML: unacceptable character"),
        ("x: !!python/object:os.system y", "job.yaml:1: not valid YAML: could not determine a constructor"),
        ("x: 2026-13-45", "job.yaml: not usable YAML: month must be in 1..12"),
        ("x: !!timestamp foo", "job.yaml: not usable YAML"),
        ("x: !!int ''", "job.yaml: not usable YAML"),
        ("x: !!bool maybe", "job.yaml: not usable YAML"),
        ("a: 1\n---\nb: 2\n", "job.yaml:2: not valid YAML: but found another document"),
        ("{" * 600, "job.yaml: not usable YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_its_place(text, message):
    assert refusal(text).startswith(message)


def test_a_spec_is_loaded_from_its_file_with_the_overrides(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(LEAST)
    assert load(str(path), ["name=other"]).name == "other"
    assert load(path).name == "a-job"


def test_a_mistyped_path_names_the_file_that_is_meant(tmp_path):
    (tmp_path / "summarize.yaml").write_text(LEAST)
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "sumarize.yaml")
    assert str(caught.value) == f"there is no spec at {tmp_path}/sumarize.yaml"
    assert caught.value.remedy == f"did you mean {tmp_path}/summarize.yaml?"


def test_a_folder_is_no_spec(tmp_path):
    with pytest.raises(SpecError, match=f"cannot read {tmp_path}: Is a directory"):
        load(tmp_path)


def test_bytes_that_are_no_text_are_no_spec(tmp_path):
    (tmp_path / "job.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        load(tmp_path / "job.yaml")


def test_every_key_survives_being_written_and_read_again():
    spec = make_spec(
        model={"source": "a/b", "quantization": "fp8", "revision": "1e3", "dtype": "float32"},
        input={"uri": "/in/*.parquet", "id_column": "id", "columns": ["no", "1.10", "é"]},
        prompt={"system": "two\nlines: {x}", "template": "{{ text }}\n\n# {{ b }}", "chat": True},
        sampling={"stop": ["\n"], "bad_words": ["yes"], "logit_bias": {"5": -1.5}, "temperature": 1e-7, "logprobs": 3},
        output={"uri": "/out", "json_schema": {"type": "object", "properties": {"a": {"enum": [None, "null", 1]}}}},
        resources={"replicas": {"min": 1, "max": 4}, "price_per_gpu_hour": 0},
        engine={"scripted": {"answer": "off"}, "max_model_len": 128},
        schedule={"cron": "0 2 * * *", "timezone": "Europe/Berlin"},
        evaluate={"expected": "area", "by": "split"},
    )
    assert parse(to_yaml(spec)) == spec


def test_keys_that_were_not_set_are_not_written():
    assert set(to_yaml(make_spec()).replace(":", " ").split()) & {"sampling", "engine", "limits", "schedule"} == set()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates() | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.none() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=8,
)


def outcome(text, overrides=()):
    """A JobSpec, or None for a SpecError; any other exception fails the test."""
    try:
        return parse(text, overrides=overrides)
    except SpecError:
        return None


@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=60))
@example(text="!!int _")
@example(text="0001-01-01T00:00:00+23:59")
@example(text="&a [*a]")
def test_any_text_is_a_spec_or_a_spec_error(text):
    assert outcome(text) is None or isinstance(outcome(text), JobSpec)


@settings(deadline=None, max_examples=100)
@given(text=st.text(alphabet="ab:-[]{}&*!?|>'\"#%@,. \n\t0~=<", max_size=40))
def test_any_run_of_yamls_own_characters_is_refused_in_words(text):
    assert outcome(LEAST + text) is None or outcome(LEAST + text).name == "a-job"


@st.composite
def one_key_changed(draw):
    known = json.loads(spec_text())
    section = draw(st.sampled_from(list(JobSpec.model_fields)))
    annotation = str(JobSpec.model_fields[section].annotation)
    if draw(st.booleans()) or "Spec" not in annotation:
        known[section] = draw(VALUES)
    else:
        model = getattr(make_spec(), section) or {}
        keys = list(getattr(type(model), "model_fields", {})) or ["expected", "cron"]
        known[section] = {**(known.get(section) or {}), draw(st.sampled_from(keys)): draw(VALUES)}
    return known


@settings(deadline=None, max_examples=300)
@given(known=one_key_changed())
@example(known=json.loads(spec_text(output={"uri": "/o", "json_schema": {"$schema": [1]}})))
@example(known=json.loads(spec_text(output={"uri": "/o", "json_schema": {"$schema": 5}})))
@example(known=json.loads(spec_text(output={"uri": "/o", "regex": "(" * 3000})))
@example(known=json.loads(spec_text(output={"uri": "/o", "regex": "a{99999999999999999999}"})))
def test_any_value_under_any_key_is_accepted_for_good_or_refused_in_words(known):
    spec = outcome(yaml.safe_dump(known))
    assert spec is None or parse(to_yaml(spec)) == spec


def test_a_schema_that_holds_itself_is_refused():
    assert "holds what JSON cannot say" in refusal(LEAST + "  json_schema: &s {properties: {a: *s}}\n")


def test_a_key_that_is_there_twice_is_refused_with_its_line():
    with pytest.raises(SpecError, match="spec:3: the key 'n' is there twice"):
        parse("sampling:\n  n: 1\n  n: 2\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.max_tokens=many", "--set sampling.max_tokens: input should be a valid integer"),
        ("sampling.max_tokenz=3", "--set sampling.max_tokenz: unknown key"),
        ("modle.source=x", "--set modle.source: modle: unknown key; did you mean 'model'?"),
        ("input.columns=[a, 3]", "--set input.columns: input.columns.1: "),
        ("name=a b", "--set name: "),
        ("sampling.max_tokens=[3", "--set sampling.max_tokens: '[3' is not a YAML value"),
    ],
)
def test_a_mistake_of_an_override_names_the_override_and_no_line_of_the_file(override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(spec_text(sampling={"max_tokens": 8}), "job.yaml", [override])
    assert str(caught.value).startswith(message)
    assert "job.yaml" not in str(caught.value)


def test_a_mistake_of_the_file_names_its_line_beside_an_override() -> None:
    with pytest.raises(SpecError, match=r"^job\.yaml:1: sampling\.max_tokens: "):
        parse(spec_text(sampling={"max_tokens": "many"}), "job.yaml", ["sampling.temperature=0"])


@pytest.mark.parametrize("template", ["{{ text }}", "Say: {{ text }}", "{% if text %}{{ text }}{% endif %}"])
def test_a_template_needs_no_quotes_of_yaml_in_an_override(template: str) -> None:
    assert parse(spec_text(), overrides=[f"prompt.template={template}"]).prompt.template == template
