"""`limbeck demo`: the main job from end to end, on this machine alone.

Six steps, each of which leaves its result in a file and is not done again when that file is there: a demo that was
stopped, however hard, is taken up by the same command.

1. the teacher is loaded and shows what it can do;
2. what it says about the training text is captured as a dataset of `topk` signals;
3. two students of one shape and budget, from the same initial weights: hard labels only, and the captured signals;
4. teacher and students are measured on held-out text and exercises;
5. both students are committed to an arena's ledger, and a validator's round crowns the better one;
6. the report is written.

At the end the demo checks itself: the distilled student must be closer to the teacher, with an interval that excludes
zero.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.chat import prompt_ids
from limbeck.data.sources import TextSource
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import TrainingResult, train
from limbeck.engines.transformers import answer_greedily
from limbeck.errors import LimbeckError, UserError
from limbeck.evaluate.axes import generate
from limbeck.evaluate.statistics import Estimate
from limbeck.files import read_json, write_json, write_text
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.crowning import Crowning, run_crowning
from limbeck.pocket.exercises import all_families
from limbeck.pocket.measure import (
    Measurement,
    MeasureSettings,
    kl_difference,
    load_measurement,
    measure_student,
    print_summary,
    save_measurement,
)
from limbeck.pocket.story import write_report
from limbeck.pocket.students import write_student
from limbeck.pocket.texts import write_training_text
from limbeck.pocket.world import POCKET, load_teacher, teacher_folder
from limbeck.progress import say
from limbeck.settings import validate_settings

STATE = "demo.json"
ROWS_A_SHARD = 1024
STUDENTS = ("hard labels", "distilled")
LOSSES: dict[str, list[dict[str, Any]]] = {
    "hard labels": [{"function": "cross_entropy", "weight": 1.0}],
    "distilled": [{"function": "kl", "weight": 0.75}, {"function": "cross_entropy", "weight": 0.25}],
}


@dataclass(frozen=True)
class Budget:
    """How much the demo does; everything else is the same."""

    texts: int = 1400
    exercises: int = 9000
    batch: int = 16
    learning_rate: float = 6e-3
    items_a_family: int = 50
    rows_a_document: int = 3
    arena_prompts: int = 40

    @staticmethod
    def quick() -> "Budget":
        """Return the budget of about 90 seconds."""
        return Budget(texts=350, exercises=2400, items_a_family=20, rows_a_document=1, arena_prompts=20)


def run_demo(out: Path, *, seed: int, budget: Budget) -> None:
    """Run the demo in the folder `out`, or take it up where it stopped.

    Raises:
        UserError: the folder holds a demo of another seed or budget.
        LimbeckError: the distilled student is not better than the other one.
    """
    _claim(out, seed, budget)
    say(f"[bold]Limbeck demo[/bold] in {out}")
    _show_teacher(out, seed)
    _capture(out, seed, budget)
    trained = _train(out, seed, budget)
    measured = _measure(out, seed, budget)
    crowning = _crown(out, seed, budget)
    report = _report(out, trained, measured, crowning)
    print_summary(list(measured.values()))
    say(crowning.reason)
    check_distilled_is_closer(measured["hard labels"], measured["distilled"])
    say("The report, with every figure and its interval:")
    print(report)


def check_distilled_is_closer(hard: Measurement, distilled: Measurement) -> Estimate:
    """Return how much KL distillation saved, or fail.

    Raises:
        LimbeckError: the 95 % interval of the saving, clustered by document, does not exclude zero.
    """
    saved = kl_difference(hard, distilled)
    if not saved.low > 0:
        raise LimbeckError(
            "the demo's own check failed: the distilled student is not measurably closer to the teacher than the one "
            f"trained on hard labels (KL saved {saved.value:+.4f} nats a token, 95 % interval {saved.low:+.4f} to "
            f"{saved.high:+.4f} over {saved.clusters} documents)."
        )
    say(
        f"Distillation saved {saved.value:.4f} nats of KL a token "
        f"(95 % interval {saved.low:.4f} to {saved.high:.4f} over {saved.clusters} documents)"
    )
    return saved


def _claim(out: Path, seed: int, budget: Budget) -> None:
    wanted = {"seed": seed, "budget": asdict(budget)}
    if (out / STATE).exists():
        if read_json(out / STATE) != wanted:
            raise UserError(
                f"{out}: holds a demo of another seed or budget. Choose another --out, or remove the folder."
            )
    else:
        write_json(out / STATE, wanted)


def _step(number: int, title: str) -> None:
    say(f"\n[bold]Step {number} of 6[/bold]: {title}")


def _show_teacher(out: Path, seed: int) -> None:
    _step(1, "the teacher, and what it can do")
    path = out / "teacher.json"
    if not path.exists():
        model, tokenizer = load_teacher()
        items = [generate(family.axis_name, seed=f"demo {seed}", count=1).items[0] for family in all_families()]
        prompts = [prompt_ids(tokenizer, item.prompt) for item in items]
        answers = list(answer_greedily(model, tokenizer, prompts, max_new_tokens=32))
        shown = [
            {"prompt": item.prompt, "response": answer, "gold": item.answer.written()}
            for item, answer in zip(items, answers, strict=True)
        ]
        write_json(path, {"parameters": sum(p.numel() for p in model.parameters()), "examples": shown})
    told = read_json(path)
    say(f"{told['parameters']:,} parameters, from {teacher_folder()}")
    for example in told["examples"][:5]:
        question = " / ".join(line.strip() for line in example["prompt"].splitlines())
        say(f"  [dim]{_plain(question)}[/dim]  →  {_plain(example['response'])}")


def _plain(text: str) -> str:
    """Escape what rich would take for markup."""
    return text.replace("[", "\\[")


def _capture(out: Path, seed: int, budget: Budget) -> None:
    _step(2, "what it says about the training text, captured as top-k signals")
    text = out / "text.jsonl"
    if not text.exists():
        write_training_text(text, load_corpus(), seed=seed, texts=budget.texts, exercises=budget.exercises)
    recipe = CaptureRecipe(
        model=str(teacher_folder()), name=POCKET, dataset=TextSource(path=str(text)), output=str(out / "signals"),
        samples_per_shard=ROWS_A_SHARD,
    )  # fmt: skip
    capture(recipe)


def _train(out: Path, seed: int, budget: Budget) -> dict[str, TrainingResult]:
    _step(3, "two students, the same initial weights, the same budget")
    initial = out / "students" / "initial"
    if not (initial / "config.json").exists():
        write_student(initial, seed)
    results = {}
    for name in STUDENTS:
        path = out / "recipes" / f"{name.replace(' ', '-')}.yaml"
        recipe = student_recipe(out, name, seed, budget)
        write_text(path, yaml.safe_dump(recipe, sort_keys=False))
        results[name] = train(validate_settings(recipe, Recipe, str(path)), f"training on {name}")
    return results


def student_recipe(out: Path, name: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Return the training recipe of one of the demo's students, as it stands in its YAML file."""
    return {
        "project_name": "limbeck-demo",
        "model": str(out / "students" / "initial"),
        "output_path": str(out / "students" / name.replace(" ", "-")),
        "sequence_length": 256,
        "dataset": {"train_dataset": {"disk_path": str(out / "signals")}},
        "teacher": {"kind": "dataset"},
        "loss_functions": LOSSES[name],
        "optimizer": {"kind": "muon"},
        "training_args": {
            "seed": seed,
            "num_train_epochs": 1,
            "per_device_train_batch_size": budget.batch,
            "train_sampling_strategy": "group_by_length",
            "learning_rate": budget.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 20,
            "save_steps": 100,
            "logging_steps": 5,
        },
    }


def _measure(out: Path, seed: int, budget: Budget) -> dict[str, Measurement]:
    _step(4, "teacher and students on held-out text and exercises")
    settings = MeasureSettings(
        seed=f"demo {seed}", items_a_family=budget.items_a_family, rows_a_document=budget.rows_a_document
    )
    folders = {"teacher": teacher_folder()} | {name: out / "students" / name.replace(" ", "-") for name in STUDENTS}
    measured = {}
    for name, folder in folders.items():
        path = out / "measurements" / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            save_measurement(path, measure_student(name, folder, load_teacher()[0], settings))
        measured[name] = load_measurement(path)
    return measured


def _crown(out: Path, seed: int, budget: Budget) -> Crowning:
    _step(5, "an arena: two hotkeys, two commitments, one validator's round")
    folders = {name: out / "students" / name.replace(" ", "-") for name in STUDENTS}
    return run_crowning(out / "arena", folders, seed=seed, prompts=budget.arena_prompts)


def _report(
    out: Path, trained: dict[str, TrainingResult], measured: dict[str, Measurement], crowning: Crowning
) -> Path:
    _step(6, "the report")
    path = out / "report.html"
    write_report(path, trained, measured, crowning)
    return path
