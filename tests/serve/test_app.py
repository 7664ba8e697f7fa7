"""The API and the home page over an arena that is made up, hostile, empty or out of order."""

import dataclasses
import html
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient

from limbeck.errors import LimbeckError
from limbeck.pages.html import style_sheet
from limbeck.serve.app import create_app
from limbeck.serve.reader import (
    ArenaInfo,
    Commitment,
    King,
    Metagraph,
    Neuron,
    PairedDifference,
    Reign,
    Round,
    Score,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"
PATHS = ("health", "metagraph", "commitments", "scores", "king", "rounds")
LEAD = PairedDifference(0.0412, 0.0301, 0.0523, 40)


class MadeUpArena:
    """An arena of two models in which every free text is `text`."""

    def __init__(self, text: str = "alice/student", crowned: bool = True) -> None:
        self.text = text
        self.crowned = crowned

    def arena(self) -> ArenaInfo:
        return ArenaInfo(self.text, "kl_duel", self.text, 1, 120, "measuring")

    def king(self) -> King | None:
        if not self.crowned:
            return None
        return King("5Alice:7", "5Alice", 1, self.text, "a" * 40, 100, 110, 0.1234, "5Bob:9", LEAD)

    def reigns(self) -> list[Reign]:
        return [Reign("5Alice:7", self.text, 100, None, self.text)] if self.crowned else []

    def commitments(self) -> list[Commitment]:
        return [
            Commitment("5Bob:9", self.text, 2, "bob/student", "b" * 40, 9, "disqualified", self.text),
            Commitment("5Alice:7", "5Alice", 1, self.text, "a" * 40, 7, "evaluated", ""),
        ]

    def scores(self) -> list[Score]:
        if not self.crowned:
            return []
        return [
            Score("5Alice:7", self.text, 110, "held", 0.1234, None, self.text),
            Score("5Bob:9", self.text, 110, "lost", 0.1646, LEAD, self.text),
        ]

    def rounds(self, limit: int) -> list[Round]:
        if not self.crowned:
            return []
        decided = Round(110, "0x" + "0" * 64, "closed", 1, 2, "5Alice:7", "5Alice:7", False, self.text, "c" * 64)
        return [dataclasses.replace(decided, id=number) for number in range(110, 0, -1)][:limit]

    def metagraph(self) -> Metagraph:
        return Metagraph(97, 120, "0x" + "1" * 64, [Neuron(1, self.text, "5Cold", 5, False, True, 7, 1.0)])


class BrokenArena(MadeUpArena):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def king(self) -> King | None:
        raise self.error


def client(arena: MadeUpArena) -> TestClient:
    return TestClient(create_app(arena), raise_server_exceptions=False)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("path", PATHS)
def test_every_path_answers_under_both_prefixes_alike(path: str) -> None:
    browser = client(MadeUpArena())
    plain, versioned = browser.get(f"/api/{path}"), browser.get(f"/api/v1/{path}")
    assert plain.status_code == versioned.status_code == 200
    assert plain.json() == versioned.json()
    assert plain.headers["access-control-allow-origin"] == "*"


def test_the_answers_say_what_the_arena_says() -> None:
    browser = client(MadeUpArena())
    assert browser.get("/api/king").json()["king"]["lead"] == dataclasses.asdict(LEAD)
    assert browser.get("/api/king").json()["reigns"][0]["to_round"] is None
    assert browser.get("/api/metagraph").json()["n"] == 1
    assert browser.get("/api/health").json() | {"version": ""} == {
        "status": "ok",
        "version": "",
        "arena": "alice/student",
        "policy": "kl_duel",
        "teacher": "alice/student",
        "config_version": 1,
        "block": 120,
        "king": "5Alice:7",
        "open_round": 120,
        "open_round_state": "measuring",
    }
    assert browser.get("/api/scores").json()["scores"][1]["from_king"]["high"] == 0.0523
    assert browser.get("/api/commitments").json()["commitments"][0]["state"] == "disqualified"


def test_an_empty_throne_is_null_and_no_error() -> None:
    browser = client(MadeUpArena(crowned=False))
    assert browser.get("/api/king").json() == {"king": None, "reigns": []}
    assert browser.get("/api/health").json()["king"] is None
    assert "the throne is empty" in browser.get("/").text


def test_rounds_come_newest_first_up_to_the_limit() -> None:
    browser = client(MadeUpArena())
    assert [entry["id"] for entry in browser.get("/api/rounds?limit=2").json()["rounds"]] == [110, 109]
    assert len(browser.get("/api/rounds").json()["rounds"]) == 50


@pytest.mark.parametrize("limit", ["0", "501", "many", "-1"])
def test_a_bad_parameter_is_named_and_nothing_else_is_told(limit: str) -> None:
    answer = client(MadeUpArena()).get("/api/rounds", params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_parameter"
    assert answer.json()["error"]["message"].startswith("limit: ")
    assert set(answer.json()) == {"error"}


def test_the_home_page_shows_king_lead_and_reasons() -> None:
    text = Page(client(MadeUpArena()).get("/").text).text
    for expected in ("0.1234", "0.0301 to 0.0523", "since round 100", "disqualified", "round 120", "measuring"):
        assert expected in text
    assert text.index("5Alice") < text.index("bob/student")  # the king stands first, though he committed later


def test_hostile_names_never_become_markup() -> None:
    harmless, hostile = (Page(client(MadeUpArena(text)).get("/").text) for text in ("alice/student", HOSTILE))
    assert hostile.tags == harmless.tags
    assert "script" not in hostile.tags
    assert "img" not in hostile.tags
    assert not [name for name in hostile.names if name.startswith("on")]
    assert hostile.text.count("<script>alert(1)</script>") >= 6  # shown for what it is
    assert "{{ 7*7 }}" in hostile.text


def test_hostile_names_come_through_the_api_as_data() -> None:
    answer = client(MadeUpArena(HOSTILE)).get("/api/king")
    assert answer.json()["king"]["model"] == HOSTILE
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/api/king", "/api/nothing", "/nothing", "/api/rounds?limit=0"])
def test_every_answer_has_a_policy_that_allows_no_script(path: str) -> None:
    policy = client(MadeUpArena()).get(path).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["frame-ancestors"] == "'none'"
    assert "script-src" not in directives
    assert "unsafe" not in policy


def test_the_policy_allows_the_page_s_own_style() -> None:
    import base64
    import hashlib

    answer = client(MadeUpArena()).get("/")
    inside = html.unescape(answer.text.split("<style>")[1].split("</style>")[0])
    assert inside == html.unescape(style_sheet())
    digest = base64.b64encode(hashlib.sha256(answer.text.split("<style>")[1].split("</style>")[0].encode()).digest())
    assert f"'sha256-{digest.decode()}'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/api/nothing", 404, "not_found"), ("/docs", 404, "not_found"), ("/x", 404, "not_found")],
)
def test_an_unknown_path_is_a_json_error(path: str, status: int, code: str) -> None:
    answer = client(MadeUpArena()).get(path)
    assert answer.status_code == status
    assert answer.json() == {"error": {"code": code, "message": "Not Found."}}


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
@pytest.mark.parametrize("path", ["/", *(f"/api/{path}" for path in PATHS)])
def test_nothing_can_be_changed(method: str, path: str) -> None:
    answer = getattr(client(MadeUpArena()), method)(path)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/api/king", "/api/health", "/"])
@pytest.mark.parametrize(
    ("error", "status"),
    [(LimbeckError("/srv/secret/store.sqlite: locked"), 503), (RuntimeError("/srv/secret: password=hunter2"), 500)],
)
def test_an_error_tells_nothing_of_the_inside(path: str, error: Exception, status: int) -> None:
    answer = client(BrokenArena(error)).get(path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}
    assert "content-security-policy" in answer.headers
    for word in ("secret", "hunter2", "Traceback", "sqlite", "Error:"):
        assert word not in answer.text


def test_the_schema_is_typed_and_lists_every_versioned_path() -> None:
    schema = client(MadeUpArena()).get("/api/openapi.json").json()
    assert set(schema["paths"]) == {f"/api/v1/{path}" for path in PATHS}
    king = schema["components"]["schemas"]["King"]["properties"]
    assert set(king) == {field.name for field in dataclasses.fields(King)}
    assert not [path for path, methods in schema["paths"].items() if set(methods) != {"get"}]
