from __future__ import annotations

import pytest

from batchinfer.errors import ROW_ERROR_CODES, UserError
from batchinfer.execution.retried_rows import advice_before_retry
from tests.support.builders import make_spec

BY_INPUT = (
    *("input_invalid", "prompt_empty", "prompt_invalid", "template_error", "prompt_too_long"),
    *("request_invalid", "model_not_found"),
)
OF_THE_ROW = (*BY_INPUT, "sampling_invalid")
SAMPLED = {"sampling": {"temperature": 0.7}}


@pytest.mark.parametrize("code", BY_INPUT)
def test_a_retry_of_rows_whose_prompts_stay_as_they_are_is_refused(code):
    with pytest.raises(UserError, match=f"none of the 3 failed rows can succeed in a retry.*3 {code}"):
        advice_before_retry(make_spec(), {code: 3}, ["sampling.max_tokens", "sampling.temperature"])


def test_rows_that_a_retry_cannot_help_are_counted_beside_others():
    told = advice_before_retry(make_spec(**SAMPLED), {"prompt_empty": 2, "engine_killed": 1}, [])
    assert told == "2 of 3 failed rows fail again, since their rows stay: 2 prompt_empty"


def test_a_rows_own_sampling_may_be_right_under_other_sampling_of_the_job():
    with pytest.raises(UserError, match="none of the 2 failed rows can succeed"):
        advice_before_retry(make_spec(), {"sampling_invalid": 2}, ["engine.max_num_seqs"])
    assert advice_before_retry(make_spec(), {"sampling_invalid": 2}, ["sampling.max_tokens"]) is None


def test_a_longer_context_may_help_prompts_that_were_too_long():
    assert advice_before_retry(make_spec(), {"prompt_too_long": 2}, ["engine.max_model_len"]) is None


def test_the_same_question_at_temperature_0_gets_the_same_answer():
    told = advice_before_retry(make_spec(), {"output_invalid": 5}, [])
    assert told is not None
    assert told.startswith("5 output_invalid rows most likely get the same answers at temperature 0: ")
    assert advice_before_retry(make_spec(), {"output_invalid": 5}, ["sampling.max_tokens"]) is None
    assert advice_before_retry(make_spec(**SAMPLED), {"output_invalid": 5}, []) is None


@pytest.mark.parametrize("code", sorted(ROW_ERROR_CODES.keys() - set(OF_THE_ROW)))
def test_rows_that_failed_for_another_reason_are_retried_without_a_word(code):
    assert advice_before_retry(make_spec(**SAMPLED), {code: 1}, []) is None
