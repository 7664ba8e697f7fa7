"""The colours of pages and plots: one table, from which the style sheet and the plots both read.

A colour has a role and two values, for light and for dark mode. The series colours keep the hue order of Okabe and
Ito's palette (blue, vermilion, green, purple, ochre, grey), which stays apart under the common colour deficiencies;
plots tell series apart by marker or line style as well.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One role's value in light and in dark mode, as `#rrggbb`."""

    light: str
    dark: str


COLOURS: dict[str, Colour] = {
    "paper": Colour("#faf9f7", "#131519"),
    "surface": Colour("#ffffff", "#1b1e24"),
    "ink": Colour("#1d2129", "#e8e9ec"),
    "muted": Colour("#5f6773", "#9da5b3"),
    "line": Colour("#e5e3de", "#2d323b"),
    "tint": Colour("#f6efe9", "#2a2523"),
    "copper": Colour("#a4491f", "#e79a6c"),
    "good": Colour("#0b7a55", "#57c79c"),
    "bad": Colour("#b3261e", "#f2958d"),
    "warn": Colour("#8a6100", "#e2bd5a"),
    "series-1": Colour("#2166ac", "#72b2f0"),
    "series-2": Colour("#c4500f", "#f39a66"),
    "series-3": Colour("#0f866c", "#50c8a8"),
    "series-4": Colour("#a1467f", "#e093c4"),
    "series-5": Colour("#a87b00", "#e3c053"),
    "series-6": Colour("#6c7583", "#aab2bf"),
}

SERIES = tuple(name for name in COLOURS if name.startswith("series-"))


def series_role(index: int) -> str:
    """Return the role of the series drawn at `index` (counted from 0); the colours repeat after six."""
    return SERIES[index % len(SERIES)]


def custom_properties(mode: str) -> str:
    """Return the CSS declarations `--role: value;` of one mode, `light` or `dark`."""
    return " ".join(f"--{role}: {getattr(colour, mode)};" for role, colour in COLOURS.items())
