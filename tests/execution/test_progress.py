import pytest

from batchinfer.execution.progress import Progress, Speed
from tests.support.builders import make_record


def progress(done, speed):
    return Progress(
        rows_done=done,
        rows_total=100,
        shards_done=0,
        shards_total=1,
        rows_failed=0,
        tokens_per_second=0,
        rows_per_second=speed,
        cost_usd=0,
    )


@pytest.mark.parametrize(("done", "speed", "left"), [(0, 0, None), (60, 10, 4), (100, 10, 0)])
def test_the_time_left_follows_from_this_sessions_speed(done, speed, left):
    assert progress(done, speed).seconds_left == left


def test_before_the_first_commit_there_is_no_speed():
    assert Speed(lambda: 5.0).per_second() == (0, 0)


def test_the_speed_counts_from_the_start_of_the_first_shard():
    now = [100.0]
    speed = Speed(lambda: now[0])
    record = make_record(rows=10, input_tokens=30, output_tokens=10, started_at_us=0, finished_at_us=2_000_000)
    speed.add(record)
    assert speed.per_second() == (5, 20)
    now[0] = 102.0
    speed.add(record)
    assert speed.per_second() == (5, 20)
    now[0] = 108.0
    assert speed.per_second() == (2, 8)
