"""What ternary weights cost: pocket students at equal tokens, against their dense twin, with three seeds.

    python -m benchmarks.ternary --work FOLDER              taken up where it was stopped
    python -m benchmarks.ternary --work FOLDER --parts      the recipe without each of its parts, too
    python -m benchmarks.ternary --quick                    that it works, not how it ends

Of each seed all students read the same rows in the same order, with the same learning rate. *Naive* is a ternary
student as one would first write it: no sub-norms, no ramp, hard labels, weight decay to the end. *Recipe* has all that
`recipes/train/bitnet-100m.yaml` has. The dense twin is trained on hard labels and by the recipe; the second is the
reference, for a distilled student should not be compared with one that is not. Shown is the cross-entropy on files that
nobody was trained on, and its relative distance from the reference; intervals are of the mean over seeds (Student's t).
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipes import mean_over_seeds
from benchmarks.timing import Row
from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.sources import TextSource
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import train
from limbeck.files import write_json, write_text
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.texts import write_training_text
from limbeck.pocket.world import POCKET, teacher_folder
from limbeck.seeds import derive_random
from limbeck.settings import validate_settings

TITLE = "What ternary weights cost"
REFERENCE, NAIVE, FULL = "dense twin, recipe", "ternary, naive", "ternary, recipe"
GAP, RECOVERED = 0.05, 0.7  # goals: at most so far from the twin; so much of the naive student's distance made good
EXCERPT = 800  # characters
SHAPE = {
    "preset": "bitnet-6m", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 128**-0.5 / 2,
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How much is done for each seed."""

    steps: int = 600
    batch: int = 32
    texts: int = 4000
    exercises: int = 4000
    held_out: int = 200
    rate: float = 4e-3
    seeds: int = 3


QUICK = Budget(steps=6, batch=4, texts=16, exercises=16, held_out=8, seeds=2)

HARD = [{"function": "cross_entropy", "weight": 1.0}]
DISTILLED = [{"function": "kl", "weight": 0.9}, {"function": "cross_entropy", "weight": 0.1}]
RAMP = {"ramp": 0.1}
DECAY = {"kind": "muon", "weight_decay": 0.1, "decay_until": 0.5}
STEADY = {"kind": "muon", "weight_decay": 0.1}


def student(model: dict[str, Any], losses: list[dict[str, Any]], optimizer: dict[str, Any], **more: Any) -> Any:
    return {"model": {**SHAPE, **model}, "loss_functions": losses, "optimizer": optimizer, **more}


STUDENTS: dict[str, dict[str, Any]] = {
    "dense twin, hard labels": student({"ternary": False}, HARD, STEADY),
    REFERENCE: student({"ternary": False}, DISTILLED, DECAY),
    NAIVE: student({"sub_norms": False}, HARD, STEADY),
    FULL: student({}, DISTILLED, DECAY, quantisation=RAMP),
}
PARTS: dict[str, dict[str, Any]] = {
    "recipe without sub-norms": student({"sub_norms": False}, DISTILLED, DECAY, quantisation=RAMP),
    "recipe without ramp": student({}, DISTILLED, DECAY),
    "recipe without distillation": student({}, HARD, DECAY, quantisation=RAMP),
    "recipe with decay to the end": student({}, DISTILLED, STEADY, quantisation=RAMP),
}


def write_held_out(path: Path, count: int) -> None:
    """Write excerpts of held-out files, the same for every seed."""
    rng = derive_random(0, "ternary", "held out")
    lines = []
    for document in rng.choices(load_corpus().documents["held_out"], k=count):
        start = document.text.rfind("\n", 0, rng.randrange(len(document.text))) + 1
        lines.append(json.dumps({"document": document.path, "text": document.text[start : start + EXCERPT]}) + "\n")
    write_text(path, "".join(lines))


def signals(text: Path, output: Path, seed: int) -> None:
    """Capture what the teacher says of a text, or find it captured."""
    capture(
        CaptureRecipe(
            model=str(teacher_folder()),
            name=POCKET,
            dataset=TextSource(path=str(text)),
            output=str(output),
            codec={"codec": "topk", "threshold": 5e-4, "temperatures": [1.0]},
            samples_per_shard=2048,
            seed=seed,
        )
    )


def of_seed(work: Path, budget: Budget, seed: int, students: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Train all students of one seed; return each one's held-out cross-entropy, in nats a token."""
    folder = work / f"seed-{seed}"
    text, held_out = folder / "text.jsonl", work / "held-out.jsonl"
    if not text.exists():
        write_training_text(text, load_corpus(), seed=seed, texts=budget.texts, exercises=budget.exercises)
    if not held_out.exists():
        write_held_out(held_out, budget.held_out)
    signals(text, folder / "signals", seed)
    signals(held_out, work / "held-out", 0)
    losses = {}
    for name, change in students.items():
        recipe = {
            "project_name": "ternary",
            "output_path": str(folder / "students" / name.replace(", ", "-").replace(" ", "-")),
            "sequence_length": 512,
            "dataset": {
                "train_dataset": {"disk_path": str(folder / "signals")},
                "eval_dataset": {"disk_path": str(work / "held-out")},
            },
            "evaluation": {"losses": ["cross_entropy"]},
            "training_args": {
                "seed": seed,
                "max_steps": budget.steps,
                "per_device_train_batch_size": budget.batch,
                "per_device_eval_batch_size": budget.batch,
                "train_sampling_strategy": "group_by_length",
                "learning_rate": budget.rate,
                "lr_scheduler_type": "linear",
                "warmup_steps": max(1, budget.steps // 20),
                "eval_steps": budget.steps,
                "save_steps": max(1, budget.steps // 4),
                "logging_steps": max(1, budget.steps // 20),
            },
            **change,
            "model": {**change["model"], "tokenizer": str(teacher_folder())},
        }
        result = train(validate_settings(recipe, Recipe, name), f"seed {seed}: {name}")
        losses[name] = result.evaluations[-1]["eval_cross_entropy"]
        print(f"seed {seed}, {name}: {losses[name]:.4f} nats a token", flush=True)
    return losses


def print_losses(seeds: list[dict[str, float]], budget: Budget) -> dict[str, dict[str, tuple[float, float]]]:
    """Print means over seeds, and distances from the dense twin, which are paired by seed."""
    print(f"\n{len(seeds)} seeds, {budget.steps} steps of {budget.batch} rows, rate {budget.rate:g}")
    print(f"{'student':<30} {'held-out loss, nats/token':>26} {'against the dense twin':>24}")
    table = {}
    for name in seeds[0]:
        gaps = [one[name] / one[REFERENCE] - 1 for one in seeds]
        table[name] = {"loss": mean_over_seeds([one[name] for one in seeds]), "gap": mean_over_seeds(gaps)}
        (loss, around), (gap, spread) = table[name]["loss"], table[name]["gap"]
        print(f"{name:<30} {loss:>17.4f} ± {around:.4f} {gap:>+15.2%} ± {spread:.2%}")
    shares = [1 - (one[FULL] - one[REFERENCE]) / (one[NAIVE] - one[REFERENCE]) for one in seeds]
    share, spread = mean_over_seeds(shares)
    table[FULL]["recovered"] = (share, spread)
    print(f"gap of the recipe: {table[FULL]['gap'][0]:.2%} (goal: at most {GAP:.0%})")
    print(f"of the naive student's gap it makes good {share:.0%} ± {spread:.0%} (goal: at least {RECOVERED:.0%})")
    return table


def run() -> list[Row]:
    """Train and print in the quick mode, in a temporary folder: for `make bench`."""
    with tempfile.TemporaryDirectory() as name:
        print_losses([of_seed(Path(name), QUICK, seed, STUDENTS) for seed in range(1, QUICK.seeds + 1)], QUICK)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", action="store_true", help="train the recipe without each of its parts, too")
    parser.add_argument("--work", type=Path, help="where students are kept")
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--rate", type=float, default=Budget.rate)
    given = parser.parse_args()
    if given.quick:
        run()
        return
    if given.work is None:
        parser.error("--work FOLDER: name a folder for students")
    budget = Budget(steps=given.steps, rate=given.rate)
    students = STUDENTS | (PARTS if given.parts else {})
    work = given.work / f"{budget.steps}-steps-rate-{budget.rate:g}"
    table = print_losses([of_seed(work, budget, seed, students) for seed in range(1, budget.seeds + 1)], budget)
    write_json(work / "table.json", table)


if __name__ == "__main__":
    main()
