"""What a byte of signal buys: pocket students trained from signals of every kind, at equal steps, from equal weights.

    python -m benchmarks.students_by_bytes            about ten minutes on two cores; draws the plot of the docs
    python -m benchmarks.students_by_bytes --quick    a minute: that it works, not how it ends

One teacher, one text, one set of initial weights, one order of rows; only what is stored of the teacher differs. Each
student is then measured against the teacher on files that neither of them has seen, over the whole vocabulary, and
against the student of hidden states, which are all there is to know, on the same files (the paired difference).
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Row
from limbeck.data.tokenizer import tokenizer_digest
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import train
from limbeck.engines.scoring import complete_spec, score_rows, write_references
from limbeck.engines.transformers import load_model
from limbeck.evaluate.divergences import TextRow, measure, summarise
from limbeck.evaluate.statistics import Estimate, by_cluster, paired_difference
from limbeck.files import digest_of, write_json
from limbeck.pages.palette import COLOURS, series_role
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.students import write_student
from limbeck.pocket.texts import held_out_rows, text_rows
from limbeck.pocket.world import load_teacher
from limbeck.progress import bar
from limbeck.seeds import derive_random, derive_seed
from limbeck.settings import Settings, validate_settings
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.from_logits import LogitsChunk, logits_of, maker_of
from limbeck.signals.manifest import TeacherRef, make_header
from limbeck.signals.types import HiddenSignal
from limbeck.signals.writer import DatasetWriter

TITLE = "Students by bytes of signal"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "students-by-bytes.png"
HARD = "hard labels"
BEST = "hidden"
ONE = (1.0,)
SIGNALS: dict[str, tuple[Settings, ...]] = {
    "topk": (
        TopkSpec(threshold=0.05, temperatures=ONE), TopkSpec(threshold=0.005, temperatures=ONE),
        TopkSpec(threshold=5e-4, temperatures=ONE),
    ),
    "sampled": (SampledSpec(threshold=0.1), SampledSpec(threshold=0.01)),
    BEST: (HiddenSpec(),),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How much is done; everything else is the same."""

    steps: int = 200
    batch: int = 16
    length: int = 128
    rows_a_document: int = 2
    learning_rate: float = 6e-3


QUICK = Budget(steps=6, rows_a_document=1)


@dataclass(frozen=True)
class Student:
    """What became of one signal.

    Attributes:
        kind: of the signal, or hard labels.
        name: with the setting that decides its size.
        bytes_a_token: what the codec stores of a trained token; 0 for hard labels.
        documents: names of the held-out files.
        kl_sums: nats in each of them.
        tokens: in each of them.
        kl: to the teacher, nats a token.
    """

    kind: str
    name: str
    bytes_a_token: float
    documents: tuple[str, ...]
    kl_sums: tuple[float, ...]
    tokens: tuple[float, ...]
    kl: Estimate


def training_rows(budget: Budget, seed: int) -> list[TextRow]:
    """Return `steps * batch` rows of the training files, in a random order."""
    _, tokenizer = load_teacher()
    rows = text_rows(load_corpus().documents["train"], tokenizer, length=budget.length, rows_a_document=10_000)
    derive_random(seed, "rows").shuffle(rows)
    wanted = budget.steps * budget.batch
    if len(rows) < wanted:
        raise SystemExit(f"the corpus has {len(rows)} rows of {budget.length} tokens, fewer than {wanted}: fewer steps")
    return rows[:wanted]


def states_of(texts: Sequence[TextRow]) -> list[HiddenSignal]:
    """Return the teacher's hidden states: it reads the text once, and every signal is made of these."""
    model, _ = load_teacher()
    rows = [(torch.tensor(text.ids), torch.ones(len(text.ids), dtype=torch.bool)) for text in texts]
    found: list[Any] = []
    with bar("the teacher reads (tokens)", sum(len(text.ids) for text in texts)) as shown:
        found += score_rows(
            model, rows, complete_spec(HiddenSpec(dtype="float32"), model), batch_tokens=8192, on_row=shown.advance
        )
    return found


def store(folder: Path, texts: Sequence[TextRow], states: Sequence[HiddenSignal], asked: Settings, seed: int) -> float:
    """Write what the teacher says of some rows as a dataset; return the codec's bytes a trained token."""
    model, tokenizer = load_teacher()
    spec = complete_spec(asked, model)
    header = make_header(
        codec=spec, teacher=TeacherRef(repo="pocket", revision="shipped"),
        tokenizer_digest=tokenizer_digest(tokenizer), vocabulary=model.config.vocab_size,
        text_digest=digest_of([list(row.ids) for row in texts]), samples=len(texts), samples_per_shard=512,
        capture={"seed": seed},
    )  # fmt: skip
    codec, size, trained = make_codec(spec, header.vocabulary), 0, 0
    with DatasetWriter(folder, header) as writer:
        writer.write_beside(lambda beside: write_references(beside, spec, model))
        for samples in writer.missing_ranges():
            rows = []
            for sample in samples:
                signal = signal_of(states[sample], texts[sample], spec, derive_seed(seed, "sample", sample))
                columns = codec.encode(signal, [len(signal.mask)])
                size += sum(len(column.data) for column in columns.values())
                trained += int(signal.mask.sum())
                ids = torch.tensor(texts[sample].ids)
                rows.append(SignalRow(ids, torch.ones(len(ids), dtype=torch.bool), signal))
            writer.write_shard(samples, rows)
        writer.finish()
    return size / trained


@torch.no_grad()
def signal_of(states: HiddenSignal, text: TextRow, spec: Settings, seed: int) -> Any:
    """Return one row's signal of the kind that a codec stores, with the states' own mask."""
    if isinstance(spec, HiddenSpec):
        return states
    logits = logits_of(states.hidden, states.head)
    targets = torch.tensor(text.ids).roll(-1)
    made: Any = maker_of(spec, logits.shape[1])(LogitsChunk(logits, targets, position_keys(seed, len(targets))))
    return replace(made, mask=states.mask)


def train_student(work: Path, name: str, signals: Path, loss: str, budget: Budget, seed: int) -> Path:
    recipe: dict[str, Any] = {
        "project_name": "students-by-bytes",
        "model": str(work / "initial"),
        "output_path": str(work / "students" / name),
        "sequence_length": budget.length,
        "dataset": {"train_dataset": {"disk_path": str(signals)}},
        "loss_functions": [{"function": loss, "weight": 1.0}],
        "optimizer": {"kind": "muon"},
        "training_args": {
            "seed": seed,
            "max_steps": budget.steps,
            "per_device_train_batch_size": budget.batch,
            "learning_rate": budget.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": min(20, budget.steps // 4),
            "save_strategy": "no",
            "logging_steps": max(1, budget.steps // 10),
        },
    }
    return train(validate_settings(recipe, Recipe, name), f"training on {name}").folder


def measured(folder: Path, kind: str, name: str, size: float, rows: Sequence[TextRow]) -> Student:
    found = measure(load_model(folder), load_teacher()[0], rows)
    names = [row.document for row in found]
    documents, sums = by_cluster([float(row.kl.sum()) for row in found], names)
    _, tokens = by_cluster([len(row.kl) for row in found], names)
    kl = summarise(found).kl
    return Student(kind, name, size, tuple(documents), tuple(sums.tolist()), tuple(tokens.tolist()), kl)


def train_all(work: Path, budget: Budget, seed: int) -> list[Student]:
    """Train and measure every student."""
    write_student(work / "initial", seed)
    texts = training_rows(budget, seed)
    states = states_of(texts)
    _, tokenizer = load_teacher()
    held_out = held_out_rows(load_corpus(), tokenizer, length=256, rows_a_document=budget.rows_a_document)
    students = []
    for kind, specs in SIGNALS.items():
        for index, spec in enumerate(specs):
            setting = getattr(spec, "threshold", None)
            name = kind if setting is None else f"{kind} {setting:g}"
            signals = work / "signals" / f"{kind}-{index}"
            size = store(signals, texts, states, spec, seed)
            folder = train_student(work, f"{kind}-{index}", signals, "kl", budget, seed)
            students.append(measured(folder, kind, name, size, held_out))
            print(f"{name}: {size:.1f} bytes a token, KL {students[-1].kl.value:.4f}", flush=True)
    folder = train_student(work, "hard", work / "signals" / "topk-0", "cross_entropy", budget, seed)
    students.append(measured(folder, HARD, HARD, 0.0, held_out))
    return students


def print_students(students: Sequence[Student]) -> None:
    best = next(student for student in students if student.kind == BEST)
    print(f"\n{'signal':<16} {'bytes/token':>11}  {'KL to the teacher, nats (95 %)':<32} above {BEST} (95 %, paired)")
    for one in students:
        more = paired_difference(one.kl_sums, best.kl_sums, one.tokens)
        apart = "" if one is best else f"{more.value:+.4f} ({more.low:+.4f} to {more.high:+.4f})"
        kl = f"{one.kl.value:.4f} ({one.kl.low:.4f} to {one.kl.high:.4f})"
        print(f"{one.name:<16} {one.bytes_a_token:>11.1f}  {kl:<32} {apart}")


def draw(students: Sequence[Student], path: Path, note: str) -> None:
    """Draw bytes against KL, and against what it is above the student of hidden states, with whiskers of 95 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best = next(student for student in students if student.kind == BEST)
    figure = Figure(figsize=(10.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _points(left, [(one, one.kl) for one in students])
    left.set_title("KL(teacher ‖ student), nats a token", loc="left", fontsize=11)
    above = [(one, paired_difference(one.kl_sums, best.kl_sums, one.tokens)) for one in students if one is not best]
    _points(right, above)
    right.set_yscale("symlog", linthresh=1e-3)
    right.axhline(0, color=COLOURS["muted"].light, linewidth=1)
    right.set_title(f"above the student of {BEST} states, on the same files", loc="left", fontsize=11)
    left.legend(frameon=False, labelcolor=COLOURS["ink"].light)
    figure.supxlabel(f"bytes a token, as stored ({note})", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _points(axes: Any, estimates: Sequence[tuple[Student, Estimate]]) -> None:
    """Draw one line a kind; hard labels, which take no bytes, are a band across."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for index, kind in enumerate((*SIGNALS, HARD)):
        colour = COLOURS[series_role(index)].light
        found = [(one.bytes_a_token, estimate) for one, estimate in estimates if one.kind == kind]
        if kind == HARD:
            for _, estimate in found:
                axes.axhspan(estimate.low, estimate.high, color=colour, alpha=0.15, linewidth=0)
                axes.axhline(estimate.value, color=colour, linestyle=(0, (4, 3)), label=kind)
        elif found:
            sizes, values = zip(*sorted((size, estimate.value) for size, estimate in found), strict=True)
            reach = [
                [estimate.value - estimate.low for _, estimate in sorted(found, key=lambda one: one[0])],
                [estimate.high - estimate.value for _, estimate in sorted(found, key=lambda one: one[0])],
            ]
            axes.errorbar(
                sizes, values, reach, color=colour, marker="osD^"[index % 4], capsize=4, linewidth=1.8, label=kind
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, color=COLOURS["line"].light)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=COLOURS["muted"].light)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["line"].light)


def run() -> list[Row]:
    """Train, print and draw in the quick mode, in a temporary folder: for `make bench`."""
    with tempfile.TemporaryDirectory() as name:
        print_students(train_all(Path(name), QUICK, seed=1))
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps; draws no plot unless --plot says where")
    parser.add_argument("--steps", type=int, help="training steps of each student")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--plot", type=Path, help=f"where to draw; by default {PLOT.name} of the docs, after a full run"
    )
    given = parser.parse_args()
    budget = QUICK if given.quick else Budget()
    if given.steps:
        budget = Budget(**{**vars(budget), "steps": given.steps})
    with tempfile.TemporaryDirectory() as name:
        students = train_all(Path(name), budget, given.seed)
    print_students(students)
    path = given.plot or (None if given.quick else PLOT)
    if path is not None:
        draw(students, path, f"{budget.steps} steps of {budget.batch} rows of {budget.length} tokens")
        write_json(path.with_suffix(".json"), {"students": [vars(one) | {"kl": vars(one.kl)} for one in students]})
        print(f"{path}: drawn")


if __name__ == "__main__":
    main()
