"""From which volume a month own GPUs are cheaper than an API, and what articles say of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.accounting.break_even import HOURS_OF_A_MONTH, apis_beside_report, break_even, compared
from batchinfer.catalog.api_prices import ApiPrice, api_prices, prices_source
from tests.support.builders import make_report_value

RENT = 2.69 * HOURS_OF_A_MONTH


def month(tokens_per_second: float) -> float:
    return tokens_per_second * 3600 * HOURS_OF_A_MONTH


def blended(input_usd: float, output_usd: float, input_tokens: float, output_tokens: float) -> float:
    price = ApiPrice(provider="p", model="m", same_model=False, input_usd=input_usd, output_usd=output_usd)
    return price.usd(input_tokens, output_tokens) / (input_tokens + output_tokens) * 1e6


# The figures of docs/how-to/api-or-own-gpus.md.
@pytest.mark.parametrize(
    ("per_million", "tokens"),
    [
        (blended(2, 6, 845, 155), 750e6),
        (blended(2, 6, 500, 300), 561e6),
        (982.0, 2e6),
        (30.0, 65e6),
    ],
)
def test_the_volumes_of_the_articles_follow_from_a_months_rent(per_million, tokens):
    assert break_even(RENT, month(100), per_million).tokens_per_month == pytest.approx(tokens, rel=0.01)


def test_at_the_articles_own_speed_an_api_is_cheaper_at_any_volume():
    assert break_even(RENT, month(100), 3.5).utilization == pytest.approx(2.13, rel=0.01)
    assert 750e6 / month(100) == pytest.approx(2.85, rel=0.01)
    assert pytest.approx(9.34, abs=0.01) == 2.69 / (100 * 0.8 * 3600) * 1e6


@pytest.mark.parametrize(
    ("rent", "tokens_per_second", "api", "utilization"),
    [
        (RENT, 30_440, 3.5, 0.007),
        (RENT, 37_200, 3.5, 0.0057),
        (2 * RENT, 8_410, 3.5, 0.051),
        (RENT, 30_440, 0.18, 0.136),
        (RENT, 30_440, 0.09, 0.273),
        (2 * RENT, 8_410, 0.88, 0.20),
    ],
)
def test_measured_speeds_say_how_busy_the_gpu_has_to_be(rent, tokens_per_second, api, utilization):
    assert break_even(rent, month(tokens_per_second), api).utilization == pytest.approx(utilization, rel=0.02)


@given(st.floats(1, 1e5), st.floats(1, 1e12), st.floats(0.01, 100))
def test_at_the_break_even_both_cost_the_same_and_busy_is_the_ratio_of_the_prices(rent, capacity, api):
    made = break_even(rent, capacity, api)
    assert made.tokens_per_month / 1e6 * api == pytest.approx(rent)
    assert made.utilization == pytest.approx(rent / capacity * 1e6 / api)


@pytest.mark.parametrize("given", [(0.0, 1e9, 1.0), (100.0, None, 1.0), (100.0, 1e9, 0.0), (100.0, 1e9, None)])
def test_without_a_rent_a_speed_or_a_price_there_is_none(given):
    assert break_even(*given) is None


def test_the_tokens_of_a_job_at_list_and_batch_prices():
    price = ApiPrice(
        provider="p", model="m", same_model=False, input_usd=1, output_usd=4, batch_input_usd=0.5, batch_output_usd=2
    )
    made = compared([price], 3e6, 1e6, own_cost_usd=1.0, usd_per_month=700.0, tokens_per_second=1000)
    (one,) = made.apis
    assert (one.cost_usd, one.batch_cost_usd, one.usd_per_million_tokens) == (7.0, 3.5, 1.75)
    assert one.batch_break_even.tokens_per_month == 2 * one.break_even.tokens_per_month == pytest.approx(8e8)


def test_the_same_model_is_first_and_providers_with_batch_prices_follow():
    found = api_prices("llama-3.3-70b")
    same = [price for price in found if price.same_model]
    assert same
    assert found[: len(same)] == tuple(same)
    assert {price.provider for price in found} >= {"openai", "anthropic", "google", "mistral"}
    for price in found[len(same) :]:
        assert price.batch_usd(1e6, 1e6) == pytest.approx(price.usd(1e6, 1e6) / 2)
    assert "genai-prices" in prices_source()


def test_a_model_that_no_host_has_is_beside_the_others_alone():
    assert not any(price.same_model for price in api_prices("runs/my-own"))


def test_a_report_is_compared_at_the_speed_that_it_measured():
    report = make_report_value(input_tokens=8_000, output_tokens=2_000)
    made = apis_beside_report(report)
    devices = made.own_usd_per_month / HOURS_OF_A_MONTH / report.price_per_gpu_hour
    speed = 10_000 / (report.seconds.work / devices)
    assert made.own_tokens_per_month == pytest.approx(month(speed))
    assert apis_beside_report(report.model_copy(update={"task": "embed"})) is None
