"""Measuring a pocket model: divergences from the teacher on held-out files, and accuracy on held-out exercises."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.table import Table
from transformers import PreTrainedModel

from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.transformers import load_model
from limbeck.evaluate.divergences import DivergenceSummary, RowDivergence, measure, summarise
from limbeck.evaluate.statistics import Estimate, by_cluster, clustered_ratio, paired_difference, proportion
from limbeck.files import read_json, write_json
from limbeck.pocket.card import ask_families
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.texts import held_out_rows
from limbeck.progress import bar, console, say
from limbeck.settings import Settings

POSITION_BUCKETS = 16


class MeasureSettings(Settings):
    """How much is measured."""

    seed: str = Field("1", description="decides which exercises are asked")
    items_a_family: int = Field(50, gt=0)
    row_length: int = Field(256, gt=1, description="tokens in a row of held-out text")
    rows_a_document: int = Field(2, gt=0)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        name: what the model is called in tables.
        divergences: means over held-out text, with intervals clustered by document.
        documents: the documents' names, in order.
        kl_sums: total forward KL in each document, in nats.
        tokens: predictions in each document.
        kl_by_position: mean KL in each of 16 stretches of a row, with intervals; `row_length / 16` tokens each.
        families: accuracy on each exercise family.
        overall: accuracy over all exercises.
    """

    name: str
    divergences: DivergenceSummary
    documents: tuple[str, ...]
    kl_sums: tuple[float, ...]
    tokens: tuple[float, ...]
    kl_by_position: tuple[Estimate, ...]
    families: dict[str, Estimate]
    overall: Estimate


def measure_student(name: str, student: str | Path, teacher: PreTrainedModel, settings: MeasureSettings) -> Measurement:
    """Measure the model in the folder `student` against `teacher`.

    Raises:
        UserError: the student can't be loaded, or has another vocabulary than the teacher.
    """
    model, tokenizer = load_model(student), load_tokenizer(student)
    rows = held_out_rows(load_corpus(), tokenizer, length=settings.row_length, rows_a_document=settings.rows_a_document)
    with bar(f"comparing {name} with the teacher", len(rows)) as shown:
        measured = measure(model, teacher, rows, on_row=shown.advance)
    results = ask_families(model, tokenizer, settings.seed, settings.items_a_family)
    right = sum(round(result.accuracy.value * len(result.items)) for result in results)
    documents, kl_sums = by_cluster([float(row.kl.sum()) for row in measured], [row.document for row in measured])
    _, tokens = by_cluster([len(row.kl) for row in measured], [row.document for row in measured])
    return Measurement(
        name=name,
        divergences=summarise(measured),
        documents=tuple(documents),
        kl_sums=tuple(kl_sums.tolist()),
        tokens=tuple(tokens.tolist()),
        kl_by_position=tuple(_kl_by_position(measured, settings.row_length)),
        families={result.axis.removeprefix("pocket_"): result.accuracy for result in results},
        overall=proportion(right, sum(len(result.items) for result in results)),
    )


def kl_difference(first: Measurement, second: Measurement) -> Estimate:
    """Return how much more KL `first` has than `second` on the same held-out text, with its 95 % interval."""
    if first.documents != second.documents or first.tokens != second.tokens:
        raise ValueError(f"{first.name} and {second.name} were not measured on the same text")
    return paired_difference(first.kl_sums, second.kl_sums, first.tokens)


def _kl_by_position(rows: Sequence[RowDivergence], length: int) -> list[Estimate]:
    width = max(1, length // POSITION_BUCKETS)
    estimates = []
    for first in range(0, length - 1, width):
        parts: list[NDArray[np.float64]] = [row.kl[first : first + width] for row in rows]
        names = [row.document for row in rows]
        _, sums = by_cluster([float(part.sum()) for part in parts], names)
        _, sizes = by_cluster([len(part) for part in parts], names)
        if sizes.sum() > 0:
            estimates.append(clustered_ratio(sums, sizes))
    return estimates


def save_measurement(path: Path, measurement: Measurement) -> None:
    """Publish a measurement as JSON."""
    write_json(path, asdict(measurement))


def load_measurement(path: Path) -> Measurement:
    """Read what `save_measurement` wrote."""
    data: dict[str, Any] = read_json(path)
    divergences: dict[str, Any] = {
        key: Estimate(**value) if isinstance(value, dict) else value for key, value in data.pop("divergences").items()
    }
    return Measurement(
        name=data["name"],
        divergences=DivergenceSummary(**divergences),
        documents=tuple(data["documents"]),
        kl_sums=tuple(data["kl_sums"]),
        tokens=tuple(data["tokens"]),
        kl_by_position=tuple(Estimate(**estimate) for estimate in data["kl_by_position"]),
        families={name: Estimate(**estimate) for name, estimate in data["families"].items()},
        overall=Estimate(**data["overall"]),
    )


def print_summary(measurements: Sequence[Measurement]) -> None:
    """Print one table of all models, and one of their exercises."""
    say("\nHeld-out text (KL in nats a token) and exercises, with 95 % intervals")
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for measured in measurements:
        table.add_column(measured.name, justify="right", no_wrap=True, style="bold")
    for title, get, digits in (
        ("KL from teacher", lambda m: m.divergences.kl, 3),
        ("KL to teacher", lambda m: m.divergences.reverse_kl, 3),
        ("same first token", lambda m: m.divergences.agreement, 3),
        ("bits per byte", lambda m: m.divergences.bits_per_byte, 3),
        ("exercises right", lambda m: m.overall, 3),
    ):
        table.add_row(title, *(shown(get(measured), digits) for measured in measurements))
    for family in sorted(measurements[0].families):
        table.add_row(family, *(shown(measured.families[family], 2) for measured in measurements), style="dim")
    console.print(table)


def shown(estimate: Estimate, digits: int) -> str:
    """Return an estimate as `value (low-high)`."""
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f}-{estimate.high:.{digits}f})"
