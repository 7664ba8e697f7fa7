"""Plots as themed SVG: matplotlib draws, this file makes the result fit a web page.

A plot is drawn twice, for a wide column and for a phone, and the style sheet shows the one that fits. Every colour
becomes a CSS custom property with the light value as its fallback, so a plot follows light and dark mode in a page and
is readable on its own. The background is transparent, text is text in the page's font, and there is no style
attribute, script, link or date: the same data gives the same bytes, and a strict Content-Security-Policy lets it pass.

Labels are data, never markup: no mathematics is parsed in them and control characters are dropped.
"""

import hashlib
import io
import re
import textwrap
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.pages.palette import COLOURS

WIDE_PX = 860
NARROW_PX = 360
SVG = "http://www.w3.org/2000/svg"
DROPPED_ATTRIBUTES = {"font-family", "font-stretch", "font-style", "font-variant", "font"}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "path.simplify": True,
}

_drawing = threading.Lock()  # matplotlib's settings are global to the process


@dataclass(frozen=True)
class Canvas:
    """One of the two drawings of a plot: its figure and axes (matplotlib's), and whether it is the phone's."""

    figure: Any
    axes: Any
    narrow: bool

    def colour(self, role: str) -> str:
        """Return the colour to hand to matplotlib for a role of the palette."""
        return COLOURS[role].light

    def set_height(self, pixels: float) -> None:
        """Make the drawing `pixels` high."""
        self.figure.set_size_inches(self.figure.get_size_inches()[0], pixels / 72)

    def name_x(self, text: str) -> None:
        """Name the x axis, on as many lines as the width asks for."""
        self.axes.set_xlabel(textwrap.fill(label(text, 120), 44 if self.narrow else 110))

    def legend(self, handles: Sequence[Any], names: Sequence[str], title: str = "") -> None:
        """Put a legend above the axes, in as many columns as fit, under a title that says what the y axis is."""
        texts = [label(name, 40) for name in names]
        longest = max((len(text) for text in texts), default=0)
        columns = max(1, min(len(texts) or 1, int((36 if self.narrow else 100) // (longest + 5))))
        drawn = self.figure.legend(
            handles,
            texts,
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            fontsize=12,
            handlelength=1.6,
            columnspacing=1.8,
            borderaxespad=0.2,
            borderpad=0,
            title=label(title, 48) or None,
            title_fontsize=12,
            alignment="left",
        )
        drawn.get_title().set_color(self.colour("muted"))
        for text in drawn.get_texts():
            text.set_color(self.colour("ink"))


def responsive(draw: Callable[[Canvas], None], height: float = 340) -> str:
    """Draw a plot for both widths.

    Args:
        draw: draws into the canvas it is given; called twice.
        height: in pixels of the wide drawing, unless `draw` sets another.

    Returns:
        Two `<svg>` elements, of which the pages' style sheet shows one.
    """
    return _draw_once(draw, WIDE_PX, height, narrow=False) + _draw_once(draw, NARROW_PX, height, narrow=True)


def label(text: str, width: int = 60) -> str:
    """Return `text` on one line, without control characters, with its middle cut out beyond `width` characters."""
    clean = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if len(clean) <= width:
        return clean
    head = (width - 1) // 2
    return f"{clean[:head]}…{clean[len(clean) - (width - 1 - head) :]}"


def _draw_once(draw: Callable[[Canvas], None], width: float, height: float, narrow: bool) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _drawing, matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has more fonts than we do
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        canvas = Canvas(figure, axes, narrow)
        _dress(canvas)
        draw(canvas)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(buffer.getvalue(), f"plot {'plot-narrow' if narrow else 'plot-wide'}")


def _dress(canvas: Canvas) -> None:
    axes, ink, muted = canvas.axes, canvas.colour("ink"), canvas.colour("muted")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(canvas.colour("line"))
    axes.tick_params(which="both", length=0, pad=6, labelsize=12, colors=muted)
    axes.grid(True, which="major", color=canvas.colour("line"), linewidth=1)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=ink, fontsize=12)
    axes.yaxis.label.set(color=ink, fontsize=12)


def themed(svg: str, css_class: str) -> str:
    """Rewrite matplotlib's SVG for a page: custom properties for colours, presentation attributes, no page-wide ids."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own drawing, made a moment ago
    prefix = f"p{hashlib.sha256((css_class + svg).encode()).hexdigest()[:10]}"
    _strip(root)
    names: dict[str, str] = {}
    for element in root.iter():
        _restyle(element)
        for value in element.attrib.values():
            for reference in re.findall(r"^#([\w.-]+)$|url\(#([\w.-]+)\)", value):
                target = reference[0] or reference[1]
                if not value.startswith("#") or element.tag == "use":
                    names.setdefault(target, f"{prefix}-{len(names)}")
    for element in root.iter():
        _rename(element, names)
    view_box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {
        "xmlns": SVG,
        "class": css_class,
        "viewBox": view_box,
        "font-family": "system-ui, sans-serif",
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Drop namespaces, metadata, matplotlib's page-wide `<style>`, and the white space between elements."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag != "text":
            element.text = None
        element.tail = None
        for key in [key for key in element.attrib if key.startswith("{")]:
            element.attrib[key.rpartition("}")[2]] = element.attrib.pop(key)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)


def _restyle(element: ElementTree.Element) -> None:
    declarations = element.attrib.pop("style", "")
    for declaration in filter(None, (part.strip() for part in declarations.split(";"))):
        key, _, value = declaration.partition(":")
        if key not in DROPPED_ATTRIBUTES:
            element.attrib[key] = value.strip()
    for key in ("fill", "stroke"):
        role = next((name for name, colour in COLOURS.items() if colour.light == element.attrib.get(key)), None)
        if role is not None:
            element.attrib[key] = f"var(--{role}, {COLOURS[role].light})"
    if "d" in element.attrib:
        rounded = re.sub(
            r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), element.attrib["d"]
        )
        element.attrib["d"] = " ".join(rounded.split())
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]


def _rename(element: ElementTree.Element, names: dict[str, str]) -> None:
    identity = element.attrib.pop("id", None)
    if identity in names:
        element.attrib["id"] = names[identity]
    for key, value in element.attrib.items():
        if key == "href" and value.startswith("#"):
            element.attrib[key] = f"#{names[value[1:]]}"
        else:
            element.attrib[key] = re.sub(r"url\(#([\w.-]+)\)", lambda found: f"url(#{names[found[1]]})", value)
