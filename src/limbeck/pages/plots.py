"""The plots of reports, each returned as SVG text for `Report.figure`.

All four show uncertainty: a curve may carry a band, an estimate its whiskers. None computes a statistic: limits come
from the caller. Values that are not finite are left out of the drawing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import UserError
from limbeck.pages.canvas import Canvas, label, responsive
from limbeck.pages.numbers import Interval, decimals_for, limits, number
from limbeck.pages.palette import series_role

LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P")
MAX_POINTS = 1500


@dataclass(frozen=True)
class Series:
    """One curve: `y` over `x`, with an optional band from `low` to `high`. All sequences are of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Estimate:
    """One labelled row of a dot-and-whisker plot; rows of one `group` share a colour."""

    label: str
    mid: float
    low: float
    high: float
    group: str = ""


@dataclass(frozen=True)
class Bars:
    """One model's bars, one a family: heights and limits, in the families' order."""

    name: str
    mid: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def curves(series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False, log_x: bool = False) -> str:
    """Draw curves over a shared x, with their bands; either axis may be logarithmic.

    Raises:
        UserError: there is nothing to draw, or a series' sequences differ in length.
    """
    _require(series, "curves")
    for one in series:
        lengths = {len(values) for values in (one.x, one.y, one.low, one.high) if values is not None}
        if lengths == {0} or len(lengths) > 1:
            raise UserError(f"curves: series {one.name!r} has sequences of lengths {sorted(lengths)}; give equal ones.")

    def draw(canvas: Canvas) -> None:
        axes, handles = canvas.axes, []
        for index, one in enumerate(series):
            colour = canvas.colour(series_role(index))
            if one.low is not None and one.high is not None:
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.16, linewidth=0)
            marker = "o" if len(one.x) <= 12 else None
            style = LINE_STYLES[index % len(LINE_STYLES)]
            handles += axes.plot(
                one.x, one.y, color=colour, linewidth=2, linestyle=style, marker=marker, markersize=5, zorder=3
            )
        canvas.name_x(x_label)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.margins(x=0.02)
        axes.grid(False, axis="x")
        _sparse_ticks(canvas)
        named = series if len(series) > 1 else []
        canvas.legend(handles[: len(named)], [one.name for one in named], title=y_label)

    return responsive(draw, height=360)


def intervals(rows: Sequence[Estimate], x_label: str, reference: float | None = None) -> str:
    """Draw one dot and whisker a row, from top to bottom, with an optional dashed line at `reference`.

    Raises:
        UserError: there are no rows.
    """
    _require(rows, "intervals")
    groups = list(dict.fromkeys(row.group for row in rows))

    def draw(canvas: Canvas) -> None:
        axes, handles = canvas.axes, {}
        for position, row in enumerate(rows):
            index = groups.index(row.group)
            handles[row.group] = _whisker(canvas, row.mid, row.low, row.high, position, series_role(index), index)
        if reference is not None:
            axes.axvline(reference, color=canvas.colour("muted"), linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        _label_rows(canvas, [row.label for row in rows])
        canvas.name_x(x_label)
        named = [group for group in groups if group]
        if len(named) > 1:
            canvas.legend([handles[group] for group in named], named)
        canvas.set_height(64 + len(rows) * (46 if canvas.narrow else 32) + (28 if len(named) > 1 else 0))
        _sparse_ticks(canvas)

    return responsive(draw)


def bars_with_intervals(families: Sequence[str], models: Sequence[Bars], x_label: str, percent: bool = True) -> str:
    """Draw, for each family, one horizontal bar a model with its interval.

    Args:
        families: names, from top to bottom.
        models: one `Bars` a model, in the order of the legend.
        x_label: what the bars measure.
        percent: the values are shares from 0 to 1, and the axis runs over all of them.

    Raises:
        UserError: there is nothing to draw, or a model has more or fewer values than there are families.
    """
    _require(families, "bars_with_intervals")
    _require(models, "bars_with_intervals")
    for model in models:
        lengths = {len(model.mid), len(model.low), len(model.high)}
        if lengths != {len(families)}:
            raise UserError(f"bars: model {model.name!r} has {sorted(lengths)} values for {len(families)} families.")

    def draw(canvas: Canvas) -> None:
        from matplotlib.ticker import PercentFormatter

        axes, handles = canvas.axes, []
        share, shift = (0.5, 0.16) if canvas.narrow else (0.74, 0.0)  # a phone needs room for the name above the bars
        slot = share / len(models)
        for index, model in enumerate(models):
            colour = canvas.colour(series_role(index))
            offset = shift + (index - (len(models) - 1) / 2) * slot
            places = [family + offset for family in range(len(families))]
            handles.append(axes.barh(places, model.mid, height=slot * 0.78, color=colour, alpha=0.85, linewidth=0))
            for place, low, high in zip(places, model.low, model.high, strict=True):
                axes.plot([low, high], [place, place], color=canvas.colour("ink"), linewidth=1.2, zorder=4)
        _label_rows(canvas, families, above=0.3)
        canvas.name_x(x_label)
        row = (28 if canvas.narrow else 14) + len(models) * 9
        canvas.set_height(70 + len(families) * row + 28)
        _sparse_ticks(canvas)
        if percent:
            axes.set(xlim=(0, 1.005), xticks=[0, 0.25, 0.5, 0.75, 1])
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        canvas.legend(handles, [model.name for model in models])

    return responsive(draw)


def paired_differences(
    values: Sequence[float],
    mid: float,
    low: float,
    high: float,
    x_label: str,
    left: str = "",
    right: str = "",
) -> str:
    """Draw every paired difference as a dot in a swarm, a line at zero, and the mean with its interval below.

    Args:
        values: one difference a prompt (or item). Of more than 1,500, evenly spaced quantiles are drawn.
        mid: the mean difference.
        low: lower limit of the mean.
        high: upper limit of the mean.
        x_label: what the difference is.
        left: what it means to lie left of zero ("student A is closer").
        right: what it means to lie right of zero.

    Raises:
        UserError: no value is finite.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    _require(finite, "paired_differences")
    if len(finite) > MAX_POINTS:
        finite = [finite[round(index * (len(finite) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]
    heights = _swarm(finite)

    def draw(canvas: Canvas) -> None:
        axes = canvas.axes
        size, opacity = (26, 0.55) if len(finite) <= 300 else (14, 0.4)
        axes.axvline(0, color=canvas.colour("muted"), linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.axvspan(low, high, color=canvas.colour("series-2"), alpha=0.14, linewidth=0, zorder=0)
        axes.scatter(finite, heights, s=size, color=canvas.colour("series-1"), alpha=opacity, linewidths=0, zorder=2)
        _whisker(canvas, mid, low, high, -1.35, "series-2", 2)
        decimals = decimals_for([mid, low, high], significant=3)
        gap = "\n" if canvas.narrow else "  "
        note = f"mean {number(float(mid), decimals)}{gap}({limits(Interval(mid, low, high), decimals)})"
        end, away, side = (high, 10, "left") if mid <= 0 else (low, -10, "right")  # towards the emptier half
        said = axes.annotate(note, (end, -1.35), (away, 0), textcoords="offset points", va="center", ha=side)
        said.set(fontsize=12, color=canvas.colour("ink"))
        reach = max(abs(finite[0]), abs(finite[-1]), abs(low), abs(high)) * 1.06 or 1.0
        axes.set(ylim=(-1.7, 1.45), yticks=[], xlim=(-reach, reach))
        canvas.name_x(x_label)
        for text, place, side in ((left, 0.0, "left"), (right, 1.0, "right")):
            arrow = f"← {label(text, 30)}" if side == "left" else f"{label(text, 30)} →"
            if text:
                row = 1.0 if side == "left" or not canvas.narrow else 0.92
                axes.text(
                    place,
                    row,
                    arrow,
                    transform=axes.transAxes,
                    ha=side,
                    va="top",
                    fontsize=12,
                    color=canvas.colour("muted"),
                )
        _sparse_ticks(canvas)

    return responsive(draw, height=270)


def _whisker(canvas: Canvas, mid: float, low: float, high: float, place: float, role: str, style: int) -> Any:
    """Draw one estimate with its interval; return the dot, for a legend."""
    colour = canvas.colour(role)
    canvas.axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round", zorder=3)
    marker = MARKERS[style % len(MARKERS)]
    surface = canvas.colour("surface")
    return canvas.axes.plot(
        [mid], [place], marker, color=colour, markersize=8.5, markeredgecolor=surface, markeredgewidth=1.4, zorder=4
    )[0]


def _label_rows(canvas: Canvas, names: Sequence[str], above: float = 0.4) -> None:
    """Name the rows 0, 1, 2 … from top to bottom: beside the axis, or above each row where there is no room."""
    axes, ink = canvas.axes, canvas.colour("ink")
    axes.set_ylim(len(names) - 0.4, -0.85 if canvas.narrow else -0.6)
    axes.grid(False, axis="y")
    if not canvas.narrow:
        axes.set_yticks(range(len(names)), [label(name, 44) for name in names], color=ink)
        return
    axes.set_yticks([])
    backing = {"facecolor": canvas.colour("surface"), "edgecolor": "none", "pad": 1}
    for row, name in enumerate(names):
        text = axes.text(
            0, row - above, label(name, 46), transform=axes.get_yaxis_transform(), va="center", bbox=backing
        )
        text.set(fontsize=12, color=ink)


def _sparse_ticks(canvas: Canvas) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    for axis, count in ((canvas.axes.xaxis, 4 if canvas.narrow else 8), (canvas.axes.yaxis, 8)):
        if axis.get_scale() == "log":
            low, high = sorted(axis.get_view_interval())
            within_a_decade = low > 0 and high / low < 10
            axis.set_major_locator(
                LogLocator(subs=(1, 2, 3, 4, 5, 7) if within_a_decade else (1, 3), numticks=count + 4)
            )
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        elif axis is canvas.axes.xaxis:
            axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))


def _swarm(values: Sequence[float]) -> list[float]:
    """Return a height in -1..1 for each sorted value: spread out where values are dense, without randomness.

    The radius is the share of a 25-bin histogram's tallest bin; the place within it is the base-2 van der Corput
    sequence, so neighbours land far apart.
    """
    bins = 25
    span = (values[-1] - values[0]) or 1.0
    places = [min(int((value - values[0]) / span * bins), bins - 1) for value in values]
    counts = [places.count(index) for index in range(bins)]
    smooth = [(a + 2 * b + c) / 4 for a, b, c in zip([0, *counts], counts, [*counts[1:], 0], strict=False)]
    top = max(smooth)
    return [smooth[place] / top * (2 * _van_der_corput(index + 1) - 1) for index, place in enumerate(places)]


def _van_der_corput(index: int) -> float:
    return int(f"{index:b}"[::-1], 2) / (1 << index.bit_length())


def _require(things: Sequence[object], plot: str) -> None:
    if not things:
        raise UserError(f"{plot}: there is nothing to draw; give at least one value.")
