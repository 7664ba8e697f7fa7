"""The dashboard's home page, rendered on the server from what an `ArenaReader` says.

Who is king, since when and by how much, with its interval; the newest round; every commitment with its status and
reason. A page without scripts: it shows the moment at which it was asked for.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from limbeck import __version__
from limbeck.pages.cells import Badge, Cell, Column, Key, Link, Tone
from limbeck.pages.numbers import MISSING, Interval, decimals_for, limits, number
from limbeck.pages.plots import Estimate, intervals
from limbeck.pages.report import Fact, Report
from limbeck.serve.reader import ArenaReader, Commitment, King, Round, Score

SHOWN_ROUNDS = 10
TONES: dict[str, Tone] = {"king": "good", "disqualified": "bad", "pending": "muted", "admitted": "warn"}
API_PATHS = {
    "/api/king": "who reigns, since when, by how much; all reigns before",
    "/api/scores": "each model's newest divergence and its difference from the king",
    "/api/commitments": "who committed which model, its status and reason",
    "/api/rounds": "rounds and their verdicts",
    "/api/metagraph": "registered hotkeys, stake and weights",
    "/api/health": "whether the arena can be read",
    "/api/openapi.json": "the schema of all of these, under /api/v1",
}


def home_page(reader: ArenaReader) -> str:
    """Return the page as HTML."""
    arena, king, scores, rounds = reader.arena(), reader.king(), reader.scores(), reader.rounds(SHOWN_ROUNDS)
    commitments = reader.commitments()
    page = Report(
        f"Arena {arena.name}",
        f"Models that copy the teacher {arena.teacher}; the closest one reigns. Policy: {arena.policy}.",
        f"limbeck {__version__}, read-only. The same numbers are at /api.",
    )
    page.facts(_facts(king, rounds, arena.open_round, arena.open_round_state, len(commitments)))
    names = {entry.commitment: entry.model for entry in commitments}
    _newest_round(page, rounds, scores, names)
    page.section("Leaderboard")
    columns = [
        Column("model"),
        Column("status"),
        Column("round"),
        Column("KL, nats a token"),
        Column("behind its king"),
    ]
    page.table(
        [*columns, Column("hotkey"), Column("reason")],
        _leaderboard(commitments, scores, king),
        "KL(teacher ‖ model) in the model's newest round, lower is better. Behind its king: paired difference from the"
        " king who left that round, over its prompts, with a 95 % interval.",
        highlight=[0] if king else [],
    )
    page.section("Rounds")
    page.table(
        ["round", "state", "models", "verdict"],
        [[str(entry.id), Badge(entry.state, "muted"), entry.participants, _named(entry, names)] for entry in rounds],
    )
    page.section("API")
    page.table(["path", "what it tells"], [[Link(path, path), what] for path, what in API_PATHS.items()])
    return page.html()


def _facts(
    king: King | None, rounds: Sequence[Round], open_round: int | None, state: str | None, commitments: int
) -> dict[str, Fact | str | int | float]:
    settled = sum(entry.words is not None for entry in rounds)
    counted = f"{settled if settled < SHOWN_ROUNDS else f'{SHOWN_ROUNDS} or more'} decided, {commitments} commitments"
    now = Fact("no round" if open_round is None else f"round {open_round}", f"{state or 'all closed'}; {counted}")
    if king is None:
        return {"King": Fact(MISSING, "the throne is empty"), "Now": now}
    facts: dict[str, Fact | str | int | float] = {
        "King": Fact(king.model, f"since round {king.since_round}", tone="good"),
        "Divergence": Fact(number(king.kl), f"nats a token, round {king.round}" if king.round is not None else ""),
    }
    if king.lead is not None:
        facts["Ahead by"] = Fact(number(king.lead.mean, decimals_for([king.lead.mean], 3)), _lead_detail(king))
    return facts | {"Now": now}


def _lead_detail(king: King) -> str:
    lead = king.lead
    if lead is None:
        return ""
    if lead.low is None or lead.high is None:
        return "nats a token, over one prompt: no interval"
    interval = limits(Interval(lead.mean, lead.low, lead.high))
    return f"{interval} nats a token (95 %, {lead.prompts} prompts)"


def _newest_round(page: Report, rounds: Sequence[Round], scores: Sequence[Score], names: Mapping[str, str]) -> None:
    decided = next((entry for entry in rounds if entry.words is not None), None)
    if decided is None:
        return
    page.section(f"Round {decided.id}")
    page.note(_named(decided, names), "warn" if decided.void else "good")
    rows = [
        Estimate(score.model, score.from_king.mean, score.from_king.low, score.from_king.high)
        for score in scores
        if score.round == decided.id and score.from_king and score.from_king.low is not None
        if score.from_king.high is not None
    ]
    if rows:
        caption = "How far each model lies behind the king (dashed), over the prompts both were measured on, with 95 %"
        page.figure(_drawing(tuple(rows)), f"{caption} intervals; right of the line: farther from the teacher.")


def _named(entry: Round, names: Mapping[str, str]) -> str:
    """Return a round's verdict with models in place of commitments."""
    words = entry.words or ""
    for commitment in (name for name in names if name in words):
        words = words.replace(commitment, names[commitment])
    return words


@lru_cache(maxsize=8)
def _drawing(rows: tuple[Estimate, ...]) -> str:
    return intervals(rows, "difference in KL from the king, nats a token", reference=0.0)


def _leaderboard(commitments: Sequence[Commitment], scores: Sequence[Score], king: King | None) -> list[list[Cell]]:
    """Return the table's rows: the king, then by KL, then what has none in the order of committing."""
    by_commitment = {score.commitment: score for score in scores}
    first = king.commitment if king else None

    def order(entry: Commitment) -> tuple[bool, float]:
        score = by_commitment.get(entry.commitment)
        return entry.commitment != first, score.kl if score and score.kl is not None else float("inf")

    rows: list[list[Cell]] = []
    for entry in sorted(commitments, key=order):
        score = by_commitment.get(entry.commitment)
        behind = score.from_king if score else None
        status = "king" if entry.commitment == first else entry.state
        rows.append(
            [
                entry.model,
                Badge(status, TONES.get(status, "plain")),
                str(score.round) if score else None,
                score.kl if score else None,
                _interval(behind.mean, behind.low, behind.high) if behind else None,
                Key(entry.hotkey),
                entry.reason or (score.reason if score else "") or None,
            ]
        )
    return rows


def _interval(mean: float, low: float | None, high: float | None) -> Cell:
    return mean if low is None or high is None else Interval(mean, low, high)
