"""The demo's report: one self-contained page with every figure and its interval."""

from collections.abc import Mapping
from pathlib import Path

from limbeck import __version__
from limbeck.distill.train import TrainingResult
from limbeck.evaluate.statistics import Estimate
from limbeck.pages.cells import Badge, Cell, Column, Key
from limbeck.pages.numbers import Interval
from limbeck.pages.plots import Bars, Series, bars_with_intervals, curves, paired_differences
from limbeck.pages.report import Fact, Report
from limbeck.pocket.crowning import Crowning
from limbeck.pocket.measure import Measurement, kl_difference

CURVE_POINTS = 40
OUTCOME_TONES = {"crowned": "good", "held": "good", "lost": "muted", "dethroned": "muted", "disqualified": "bad"}


def write_report(
    path: Path, trained: Mapping[str, TrainingResult], measured: Mapping[str, Measurement], crowning: Crowning
) -> None:
    """Write the page.

    Args:
        path: where to.
        trained: the training results of the students, by name.
        measured: the measurements of teacher and students, by name.
        crowning: how the arena's round ended.
    """
    report = Report(
        "One teacher, two students, one crown",
        "The pocket teacher distilled, measured and crowned on this machine. Every interval is a 95 % interval.",
        footer=f"limbeck {__version__}, `limbeck demo`",
    )
    saved = kl_difference(measured["hard labels"], measured["distilled"])
    report.facts(
        {
            "KL saved by distillation": Fact(
                f"{saved.value:.3f} nats",
                f"{saved.low:.3f} to {saved.high:.3f} a token",
                tone="good" if saved.low > 0 else "bad",
            ),
            "Distilled, from the teacher": _fact(measured["distilled"].divergences.kl, "nats a token"),
            "Hard labels, from the teacher": _fact(measured["hard labels"].divergences.kl, "nats a token"),
            "King": Fact(crowning.names[crowning.king], f"round {crowning.round_id}", tone="good"),
        }
    )
    _divergences(report, measured)
    _exercises(report, measured)
    _arena(report, crowning)
    _training(report, trained)
    report.save(path)


def _fact(estimate: Estimate, unit: str) -> Fact:
    return Fact(f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f} {unit}")


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)


def _training(report: Report, trained: Mapping[str, TrainingResult]) -> None:
    report.section(
        "How they were trained",
        "Both students have one shape, began from the same weights and read the same rows in the same order. One "
        "learned only which token came next; the other also learned what the teacher thought of every other token.",
    )
    report.figure(
        curves(_smoothed(trained, "cross_entropy"), "step", "cross-entropy, nats a token"),
        "Cross-entropy with the next token, on the training rows of about a fortieth of the run.",
    )
    report.figure(
        curves(_smoothed(trained, "kl"), "step", "KL, nats a token"),
        "KL from the captured signals, likewise; the student of hard labels never sees it.",
    )


def _smoothed(trained: Mapping[str, TrainingResult], loss: str) -> list[Series]:
    """Return one curve a student that was trained on `loss`: means over stretches of its history."""
    series = []
    for name, result in trained.items():
        entries = [entry for entry in result.history if loss in entry]
        width = max(1, -(-len(entries) // CURVE_POINTS))
        parts = [entries[first : first + width] for first in range(0, len(entries), width)]
        if parts:
            steps = [sum(entry["step"] for entry in part) / len(part) for part in parts]
            series.append(Series(name, steps, [sum(entry[loss] for entry in part) / len(part) for part in parts]))
    return series


def _divergences(report: Report, measured: Mapping[str, Measurement]) -> None:
    any_of = next(iter(measured.values())).divergences
    report.section(
        "How far from the teacher",
        f"On {any_of.tokens:,} tokens of {any_of.documents} files of the standard library that neither teacher nor "
        "student ever saw, exact over the whole vocabulary. Tokens of one file are not independent, so intervals are "
        "clustered by file.",
    )
    rows: list[list[Cell]] = [
        [
            name,
            _interval(one.divergences.kl),
            _interval(one.divergences.reverse_kl),
            _interval(one.divergences.agreement),
            _interval(one.divergences.bits_per_byte),
        ]
        for name, one in measured.items()
    ]
    report.table(
        [
            "model",
            Column("KL(teacher ‖ model)", decimals=3),
            Column("KL(model ‖ teacher)", decimals=3),
            Column("same first token", percent=True),
            Column("bits per byte", decimals=3),
        ],
        rows,
        "Divergences in nats a token.",
        highlight=[list(measured).index("distilled")],
    )
    students = {name: one for name, one in measured.items() if name != "teacher"}
    places = len(next(iter(students.values())).kl_by_position)
    report.figure(
        curves(
            [
                Series(
                    name,
                    [16 * (index + 0.5) for index in range(places)],
                    [estimate.value for estimate in one.kl_by_position],
                    [estimate.low for estimate in one.kl_by_position],
                    [estimate.high for estimate in one.kl_by_position],
                )
                for name, one in students.items()
            ],
            "position in the row, tokens",
            "KL(teacher ‖ model), nats a token",
        ),
        "KL by position: how it changes as more of the text is known. Bands are 95 % intervals.",
    )


def _exercises(report: Report, measured: Mapping[str, Measurement]) -> None:
    report.section(
        "What they can do",
        "Exercises of seventeen families, answered greedily, right only if the declared last line states the exact "
        "answer. The operands were never seen in training.",
    )
    families = sorted(next(iter(measured.values())).families)
    report.figure(
        bars_with_intervals(
            [family.replace("_", " ") for family in families],
            [
                Bars(
                    name,
                    [one.families[family].value for family in families],
                    [one.families[family].low for family in families],
                    [one.families[family].high for family in families],
                )
                for name, one in measured.items()
            ],
            "answered right",
        ),
        "Share of held-out exercises answered right, with Wilson intervals.",
    )
    report.table(
        ["model", Column("all exercises", percent=True)],
        [[name, _interval(one.overall)] for name, one in measured.items()],
        "All families together.",
    )


def _arena(report: Report, crowning: Crowning) -> None:
    report.section("The crown", crowning.reason)
    mid, low, high = crowning.difference
    others = [commitment for commitment in crowning.per_prompt if commitment != crowning.king]
    if others and low is not None and high is not None:
        pairs = zip(crowning.per_prompt[crowning.king], crowning.per_prompt[others[0]], strict=True)
        king, other = crowning.names[crowning.king], crowning.names[others[0]]
        report.figure(
            paired_differences(
                [first - second for first, second in pairs], mid, low, high,
                f"KL of {king} minus KL of {other}, nats a token", f"{king} is closer", f"{other} is closer",
            ),
            "The duel, prompt by prompt: both students on the same continuations by the teacher.",
        )  # fmt: skip
    report.table(
        ["student", "commitment", Column("mean KL", decimals=4), "outcome", "why"],
        [
            [
                crowning.names[commitment],
                Key(commitment),
                crowning.kl[commitment],
                Badge(outcome, OUTCOME_TONES.get(outcome, "plain")),  # type: ignore[arg-type]
                why,
            ]
            for commitment, (outcome, why) in crowning.outcomes.items()
        ],
        f"Round {crowning.round_id}. Weights set on the ledger: "
        + ", ".join(f"UID {uid} = {weight:,}" for uid, weight in crowning.weights.items())
        + ".",
    )
    report.note(
        f"The verdict was made again from the stored evidence and is identical to the byte "
        f"({crowning.replayed[:16]}…); the log of {crowning.events} hash-chained events is whole. "
        "`limbeck verify last --arena-dir …/arena` repeats this.",
        kind="good",
    )
