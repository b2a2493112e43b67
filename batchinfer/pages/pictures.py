"""Pictures as SVG that a page holds as they are: text stays text, and colours are those of the page, light or dark.

Drawn by matplotlib, which is imported at the first picture: it takes half a second, and no command but the end of a run
and `--html` draws. Its figures are used without pyplot, which keeps state for the whole process.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010203", "#010204", "#010205"
"""Stand-ins for the page's colours of text, lines and background, which matplotlib writes and `_adopt` replaces."""

KINDS: Mapping[str, str] = {"load": "#010210", "work": "#010211", "idle": "#010212", "waste": "#010213"}
"""Stand-ins for the colours of what device-seconds were spent on."""

SERIES: Sequence[str] = tuple(f"#0103{number:02x}" for number in range(8))
"""Stand-ins for the page's colours of series."""

_STYLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    PAPER: "var(--paper)",
    **{color: f"var(--{kind})" for kind, color in KINDS.items()},
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES)},
}

MOST_BARS = 24
"""Rows of one picture; the rest is one row. With more, labels overlap and the page has no room."""

MOST_SPANS = 1500
"""Shards drawn in one picture. Each takes 250 bytes of SVG, and a page has to stay under 1 MB."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG, and what it shows, for a screen reader."""

    svg: str
    title: str
    says: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of stacked values."""

    name: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Life:
    """One replica on the time axis: seconds since 1970. `shards`: (from, to) of its committed shards."""

    name: str
    started: float
    ready: float | None
    ended: float
    shards: Sequence[tuple[float, float]]
    killed: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """A planned figure with its range, and what it became."""

    name: str
    low: float
    mid: float
    high: float
    actual: float


Drawing = TypeVar("Drawing", bound=Callable[..., Picture])


def _drawn(draw: Drawing) -> Drawing:
    """Draw with matplotlib's own settings, whatever the user's process has set, and leave the user's alone."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **named: Any) -> Picture:
        import matplotlib

        own = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
        # Text stays text: a screen reader reads it, a search finds it, and it takes a tenth of the bytes of outlines.
        own |= {"svg.fonttype": "none", "svg.hashsalt": "batchinfer", "text.parse_math": False, "font.size": 9.5}
        with matplotlib.rc_context(own):
            return draw(*arguments, **named)

    return cast(Drawing, drawn)


LONGEST_NAME = 28
"""Characters of a name beside a picture. With longer ones no room is left for the picture."""


def _short(name: str) -> str:
    """A name as it may stand in a picture: of one line, without characters that XML does not allow."""
    text = "".join(char if char.isprintable() else " " for char in name)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


@_drawn
def stacked(title: str, bars: Sequence[Bar], unit: str, says: str, colors: Mapping[str, str] = KINDS) -> Picture:
    """Horizontal bars of stacked parts, the first bar on top. `colors`: of the parts, in order."""
    shown = list(bars[:MOST_BARS])
    if len(bars) > MOST_BARS:
        rest = bars[MOST_BARS:]
        totals = {part: sum(bar.values.get(part, 0.0) for bar in rest) for part in colors}
        shown.append(Bar(f"{len(rest):,} more", totals))
    figure, axes = _figure(0.9 + 0.26 * len(shown), wide=True)
    names = [_short(bar.name) for bar in shown]
    left = [0.0] * len(shown)
    for part, color in colors.items():
        widths = [bar.values.get(part, 0.0) for bar in shown]
        if any(widths):
            axes.barh(range(len(shown)), widths, left=left, color=color, height=0.72, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _legend(axes)
    return Picture(_svg(figure, title), title, says)


@_drawn
def gantt(title: str, lives: Sequence[Life], says: str) -> Picture:
    """Each replica's life on one time axis: loading, its shards, and the time without any."""
    shown = sorted(lives, key=lambda life: life.started)[:MOST_BARS]
    place, ticks = _without_gaps([(life.started, life.ended) for life in shown])
    figure, axes = _figure(0.9 + 0.3 * len(shown), wide=True)
    left = MOST_SPANS
    for row, life in enumerate(shown):
        ready = life.ended if life.ready is None else life.ready
        axes.broken_barh([_span(place, ready, life.ended)], (row - 0.14, 0.28), facecolors=KINDS["idle"])
        axes.broken_barh([_span(place, life.started, ready)], (row - 0.36, 0.72), facecolors=KINDS["load"])
        shards = [_span(place, *shard) for shard in life.shards[:left]]
        left -= len(shards)
        axes.broken_barh(shards, (row - 0.36, 0.72), facecolors=KINDS["work"], edgecolors=PAPER, linewidth=0.8)
        if life.killed:
            axes.plot([place(life.ended)], [row], marker="x", color=KINDS["waste"], markersize=8, markeredgewidth=2)
    axes.set_yticks(range(len(shown)), [_short(life.name) for life in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.invert_yaxis()
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_xlabel("since the start" + ("; time without a replica is left out" if len(ticks) > 6 else ""))
    for kind, text in (("load", "loading"), ("work", "a shard"), ("idle", "no shard"), ("waste", "killed")):
        if kind != "waste" or any(life.killed for life in shown):
            axes.plot([], [], color=KINDS[kind], linewidth=6, label=text)
    _legend(axes)
    return Picture(_svg(figure, title), title, says)


@_drawn
def over_time(title: str, spans: Sequence[tuple[float, float, float]], unit: str, says: str) -> Picture:
    """The sum of rates over time. `spans`: (from, to, amount), where the amount is spread evenly over the span."""
    import numpy as np

    place, ticks = _without_gaps([(start, end) for start, end, _ in spans])
    starts = np.array([place(start) for start, _, _ in spans])
    ends = np.maximum(np.array([place(end) for _, end, _ in spans]), starts + 1e-3)
    rates = np.array([amount for _, _, amount in spans]) / (ends - starts)
    edges = np.linspace(0.0, float(ends.max()), 121)
    # The amount before each edge, of which the differences are the amounts of the bins.
    before = np.zeros(len(edges))
    for start, end, rate in zip(starts, ends, rates, strict=True):
        before += np.clip(edges - start, 0.0, end - start) * rate
    heights = np.diff(before) / np.diff(edges)
    figure, axes = _figure(2.5)
    axes.stairs(heights, edges, fill=True, color=KINDS["work"], alpha=0.9)
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_xlim(0.0, float(edges[-1]))
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel(unit)
    axes.set_xlabel("since the start")
    return Picture(_svg(figure, title), title, says)


@_drawn
def histogram(title: str, values: Sequence[float], unit: str, says: str, share: bool = False) -> Picture:
    """How often values occur. Lengths have bins that double; a `share` has twenty from 0 to 1."""
    import numpy as np

    figure, axes = _figure(2.3)
    found = np.asarray(values, dtype=float)
    if share:
        edges = np.linspace(0.0, 1.0, 21)
        axes.set_xlim(0.0, 1.0)
    else:
        top = max(1, math.ceil(math.log2(max(float(found.max()), 1.0) + 1)))
        edges = np.concatenate([[0.0], 2.0 ** np.arange(0, top + 1)])
    counts, _ = np.histogram(found, edges)
    if share:
        axes.stairs(counts, edges, fill=True, color=KINDS["work"])
    else:
        axes.bar(range(len(counts)), counts, color=KINDS["work"], width=0.9)
        labels = [f"{edge:.0f}" if edge < 1000 else f"{edge / 1024:,.0f}k" for edge in edges[1:]]
        each = max(1, len(labels) // 9)
        axes.set_xticks(range(0, len(labels), each), labels[::each])
    axes.set_xlabel(unit)
    axes.set_ylabel("rows")
    return Picture(_svg(figure, title), title, says)


@_drawn
def planned_and_actual(title: str, figures: Sequence[Expected], says: str) -> Picture:
    """For each figure the planned range, its middle, and what it became, each as a share of the planned middle."""
    figure, axes = _figure(0.9 + 0.5 * len(figures))
    for row, one in enumerate(figures):
        scale = one.mid or 1.0
        axes.plot([one.low / scale, one.high / scale], [row, row], color=KINDS["idle"], linewidth=7, label="_")
        axes.plot([1.0], [row], marker="|", color=INK, markersize=14, label="planned" if row == 0 else "_")
        axes.plot(
            [one.actual / scale], [row], marker="o", color=KINDS["waste"], markersize=8, linestyle="none",
            label="actual" if row == 0 else "_",
        )  # fmt: skip
    axes.set_yticks(range(len(figures)), [one.name for one in figures])
    axes.set_ylim(-0.6, len(figures) - 0.4)
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.set_xlabel("1 is the planned figure; grey is its range")
    _legend(axes)
    return Picture(_svg(figure, title), title, says)


@_drawn
def matrix(
    title: str, names: Sequence[str], rows: Sequence[Sequence[int]], columns: Sequence[str], says: str
) -> Picture:
    """A confusion matrix: expected in rows, predicted in columns; darker cells hold a larger share of their row."""
    figure, axes = _figure(1.1 + 0.34 * len(names))
    for y, row in enumerate(rows):
        total = sum(row) or 1
        for x, count in enumerate(row):
            if not count:
                continue
            right = x < len(columns) and columns[x] == names[y]
            axes.add_patch(_cell(x, y, KINDS["work"] if right else KINDS["waste"], 0.2 + 0.6 * count / total))
            axes.text(x, y, f"{count:,}", ha="center", va="center", color=INK)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(
        range(len(columns)), list(map(_short, columns)), rotation=0 if len(columns) <= 5 else 35, ha="center"
    )
    axes.set_yticks(range(len(names)), list(map(_short, names)))
    axes.grid(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("expected")
    return Picture(_svg(figure, title), title, says)


@_drawn
def curve(
    title: str, points: Sequence[tuple[float, float]], x: str, y: str, says: str, diagonal: bool = False
) -> Picture:
    """One line through points of shares, 0 to 1; `diagonal`: with the line of equal values."""
    figure, axes = _figure(2.6)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    axes.plot([at for at, _ in points], [value for _, value in points], marker="o", color=KINDS["work"], markersize=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return Picture(_svg(figure, title), title, says)


@dataclass(frozen=True, slots=True)
class Point:
    """A variant of a comparison: its cost, and a share with its 95% interval. `front`: none is cheaper and better."""

    name: str
    cost: float
    share: float
    low: float
    high: float
    front: bool
    taken: bool


@_drawn
def front(title: str, points: Sequence[Point], x: str, y: str, says: str) -> Picture:
    """Each variant by its cost and its share of right answers, with the line of those that none beats."""
    figure, axes = _figure(3.2, wide=True)
    line = sorted((point.cost, point.share) for point in points if point.front)
    axes.plot([cost for cost, _ in line], [share for _, share in line], color=KINDS["work"], linewidth=1, zorder=1)
    for point in points:
        color = KINDS["work"] if point.front else KINDS["idle"]
        axes.plot([point.cost] * 2, [point.low, point.high], color=color, linewidth=1.5, alpha=0.6, zorder=2)
        marker = "*" if point.taken else "o"
        axes.plot(
            [point.cost], [point.share], marker=marker, color=color, markersize=13 if point.taken else 7, zorder=3
        )
        axes.annotate(
            _short(point.name), (point.cost, point.share), xytext=(8, -14), textcoords="offset points", color=INK
        )
    axes.set_xlim(left=0.0, right=1.3 * max(point.cost for point in points) or 1.0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return Picture(_svg(figure, title), title, says)


@_drawn
def columns_over_days(
    title: str, days: Sequence[str], series: Mapping[str, Sequence[float]], says: str, line: tuple[str, float] | None
) -> Picture:
    """Stacked columns, one for each day or month. `line`: a limit to draw, with its name."""
    figure, axes = _figure(3.0, wide=True)
    bottom = [0.0] * len(days)
    for number, (name, values) in enumerate(series.items()):
        color = SERIES[number % len(SERIES)]
        axes.bar(range(len(days)), values, bottom=bottom, color=color, width=0.8, label=_short(name))
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    if line is not None:
        axes.axhline(line[1], color=KINDS["waste"], linewidth=1.5, linestyle="--", label=line[0])
    each = max(1, math.ceil(len(days) / 10))
    axes.set_xticks(range(0, len(days), each), days[::each])
    axes.set_ylabel("$")
    _legend(axes)
    return Picture(_svg(figure, title), title, says)


def _cell(x: int, y: int, color: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=color, alpha=alpha, linewidth=0)


def _span(place: Callable[[float], float], start: float, end: float) -> tuple[float, float]:
    return place(start), place(end) - place(start)


def _without_gaps(
    spans: Sequence[tuple[float, float]],
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a time lies on an axis that leaves out what no span covers, and the ticks of the axis."""
    merged: list[list[float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    covered = sum(end - start for start, end in merged)
    # A short wait stays on the axis: only a gap that would dwarf the work is cut.
    gap = 0.04 * covered
    parts: list[tuple[float, float, float]] = []
    at = 0.0
    for number, (start, end) in enumerate(merged):
        if number:
            at += min(gap, start - merged[number - 1][1])
        parts.append((start, end, at))
        at += end - start
    origin = merged[0][0]

    def place(moment: float) -> float:
        for start, end, offset in parts:
            if moment <= end:
                return offset + max(0.0, moment - start)
        return at

    step = _step(at)
    ticks = [
        (offset + step * i, _time(start - origin + step * i, step))
        for start, end, offset in parts
        for i in range(int((end - start) / step) + 1)
    ]
    return place, ticks[:: max(1, math.ceil(len(ticks) / 9))]


def _step(seconds: float) -> float:
    for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 43_200, 86_400):
        if seconds / step <= 8:
            return float(step)
    return math.ceil(seconds / 8 / 86_400) * 86_400.0


def _time(seconds: float, step: float) -> str:
    """A time on an axis whose ticks are `step` seconds apart, in its two largest units."""
    if seconds < 120 and step < 60:
        return f"{seconds:.0f} s"
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(round(seconds), size)
        if count and (size >= step or not parts):
            parts.append(f"{count:.0f} {unit}")
    return " ".join(parts[:2]) or "0"


WIDTH, WIDE = 6.2, 9.6
"""Inches of a picture in one column of a page, and over the page's width. Wider, and text shrinks on a phone."""


def _figure(height: float, wide: bool = False) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE if wide else WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0.0)
    axes.patch.set_alpha(0.0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, which="both", length=0, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(True, color=FAINT, linewidth=0.6)
    return figure, axes


def _legend(axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(6, len(handles)), frameon=False, fontsize=9,
            labelcolor=INK, borderaxespad=0.2, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def _svg(figure: Figure, title: str) -> str:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return _adopt(sink.getvalue(), re.sub(r"\W+", "-", title.lower()))


def _adopt(svg: str, name: str) -> str:
    """The SVG element as a part of a page: scaled by the page, in the page's colours, with ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#([\w-]+)', lambda found: f"{found[1]}#{name}-{found[2]}", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    for color, style in _STYLES.items():
        svg = svg.replace(color, style)
    return re.sub(r"\n\s*", "\n", svg).strip()
