"""Which files a run takes: the rules, and the law that no arrival and no failure breaks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError
from batchinfer.input.incremental import Claims, select
from batchinfer.jobspec import IncrementalSpec
from batchinfer.storage import Entry


def entries(**tags: str) -> list[Entry]:
    return [Entry(name.replace("_", "/"), 1, tag) for name, tag in tags.items()]


def partition(uri: str) -> str:
    return uri.split("/")[0]


def taken(found: list[Entry], claims: Claims, by: str = "file", changed: str = "rerun") -> list[str]:
    return [e.uri for e in select(found, claims, IncrementalSpec(by=by, changed=changed), partition).taken]


def claims(with_rows: dict[str, str], empty: dict[str, str] | None = None) -> Claims:
    return Claims.of([({**with_rows, **(empty or {})}, with_rows)])


def test_only_what_no_run_has_taken_is_new() -> None:
    assert taken(entries(a="1", b="1", c="1"), claims({"b": "1"})) == ["a", "c"]
    assert taken(entries(a="1"), claims({"a": "1"})) == []
    assert taken([], Claims()) == []


@pytest.mark.parametrize(("changed", "expected"), [("rerun", ["a", "new"]), ("ignore", ["new"])])
def test_a_changed_file_is_taken_again_or_left_by_rule(changed: str, expected: list[str]) -> None:
    found, before = entries(a="2", b="1", new="1"), claims({"a": "1", "b": "1"})
    assert taken(found, before, changed=changed) == expected
    chosen = select(found, before, IncrementalSpec(changed=changed), partition)
    assert (chosen.again, chosen.ignored) == ((1, ()) if changed == "rerun" else (0, ("a",)))


def test_a_changed_file_can_fail_the_run() -> None:
    with pytest.raises(InputError, match=r"^a and 1 more changed after a run of this job had taken it$"):
        taken(entries(a="2", b="2"), claims({"a": "1", "b": "1"}), changed="fail")


def test_content_that_was_done_before_is_not_done_again_when_it_comes_back() -> None:
    before = Claims.of([({"a": "1"}, {"a"}), ({"a": "2"}, {"a"})])
    assert taken(entries(a="1"), before) == []


@pytest.mark.parametrize("changed", ["rerun", "ignore", "fail"])
def test_a_file_that_was_empty_and_now_has_rows_is_new(changed: str) -> None:
    assert taken(entries(a="2"), claims({}, empty={"a": "1"}), changed=changed) == ["a"]
    assert taken(entries(a="1"), claims({}, empty={"a": "1"}), changed=changed) == []


def test_a_partition_is_taken_whole_and_a_late_file_changes_it() -> None:
    found = entries(d1_a="1", d1_late="1", d2_a="1")
    before = claims({"d1/a": "1"})
    assert taken(found, before, "partition") == ["d1/a", "d1/late", "d2/a"]
    assert taken(found, before, "partition", "ignore") == ["d2/a"]
    with pytest.raises(InputError, match=r"^d1 changed"):
        taken(found, before, "partition", "fail")
    assert taken(entries(d1_a="1"), claims({"d1/a": "1", "d1/b": "1"}), "partition") == []


FILES = [f"d{d}/{name}" for d in range(2) for name in "ab"]
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(FILES)),
        st.tuples(st.just("change"), st.sampled_from(FILES)),
        st.tuples(st.just("tick"), st.sampled_from(["ends well", "dies before its manifest", "dies after it"])),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, changed=st.sampled_from(["rerun", "ignore"]))
def test_every_file_is_in_exactly_one_manifest_whatever_arrives_and_fails(
    events: list[tuple[str, str]], changed: str
) -> None:
    """`manifests` is all that is known between ticks, as it is on disk."""
    present: dict[str, str] = {}
    seen: list[dict[str, str]] = []  # the input as each tick that wrote a manifest found it
    manifests: list[dict[str, str]] = []
    for number, (kind, what) in enumerate([*events, ("tick", "ends well")]):
        if kind == "arrive":
            present.setdefault(what, "first")
        elif kind == "change" and what in present:
            present[what] = f"changed-{number}"
        elif kind == "tick" and what != "dies before its manifest":
            found = [Entry(uri, 1, tag) for uri, tag in sorted(present.items())]
            known = Claims.of((manifest, manifest) for manifest in manifests)
            chosen = select(found, known, IncrementalSpec(changed=changed), partition).taken
            manifests.append({entry.uri: entry.tag for entry in chosen})
            seen.append(dict(present))
    pairs = [pair for manifest in manifests for pair in manifest.items()]
    assert len(pairs) == len(set(pairs)), "no content of a file is in two manifests"
    if changed == "rerun":
        assert set(pairs) == {pair for input_then in seen for pair in input_then.items()}
    else:
        assert {uri for uri, _ in pairs} == {uri for input_then in seen for uri in input_then}
        assert len({uri for uri, _ in pairs}) == len(pairs), "and no file is"
