import datetime
from typing import get_args

import pytest

from batchinfer.catalog import accelerators, list_price
from batchinfer.jobspec import AcceleratorName

NAMES = [name for name in get_args(AcceleratorName) if name != "auto"]
PRICES = [(name, price) for name, accelerator in accelerators().items() for price in accelerator.prices]


def test_the_spec_and_the_catalog_know_the_same_accelerators():
    assert sorted(accelerators()) == sorted(NAMES)


@pytest.mark.parametrize(("name", "price"), PRICES, ids=lambda value: str(value)[:40])
def test_a_price_is_positive_and_says_who_said_it_when(name, price):
    assert 0 < price.usd_per_hour < 100
    assert datetime.date(2026, 1, 1) <= price.date
    assert price.provider.strip()
    assert price.sku.strip()
    assert price.source.strip()


def test_the_first_price_is_the_one_that_a_run_uses():
    price = list_price("H100")
    assert price == accelerators()["H100"].prices[0]
    assert str(price) == "$2.69/h, RunPod H100 SXM community, 2026-09-25"


def test_where_the_catalog_knows_no_price_it_says_so():
    assert list_price("GB300") is None


def test_an_accelerator_that_is_not_in_the_catalog_is_a_mistake():
    with pytest.raises(KeyError, match="H900"):
        list_price("H900")


def test_the_hosts_cpu_has_a_price():
    price = list_price("cpu")
    assert price is not None
    assert price.usd_per_hour < 1
