"""Plots: both widths, themed, deterministic, complete, and robust against labels and values that mean harm."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from limbeck.errors import UserError
from limbeck.pages.canvas import label
from limbeck.pages.numbers import MINUS, MISSING, Interval, decimals_for, limits, number
from limbeck.pages.palette import COLOURS
from limbeck.pages.plots import Bars, Estimate, Series, bars_with_intervals, curves, intervals, paired_differences

SERIES = Series("distilled", [0, 1, 2], [3.0, 2.0, 1.5], [2.9, 1.9, 1.4], [3.1, 2.1, 1.6])
BARS = Bars("distilled", [0.5, 0.7], [0.4, 0.6], [0.6, 0.8])
PLOTS = {
    "curves": lambda name: curves([SERIES, Series(name, [0, 1], [1, 2])], name, name, log_y=True),
    "intervals": lambda name: intervals([Estimate(name, 0.1, 0.0, 0.2, name), Estimate("b", 1, 0, 2, "g")], name, 0.0),
    "bars": lambda name: bars_with_intervals([name, "copy"], [BARS, Bars(name, [1, 0], [0.9, 0], [1, 0.1])], name),
    "paired": lambda name: paired_differences([0.1, -0.2, -0.3], -0.13, -0.3, 0.05, name, name, name),
}
HOSTILE = "_a $\\frac{<script>alert(1)</script> & \"'\x00\x1b]\u202e\u0001"

plot = pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())


def drawings(svg: str) -> list[ElementTree.Element]:
    """The plot's two drawings, parsed."""
    return list(ElementTree.fromstring(f"<both>{svg}</both>"))


def texts(drawing: ElementTree.Element) -> str:
    return " ".join(filter(None, (element.text for element in drawing.iter() if element.tag.endswith("text"))))


@plot
def test_there_is_a_wide_and_a_narrow_drawing_with_the_same_texts(plot) -> None:
    wide, narrow = drawings(plot("distilled"))
    assert [wide.attrib["class"], narrow.attrib["class"]] == ["plot plot-wide", "plot plot-narrow"]
    assert float(wide.attrib["viewBox"].split()[2]) > 2 * float(narrow.attrib["viewBox"].split()[2])
    for drawing in (wide, narrow):
        assert "distilled" in texts(drawing)


@plot
def test_every_colour_follows_light_and_dark_mode(plot) -> None:
    values = re.findall(r'(?:fill|stroke)="([^"]*)"', plot("x"))
    assert values
    assert all(value == "none" or re.fullmatch(r"var\(--[\w-]+, #[0-9a-f]{6}\)", value) for value in values)
    assert 'style="' not in plot("x")
    assert "<style" not in plot("x")


@plot
def test_the_same_data_gives_the_same_bytes(plot) -> None:
    assert plot("x") == plot("x")


@plot
def test_ids_of_different_drawings_never_meet(plot) -> None:
    for first, second in ([plot("x"), plot("y")], drawings_as_text(plot("x"))):
        ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
        assert not ids[0] & ids[1]
        for svg, known in zip((first, second), ids, strict=True):
            assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {
                pair for name in known for pair in ((name, ""), ("", name))
            }


def drawings_as_text(svg: str) -> list[str]:
    return [ElementTree.tostring(drawing, encoding="unicode") for drawing in drawings(svg)]


@plot
def test_a_hostile_label_is_drawn_as_text(plot) -> None:
    for drawing in drawings(plot(HOSTILE)):
        assert not [element for element in drawing.iter() if element.tag.endswith("script")]
        assert "<script>" in texts(drawing)
        assert "$" in texts(drawing)
        assert "_a" in texts(drawing)


def test_a_band_and_a_reference_are_drawn() -> None:
    bare = Series("distilled", SERIES.x, SERIES.y)
    assert curves([SERIES], "x", "y").count("fill-opacity") > curves([bare], "x", "y").count("fill-opacity")
    rows = [Estimate("a", 1, 0, 2)]
    assert intervals(rows, "x", reference=1).count("stroke-dasharray") == 2
    assert intervals(rows, "x").count("stroke-dasharray") == 0


def test_values_that_are_not_finite_are_left_out() -> None:
    gap = Series("gap", [0, 1, 2], [1.0, math.nan, 3.0])
    drawn = curves([gap], "x", "y") + paired_differences([0.1, math.nan, math.inf, -0.1], 0, -0.1, 0.1, "x")
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_one_dot_a_difference_up_to_the_limit() -> None:
    def dots(count: int) -> int:
        values = [math.sin(index) for index in range(count)]
        wide = drawings(paired_differences(values, 0, -0.1, 0.1, "x"))[0]
        return sum(element.tag.endswith("use") for element in wide.iter())

    assert dots(150) - dots(100) == 50
    assert dots(40_000) == dots(1500)


def test_equal_differences_are_drawn_too() -> None:
    assert "mean 0" in texts(drawings(paired_differences([0.0, 0.0], 0.0, 0.0, 0.0, "x"))[0])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: curves([], "x", "y"), "nothing to draw"),
        (lambda: curves([Series("a", [0, 1], [1])], "x", "y"), r"'a'.*\[1, 2\]"),
        (lambda: intervals([], "x"), "nothing to draw"),
        (lambda: bars_with_intervals(["f"], [BARS], "x"), r"'distilled'.*\[2\] values for 1"),
        (lambda: paired_differences([math.nan], 0, 0, 0, "x"), "nothing to draw"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw()


def test_labels_are_one_short_printable_line() -> None:
    assert label("a\x00b\n\tc\x1b[31m") == "a b c [31m"
    assert label("x" * 50 + "y" * 50, 21) == "x" * 10 + "…" + "y" * 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1234567, "1,234,567"),
        (-3, f"{MINUS}3"),
        (0.000123, "0.000123"),
        (-1e-9, "0.000000"),
        (math.nan, MISSING),
        (None, MISSING),
    ],
)
def test_numbers(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_percent_stands_once_in_limits() -> None:
    assert limits(Interval(0.5, 0.4, 0.61), percent=True) == "40.0 to 61.0 %"
    assert number(-math.inf) == f"{MINUS}∞"
    assert decimals_for([120.0, 3.0]) == 1


def test_the_light_colours_tell_roles_apart() -> None:
    """The drawing's colours are mapped back to roles by value, so no two roles may share one."""
    assert len({colour.light for colour in COLOURS.values()}) == len(COLOURS)
