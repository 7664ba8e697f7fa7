"""Which recipe when: pocket students trained by six recipes, at equal steps, from the same start, with three seeds.

    python -m benchmarks.recipes --work FOLDER        half an hour on one core; taken up where it was stopped
    python -m benchmarks.recipes --quick              two minutes: that it works, not how it ends

For each seed a student is first trained on hard labels for a while, as students are that come from anywhere; it is the
start of all recipes, and stands in the table itself. Then each recipe takes the same number of steps with the same
number of rows and the same learning rate. Held-out KL is over files, and accuracy over exercises, that nobody was
trained on; intervals are of the mean over seeds (Student's t).
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.timing import Row
from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.sources import TextSource
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import train
from limbeck.files import write_json, write_text
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.exercises import all_families
from limbeck.pocket.measure import Measurement, MeasureSettings, load_measurement, measure_student, save_measurement
from limbeck.pocket.students import write_student
from limbeck.pocket.world import POCKET, load_teacher, teacher_folder
from limbeck.seeds import derive_random
from limbeck.settings import validate_settings

TITLE = "Which recipe when"
START = "the start of all"
CODECS: dict[str, dict[str, Any]] = {
    "topk": {"codec": "topk", "threshold": 5e-4, "temperatures": [1.0]},
    "sampled": {"codec": "sampled", "threshold": 0.01},
    "hidden": {"codec": "hidden"},
}


@dataclass(frozen=True)
class Budget:
    """How much is done for each seed."""

    start_steps: int = 400
    steps: int = 150
    batch: int = 32
    texts: int = 1600
    exercises: int = 8000
    excerpt: int = 300  # characters
    items_a_family: int = 30
    new_tokens: int = 24
    seeds: int = 3


QUICK = Budget(start_steps=6, steps=3, batch=8, texts=24, exercises=60, items_a_family=2, seeds=2)


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what differs between the recipes."""
    teacher = {"kind": "hf", "path": str(teacher_folder())}
    text = {"train_dataset": {"disk_path": str(folder / "text.jsonl")}}
    signals = {name: {"train_dataset": {"disk_path": str(folder / name)}} for name in CODECS}
    kl = [{"function": "kl", "weight": 1.0}]
    return {
        "hard labels": {"dataset": signals["topk"], "loss_functions": [{"function": "cross_entropy", "weight": 1.0}]},
        "offline, topk": {"dataset": signals["topk"], "loss_functions": kl},
        "offline, sampled": {"dataset": signals["sampled"], "loss_functions": kl},
        "offline, hidden": {"dataset": signals["hidden"], "loss_functions": kl},
        "online": {"dataset": text, "teacher": teacher, "loss_functions": kl},
        "on-policy, half": {
            "dataset": text,
            "teacher": teacher,
            "rollout": {"fraction": 0.5, "max_new_tokens": 0},
            "loss_functions": [{"function": "reverse_kl", "weight": 1.0}],
        },
    }


def write_data(path: Path, budget: Budget, seed: int) -> None:
    """Write excerpts and exercises as JSONL, in a random order."""
    rng = derive_random(seed, "recipes")
    documents, families = load_corpus().documents["train"], all_families()
    records: list[dict[str, str]] = []
    for document in rng.choices(documents, weights=[len(one.text) for one in documents], k=budget.texts):
        start = document.text.rfind("\n", 0, rng.randrange(len(document.text))) + 1
        records.append({"document": document.path, "text": document.text[start : start + budget.excerpt]})
    for index in range(budget.exercises):
        family = families[index % len(families)]
        item = family.draw_for_training(derive_random(seed, "exercise", index))
        records.append({"document": family.name, "prompt": item.prompt, "response": f"Answer: {item.answer.written()}"})
    rng.shuffle(records)
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def train_student(
    folder: Path, name: str, start: Path, change: dict[str, Any], steps: int, budget: Budget, seed: int
) -> Path:
    """Train one student, or find it trained."""
    if "rollout" in change:
        change = {**change, "rollout": {**change["rollout"], "max_new_tokens": budget.new_tokens}}
    recipe = {
        "project_name": "recipes",
        "model": str(start),
        "output_path": str(folder / "students" / name),
        "sequence_length": 256,
        "optimizer": {"kind": "muon"},
        "training_args": {
            "seed": seed,
            "max_steps": steps,
            "per_device_train_batch_size": budget.batch,
            "train_sampling_strategy": "group_by_length",
            "learning_rate": 4e-3,
            "lr_scheduler_type": "linear",
            "warmup_steps": max(1, steps // 20),
            "save_strategy": "no",
            "logging_steps": max(1, steps // 10),
        },
        **change,
    }
    return train(validate_settings(recipe, Recipe, name), f"seed {seed}: {name}").folder


def of_seed(work: Path, budget: Budget, seed: int) -> dict[str, Measurement]:
    """Train and measure all students of one seed."""
    folder = work / f"seed-{seed}"
    if not (folder / "text.jsonl").exists():
        write_data(folder / "text.jsonl", budget, seed)
    for name, codec in CODECS.items():
        capture(
            CaptureRecipe(
                model=str(teacher_folder()),
                name=POCKET,
                dataset=TextSource(path=str(folder / "text.jsonl")),
                output=str(folder / name),
                codec=codec,
                samples_per_shard=2048,
                seed=seed,
            )
        )
    if not (folder / "initial" / "config.json").exists():
        write_student(folder / "initial", seed)
    changes = recipes(folder)
    start = train_student(folder, "start", folder / "initial", changes["hard labels"], budget.start_steps, budget, seed)
    measured = {START: measurement(folder, START, start, budget)}
    for name, change in changes.items():
        student = train_student(folder, name.replace(", ", "-"), start, change, budget.steps, budget, seed)
        measured[name] = measurement(folder, name, student, budget)
        found = measured[name]
        print(f"seed {seed}, {name}: KL {found.divergences.kl.value:.4f}, right {found.overall.value:.1%}", flush=True)
    return measured


def measurement(folder: Path, name: str, student: Path, budget: Budget) -> Measurement:
    """Measure a student, or read what was measured."""
    path = folder / "measured" / f"{name}.json"
    if not path.exists():
        settings = MeasureSettings(items_a_family=budget.items_a_family)
        save_measurement(path, measure_student(name, student, load_teacher()[0], settings))
    return load_measurement(path)


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and half of its 95 % interval (Student's t)."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def print_table(seeds: Sequence[dict[str, Measurement]], budget: Budget) -> dict[str, dict[str, tuple[float, float]]]:
    """Print means over seeds, and differences from hard labels, which are paired by seed."""
    print(
        f"\n{len(seeds)} seeds, {budget.steps} steps of {budget.batch} rows after {budget.start_steps} on hard labels"
    )
    print(f"{'recipe':<20} {'KL, nats/token':>18} {'against hard labels':>21} {'exercises right':>17} {'against':>15}")
    table = {}
    for name in seeds[0]:
        kl = [one[name].divergences.kl.value for one in seeds]
        right = [one[name].overall.value for one in seeds]
        less = [a - one["hard labels"].divergences.kl.value for a, one in zip(kl, seeds, strict=True)]
        more = [a - one["hard labels"].overall.value for a, one in zip(right, seeds, strict=True)]
        row = {"kl": kl, "kl_difference": less, "right": right, "right_difference": more}
        table[name] = {key: mean_over_seeds(values) for key, values in row.items()}
        found = table[name]
        print(
            f"{name:<20} {found['kl'][0]:>9.4f} ± {found['kl'][1]:.4f} {found['kl_difference'][0]:>+12.4f} ± "
            f"{found['kl_difference'][1]:.4f} {found['right'][0]:>9.1%} ± {found['right'][1]:.1%} "
            f"{found['right_difference'][0]:>+8.1%} ± {found['right_difference'][1]:.1%}"
        )
    return table


def run() -> list[Row]:
    """Train and print in the quick mode, in a temporary folder: for `make bench`."""
    with tempfile.TemporaryDirectory() as name:
        print_table([of_seed(Path(name), QUICK, seed) for seed in range(1, QUICK.seeds + 1)], QUICK)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, help="where students and measurements are kept")
    given = parser.parse_args()
    if given.quick:
        run()
        return
    if given.work is None:
        parser.error("--work FOLDER: name a folder for students and measurements")
    budget = Budget()
    table = print_table([of_seed(given.work, budget, seed) for seed in range(1, budget.seeds + 1)], budget)
    write_json(given.work / "table.json", table)


if __name__ == "__main__":
    main()
