"""The keys of labels, of pooling tasks and of `engine.extra`: what is refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec import JobSpec, parse
from batchinfer.prompting.choices import described
from batchinfer.prompting.prompts import needed_columns

SURE = {"uri": "o", "choices": ["a"], "confidence": True}
LABELS = {"billing": "invoices {and} payments", "outage": "nothing works"}


def refused(**keys: Any) -> str:
    import yaml

    base = {"name": "x", "model": {"source": "m"}, "input": {"uri": "in"}, "prompt": {"column": "text"}}
    with pytest.raises(SpecError) as error:
        parse(yaml.safe_dump(base | {"output": {"uri": "out"}} | keys))
    return error.value.message


def spec(**keys: Any) -> JobSpec:
    base = {"name": "x", "model": {"source": "m"}, "input": {"uri": "in"}, "prompt": {"column": "text"}}
    return JobSpec.model_validate(base | {"output": {"uri": "out"}} | keys)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"output": {"uri": "o", "confidence": True}}, "confidence needs choices"),
        ({"output": {"uri": "o", "multi_label": True}}, "multi_label needs choices"),
        ({"output": {"uri": "o", "choices": ["a"], "multi_label": True, "confidence": True}}, "is for one label"),
        ({"output": {"uri": "o", "choices": ["a"], "abstain_below": 0.5}}, "needs output.confidence"),
        (
            {"output": {"uri": "o", "choices": ["a"], "confidence": True}, "sampling": {"logprobs": 1}},
            "does not go with sampling.logprobs",
        ),
        (
            {"output": SURE, "input": {"uri": "i", "columns": ["output_confidence"]}},
            "would collide",
        ),
        ({"task": "score"}, "needs prompt.query"),
        ({"task": "score", "prompt": {"column": "t", "query": "{{ q }}", "chat": True}}, "leave prompt.chat out"),
        ({"task": "classify", "prompt": {"column": "t", "query": "{{ q }}"}}, "prompt.query is for task score"),
        ({"task": "classify", "output": {"uri": "o", "choices": ["a"]}}, "a label of its own"),
        ({"embed": {"dimensions": 8}}, "embed is for task embed"),
        ({"output": {"uri": "o", "embedding_type": "int8"}}, "is for task embed"),
        ({"engine": {"extra": {"max_num_seqs": 4}}}, "set engine.max_num_seqs"),
        ({"engine": {"extra": {"tensor_parallel_size": 4}}}, "set resources.tensor_parallel"),
        ({"engine": {"extra": {"distributed_executor_backend": "mp"}}}, "batchinfer sets itself"),
    ],
)  # fmt: skip
def test_a_key_that_cannot_apply_is_refused(keys: dict[str, Any], why: str) -> None:
    assert why in refused(**keys)


def test_descriptions_stand_where_the_template_says() -> None:
    made = spec(prompt={"template": "{{ choices }}\n{{ text }}"}, output={"uri": "o", "choices": LABELS})
    template = described(made).template
    assert template is not None
    assert "- billing: invoices {{ '{' }}and} payments" in template
    assert described(made).system is None
    assert list(needed_columns(made)) == ["text"]


def test_a_prompt_that_lists_its_labels_is_cut_in_its_only_column() -> None:
    cut = {"template": "{{ choices }}\n{{ text }}", "too_long": "truncate"}
    made = spec(prompt=cut, output={"uri": "o", "choices": LABELS})
    assert described(made).cut_column == "text"
    # A list of labels has no descriptions: then `choices` is a column, and nothing says which of the two to cut.
    assert "set truncate.column" in refused(prompt=cut, output={"uri": "o", "choices": ["billing", "outage"]})
    both = {"template": "{{ choices }} {{ text }} {{ topic }}", "too_long": "truncate"}
    assert "made of text, topic: set truncate.column" in refused(prompt=both, output={"uri": "o", "choices": LABELS})


def test_descriptions_follow_the_system_message_otherwise() -> None:
    made = spec(prompt={"column": "text", "system": "Be brief."}, output={"uri": "o", "choices": LABELS})
    assert described(made).system == (
        "Be brief.\n\nAnswer with one of these labels:\n- billing: invoices {and} payments\n- outage: nothing works"
    )


def test_a_list_of_labels_changes_no_prompt() -> None:
    made = spec(output={"uri": "o", "choices": ["billing", "outage"]})
    assert described(made) is made.prompt


def test_a_query_names_columns_of_the_input() -> None:
    made = spec(task="score", prompt={"column": "text", "query": "About {{ topic }}"})
    assert needed_columns(made) == {"text": "prompt.column", "topic": "prompt.query"}
