"""Costs as rows of FOCUS, the FinOps Open Cost and Usage Specification, version 1.2: what companies' FinOps tools read.

A row is what one replica spent on one kind of thing (work, load, idle, waste) on one day (UTC), because a charge lies
in one billing period. What FOCUS has no column for is in columns that begin with `x_`, as it asks for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.costs import Window
from batchinfer.accounting.ledger import ReplicaAccount
from batchinfer.catalog.accelerators import device_cost
from batchinfer.rundir.find_runs import FoundRun

ISSUER = "batchinfer"
"""Who measures and charges, in the columns of provider, publisher and invoice: the invoice of a cloud is another."""

_TEXTS = (
    *("AvailabilityZone", "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription"),
    *("ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory", "CommitmentDiscountId"),
    *("CommitmentDiscountName", "CommitmentDiscountStatus", "CommitmentDiscountType", "ConsumedUnit", "InvoiceId"),
    *("InvoiceIssuerName", "PricingCategory", "PricingUnit", "ProviderName", "PublisherName", "RegionId"),
    *("RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName"),
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName"),
    *("SubAccountType", "Tags", "x_Accelerator", "x_Model", "x_PriceSource", "x_Quantization", "x_ReplicaId"),
    *("x_RunId", "x_RunUri", "x_SpentOn"),
)
_NUMBERS = (
    *("BilledCost", "ConsumedQuantity", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "ListCost"),
    *("ListUnitPrice", "PricingQuantity", "x_CachedTokens", "x_DeviceSeconds", "x_InputTokens", "x_OutputTokens"),
    *("x_Rows", "x_Session"),
)
COLUMNS = tuple(sorted({*_TEXTS, *_NUMBERS}))

_KINDS = {
    "work": "work_seconds",
    "load": "load_seconds",
    "idle": "idle_seconds",
    "waste": "wasted_seconds",
    "in flight": "in_flight_seconds",
}


class FocusRows:
    """The rows of all runs that are added, and the file of them."""

    def __init__(self, window: Window) -> None:
        self._window = Window(window.since, window.until)
        self.rows: list[dict[str, Any]] = []

    def add(self, run: FoundRun) -> None:
        """Add the rows of a run."""
        for account in run.accounts:
            self.rows.extend(_rows(account, run.root, self._window))

    def csv(self) -> bytes:
        sink = io.StringIO()
        writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return sink.getvalue().encode()

    def parquet(self) -> bytes:
        schema = pa.schema([(name, pa.float64() if name in _NUMBERS else pa.string()) for name in COLUMNS])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self.rows, schema=schema), sink)
        made: bytes = sink.getvalue().to_pybytes()
        return made


def _rows(account: ReplicaAccount, root: str, window: Window) -> Iterator[dict[str, Any]]:
    for day, share in window.days(account):
        for kind, name in _KINDS.items():
            seconds = getattr(account, name) * share
            if seconds:
                yield _row(account, root, window, day, share, kind, seconds)


def _row(
    account: ReplicaAccount, root: str, window: Window, day: date, share: float, kind: str, seconds: float
) -> dict[str, Any]:
    cost, price = device_cost(seconds, account.price_per_gpu_hour), account.price_per_gpu_hour
    counted = share if kind == "work" else 0.0
    counts = account.committed
    month = day.replace(day=1)
    start = max(account.started_at_us, window.begin_us(day))
    end = min(account.finished_at_us, window.begin_us(day + timedelta(days=1)))
    job = account.job_name or ISSUER
    what = f"{account.num_gpus} x {account.accelerator}"
    return dict.fromkeys(COLUMNS) | {
        "BilledCost": cost,
        "BillingAccountId": ISSUER,
        "BillingAccountName": ISSUER,
        "BillingAccountType": "Ledger",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _midnight((month + timedelta(days=32)).replace(day=1)),
        "BillingPeriodStart": _midnight(month),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{kind} of {job} on {what}, {account.model}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _moment(max(end, start + 10**6)),
        "ChargePeriodStart": _moment(start),
        "ConsumedQuantity": (counts.input_tokens + counts.output_tokens) * counted,
        "ConsumedUnit": "Tokens",
        "ContractedCost": cost,
        "ContractedUnitPrice": price,
        "EffectiveCost": cost,
        "InvoiceIssuerName": ISSUER,
        "ListCost": cost,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": seconds / 3600,
        "PricingUnit": "Hours" if account.accelerator == "cpu" else "GPU-Hours",
        "ProviderName": ISSUER,
        "PublisherName": ISSUER,
        "ResourceId": f"{account.run_id}/{account.replica_id}",
        "ResourceName": account.node,
        "ResourceType": "Replica",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Batch inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": account.accelerator,
        "SkuMeter": "Device time",
        "SkuPriceId": f"{account.accelerator} at {price:.9g} USD",
        "SubAccountId": job,
        "SubAccountName": job,
        "SubAccountType": "Job",
        "Tags": json.dumps(account.labels, sort_keys=True, ensure_ascii=False),
        "x_Accelerator": account.accelerator,
        "x_CachedTokens": counts.cached_tokens * counted,
        "x_DeviceSeconds": seconds,
        "x_InputTokens": counts.input_tokens * counted,
        "x_Model": account.model,
        "x_OutputTokens": counts.output_tokens * counted,
        "x_PriceSource": account.price_source,
        "x_Quantization": account.quantization,
        "x_ReplicaId": account.replica_id,
        "x_Rows": counts.rows * counted,
        "x_RunId": account.run_id,
        "x_RunUri": root,
        "x_Session": account.session,
        "x_SpentOn": kind,
    }


def _midnight(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"


def _moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 10**6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
