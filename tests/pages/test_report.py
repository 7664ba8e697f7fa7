"""Reports: whole, self-contained, the same bytes twice, and nothing that a hostile text says becomes markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.pages.cells import Badge, Column, Key, Link
from limbeck.pages.html import style_digest, style_sheet
from limbeck.pages.numbers import MISSING, Interval
from limbeck.pages.plots import Series, curves
from limbeck.pages.report import Fact, Report

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' onload=alert(3) {{ 7*7 }}"


class Page(HTMLParser):
    """Collects a page's elements and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full_report(text: str) -> Report:
    """A report in which `text` stands in every place that takes a text."""
    report = Report(text, text, text)
    report.facts({text: Fact(text, text)})
    report.section(text, text)
    report.table([text, Column(text)], [[text, Key(text)], [Badge(text), Link(text, "#x")]], text, highlight=[0])
    drawing = curves([Series(text, [0, 1], [1, 2]), Series("b", [0, 1], [2, 1])], text, text)
    report.figure(drawing, text).note(text).code(text)
    return report


def test_hostile_text_stays_text_everywhere() -> None:
    page, harmless = Page(full_report(HOSTILE).html()), Page(full_report("harmless").html())
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in harmless.elements}
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "".join(page.text).count("alert(1)") >= 10  # it is shown, in full, as what it is
    assert "{{ 7*7 }}" in "".join(page.text)


def test_the_page_asks_nobody_for_anything() -> None:
    page = Page(full_report("harmless").html())
    loading = {"src", "srcset", "action", "data", "poster", "background"}
    assert not [tag for tag, attributes in page.elements if loading & attributes.keys()]
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert not [attributes for _, attributes in page.elements if "style" in attributes]
    assert not re.search(r"@import|url\(|expression", style_sheet())


def test_its_own_policy_forbids_scripts_and_allows_its_own_style() -> None:
    html = full_report("harmless").html()
    policy = next(a["content"] for tag, a in Page(html).elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src '{style_digest()}'")
    assert "script" not in policy
    assert f"<style>{style_sheet()}</style>" in html


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        full_report("same").save(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_numbers_share_decimals_down_a_column_and_show_their_limits() -> None:
    rows = [["a", Interval(0.12433, 0.118, 0.131), 0.5], ["b", Interval(0.0987, 0.09, 0.107), None]]
    text = Page(Report("r").table(["model", "KL", Column("share", percent=True)], rows).html()).text
    assert {"0.1243", "0.1180 to 0.1310", "0.0987", "50.0 %", MISSING} <= {part.strip() for part in text}


def test_a_numeric_column_is_marked_and_a_mixed_one_is_not() -> None:
    elements = Page(Report("r").table(["n", "x", "y"], [["a", 1, "1"], ["b", 2.5, 2]]).html()).elements
    heads = [
        attributes.get("class") for tag, attributes in elements if tag == "th" and attributes.get("scope") == "col"
    ]
    assert heads == [None, "number", None]


def test_only_the_highlighted_rows_are_set_off() -> None:
    elements = Page(Report("r").table(["n"], [["a"], ["b"], ["c"]], highlight=[1]).html()).elements
    assert [attributes.get("class") for tag, attributes in elements if tag == "tr"] == [None, None, "highlight", None]


def test_markup_in_running_text_is_code_and_strong_only() -> None:
    html = Report("r").text("**bold** and `a < b`, <b>not this</b>").html()
    assert "<strong>bold</strong> and <code>a &lt; b</code>, &lt;b&gt;not this&lt;/b&gt;" in html


def test_sections_with_the_same_heading_have_different_anchors() -> None:
    html = Report("r").section("Axis").section("Axis").section("Ω").section("Ω").html()
    anchors = [attributes["id"] for tag, attributes in Page(html).elements if tag == "section"]
    assert len(set(anchors)) == 4
    assert all(f'href="#{anchor}"' in html for anchor in anchors)


def test_a_row_of_the_wrong_length_is_named() -> None:
    with pytest.raises(UserError, match=r"'results': row 1 has 1 cells for 2 columns"):
        Report("r").table(["a", "b"], [[1, 2], [3]], "results")


@pytest.mark.parametrize(
    "svg",
    [
        "<img src=x>",
        "<svg><script>alert(1)</script></svg>",
        "<svg onload='alert(1)'></svg>",
        "<svg><a href='javascript:alert(1)'/></svg>",
        "<svg><foreignObject/></svg>",
    ],
)
def test_active_content_is_not_a_figure(svg: str) -> None:
    with pytest.raises(UserError, match="figure"):
        Report("r").figure(svg)


@pytest.mark.parametrize("href", ["javascript:alert(1)", "//evil.example", "/\\evil.example", "data:text/html,x", ""])
def test_a_link_leads_to_a_place_path_or_web_address(href: str) -> None:
    with pytest.raises(UserError, match="link"):
        Link("x", href)
