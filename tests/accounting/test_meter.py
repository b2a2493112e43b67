from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.accounting.meter import Meter

START = 1_700_000_000_000_000


class FakeClock:
    """Microseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e6)


def ready_meter(devices=1):
    clock = FakeClock()
    meter = Meter(devices, clock)
    meter.ready()
    return meter, clock


def test_time_before_the_engine_is_ready_is_load():
    clock = FakeClock()
    meter = Meter(4, clock)
    clock.advance(3)
    assert meter.ready() == START + 3_000_000
    clock.advance(2)
    reading = meter.reading()
    assert (reading.load_seconds, reading.busy_seconds, reading.idle_seconds) == (12, 0, 8)
    assert reading.at_us == clock.now


def test_a_shard_alone_pays_all_devices_for_as_long_as_it_has_rows_in_the_engine():
    meter, clock = ready_meter(devices=8)
    assert meter.begin("a", 3) == START
    clock.advance(1.5)
    meter.finished("a", 3)
    clock.advance(1)
    gpu_seconds, reading = meter.end("a")
    assert gpu_seconds == 12
    assert (reading.busy_seconds, reading.idle_seconds) == (12, 8)


def test_a_shard_that_waits_behind_another_pays_nothing():
    meter, clock = ready_meter()
    meter.begin("first", 10)
    meter.begin("second", 0)
    clock.advance(5)
    meter.finished("first", 10)
    meter.entered("second", 10)
    clock.advance(2)
    meter.finished("second", 10)
    assert meter.end("first")[0] == 5
    assert meter.end("second")[0] == 2


def test_shards_that_run_side_by_side_pay_by_their_rows():
    meter, clock = ready_meter()
    meter.begin("small", 10)
    meter.begin("large", 30)
    clock.advance(4)
    meter.finished("small", 10)
    meter.finished("large", 30)
    assert meter.end("small")[0] == pytest.approx(1)
    assert meter.end("large")[0] == pytest.approx(3)


def test_rows_that_enter_one_by_one_pay_from_then_on():
    meter, clock = ready_meter()
    meter.begin("old", 8)
    meter.begin("young", 2)
    clock.advance(10)
    meter.finished("old", 6)
    meter.entered("young", 6)
    clock.advance(10)
    assert meter.end("old")[0] == pytest.approx(8 + 2)
    assert meter.end("young")[0] == pytest.approx(2 + 8)


def test_a_row_cannot_enter_for_a_shard_that_has_ended():
    meter, _ = ready_meter()
    meter.begin("a", 1)
    meter.end("a")
    with pytest.raises(KeyError):
        meter.entered("a", 1)


def test_a_shard_without_a_row_for_the_engine_pays_nothing():
    meter, clock = ready_meter()
    meter.begin("empty", 0)
    clock.advance(3)
    gpu_seconds, reading = meter.end("empty")
    assert (gpu_seconds, reading.idle_seconds) == (0, 3)


def test_two_attempts_of_one_shard_are_told_apart_by_their_keys():
    meter, clock = ready_meter()
    one, two = object(), object()
    meter.begin(one, 1)
    meter.begin(two, 1)
    clock.advance(2)
    meter.finished(one, 1)
    clock.advance(2)
    assert meter.end(one)[0] + meter.end(two)[0] == 4


events = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.floats(0, 1000)),
        st.tuples(st.just("begin"), st.integers(0, 50)),
        st.tuples(st.just("entered"), st.integers(0, 50)),
        st.tuples(st.just("finished"), st.integers(1, 50)),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("reading"), st.none()),
        st.tuples(st.just("ready"), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(events=events, devices=st.integers(1, 8))
def test_every_device_second_is_load_busy_or_idle_and_busy_is_what_the_shards_pay(events, devices):
    clock = FakeClock()
    meter = Meter(devices, clock)
    unfinished: dict[int, int] = {}
    paid = 0.0
    for number, (name, value) in enumerate(events):
        if name == "advance":
            clock.advance(value)
        elif name == "begin":
            meter.begin(number, value)
            unfinished[number] = value
        elif name == "entered" and unfinished:
            key = list(unfinished)[value % len(unfinished)]
            unfinished[key] += value
            meter.entered(key, value)
        elif name == "finished" and unfinished:
            key = list(unfinished)[value % len(unfinished)]
            rows = min(value, unfinished[key])
            unfinished[key] -= rows
            meter.finished(key, rows)
        elif name == "end" and unfinished:
            key = list(unfinished)[value % len(unfinished)]
            del unfinished[key]
            paid += meter.end(key)[0]
        elif name == "ready":
            meter.ready()
        reading = meter.reading()
        lifetime = (reading.at_us - START) / 1e6 * devices
        assert reading.load_seconds + reading.busy_seconds + reading.idle_seconds == pytest.approx(lifetime, abs=1e-6)
    for key in unfinished:
        paid += meter.end(key)[0]
    assert paid == pytest.approx(meter.reading().busy_seconds, abs=1e-6)


def test_threads_that_use_it_at_once_lose_no_second():
    clock, tick = FakeClock(), threading.Lock()
    meter = Meter(2, clock)
    meter.ready()
    paid = []

    def shard(key):
        total = 0.0
        for i in range(200):
            meter.begin((key, i), 3)
            with tick:
                clock.advance(0.001)
            meter.finished((key, i), 3)
            total += meter.end((key, i))[0]
        paid.append(total)

    threads = [threading.Thread(target=shard, args=(key,)) for key in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reading = meter.reading()
    assert sum(paid) == pytest.approx(reading.busy_seconds, abs=1e-6)
    assert reading.busy_seconds + reading.idle_seconds == pytest.approx((clock.now - START) / 1e6 * 2, abs=1e-6)
