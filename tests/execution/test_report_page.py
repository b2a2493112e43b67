"""The report for a browser: one file, readable without a script, a network or eyes."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pytest

from batchinfer.execution import reports
from batchinfer.pages import pictures
from batchinfer.pages.pictures import Bar
from batchinfer.rundir.ownership import require_own
from tests.support.mixed_runs import PastReplica, PastSession, end_run, write_run

HOSTILE = '<script>alert(1)</script> $x_1$ & "q" \x00\''


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory):
    replicas = [
        PastReplica(1_790_000_000 + 7 * i, load=40.0, work=[30.0, 20.0], idle=5.0 * i, waste=9.0, killed=i == 1)
        for i in range(3)
    ]
    later = PastReplica(1_790_100_000, load=30.0, work=[60.0])
    sessions = [
        PastSession(2.5, replicas, tensor_parallel=2),
        PastSession(0.8, [later], accelerator="L4", command="retry"),
    ]
    checked = write_run(tmp_path_factory.mktemp("runs"), sessions, labels={"team": HOSTILE.replace("\x00", "")})
    end_run(checked)
    return checked


@pytest.fixture(scope="module")
def page(ended) -> str:
    return ended.layout.storage.read(ended.layout.page).decode()


class Outline(html.parser.HTMLParser):
    """What of a page needs another file or runs, and which of its elements are named."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href", "xlink:href") and not (value or "").startswith("#")):
                self.outside.append(f"{tag} {name}={value}")
        if tag not in ("meta", "br", "use", "path", "rect", "line", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_small_file_without_script(page):
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.outside == []
    assert "script" not in outline.tags
    assert "@import" not in page
    assert len(page.encode()) < 1_000_000
    assert "default-src 'none'" in page


def test_each_picture_has_a_title_and_says_what_it_shows(page):
    pictured = re.findall(r"<figure .*?</figure>", page, re.DOTALL)
    assert len(pictured) >= 3
    for one in pictured:
        title = re.search(r'aria-label="([^"]+)"', one)
        told = re.search(r"<figcaption>(.*?)<span>(.{20,}?)</span>", one, re.DOTALL)
        assert title is not None
        assert told is not None
        assert told[1] == title[1]
        assert 'aria-hidden="true"' in one


def test_pictures_have_the_pages_colours_and_ids_of_their_own(page):
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert not re.findall(r"#01[0-9a-f]{4}", page)
    assert all("var(--work)" in svg and "var(--ink)" in svg for svg in svgs)
    ids = [name for svg in svgs for name in set(re.findall(r' id="([^"]+)"', svg))]
    assert len(ids) == len(set(ids))


def test_texts_of_users_are_text(page):
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_1$" in page
    drawn = pictures.stacked("Names", [Bar("<b> $x_1$ \x00", {"work": 1.0})], "$", "A bar.").svg
    assert "&lt;b&gt; $x_1$  <" in drawn


def test_a_failed_rows_texts_are_shown_only_if_asked_for(ended, tmp_path: Path, monkeypatch):
    row = reports.failed_rows
    shown: list[bool] = []
    monkeypatch.setattr(reports, "failed_rows", lambda *given: shown.append(given[3]) or row(*given))
    for texts in (False, True):
        reports.write_page(ended.layout.root, str(tmp_path / "page.html"), texts)
    assert shown == [False, True]
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_page_that_cannot_be_drawn_costs_no_run_its_report(ended, monkeypatch):
    before = ended.layout.storage.stat(ended.layout.report)

    def fail(story):
        raise ValueError("no ink")

    monkeypatch.setattr(reports, "run_page", fail)
    end_run(ended)
    assert ended.layout.storage.stat(ended.layout.report) != before


def test_the_page_is_a_file_of_the_run(ended):
    require_own(ended.layout, thorough=True)
    Path(ended.layout.page).write_text("<html>mine</html>")
    with pytest.raises(Exception, match=r"report\.html"):
        require_own(ended.layout)
