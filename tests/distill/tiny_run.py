"""A training run small enough for tests: a Llama of two layers, random rows with a random teacher, any wrapper.

As a program it trains children that kill themselves in the middle: `python -m tests.distill.tiny_run FOLDER NAME...`.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from limbeck.distill.losses import get_loss
from limbeck.distill.recipe import OptimizerSettings
from limbeck.distill.student import DistilledStudent
from limbeck.distill.term import Term
from limbeck.distill.trainer import DistillationTrainer
from limbeck.progress import bar
from limbeck.signals.dataset import SignalRow
from limbeck.signals.types import DenseSignal

VOCABULARY = 61
LOSSES = {"kl": 0.7, "cross_entropy": 0.4}


def tiny_student(
    *, tied: bool = False, dropout: float = 0.0, attention: str = "sdpa", **changes: Any
) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
        vocab_size=VOCABULARY, max_position_embeddings=128, tie_word_embeddings=tied, attention_dropout=dropout,
        attn_implementation=attention, pad_token_id=0, bos_token_id=1, eos_token_id=2, **changes,
    )  # fmt: skip
    torch.manual_seed(7)
    return LlamaForCausalLM(config)


def random_row(seed: int) -> SignalRow:
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(4, 20, (), generator=generator))
    ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
    logprobs = torch.log_softmax(2 * torch.randn(length, VOCABULARY, generator=generator), -1)
    trained = torch.rand(length, generator=generator) < 0.7
    return SignalRow(ids, trained, DenseSignal(logprobs, torch.ones(length, dtype=torch.bool)))


def random_rows(count: int) -> list[SignalRow]:
    return [random_row(seed) for seed in range(count)]


class Stream:
    """Nine rows a pass, in another order each pass."""

    def __init__(self) -> None:
        self.number = 0

    def set_epoch(self, epoch: int) -> None:
        self.number = epoch

    def __iter__(self) -> Iterator[SignalRow]:
        for place in range(9):
            yield random_row(100 + (place + 4 * self.number) % 9)


class Tokenizer:
    """What a trainer needs of one."""

    pad_token_id = 0

    def save_pretrained(self, folder: str | Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


def distilled(student: LlamaForCausalLM, losses: dict[str, float] = LOSSES) -> DistilledStudent:
    terms = [Term.of(get_loss(name), weight) for name, weight in losses.items()]
    return DistilledStudent(student, terms, needs_teacher=True)


@contextmanager
def tiny_trainer(
    folder: Path,
    student: DistilledStudent,
    rows: Dataset[Any] | Sequence[SignalRow] | Stream,
    *,
    muon: bool = False,
    keep: int = 2,
    more: dict[str, Any] | None = None,
    **arguments: Any,
) -> Iterator[DistillationTrainer]:
    settings = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
        "remove_unused_columns": False, "dataloader_pin_memory": False, "logging_steps": 1, "seed": 3,
        "per_device_train_batch_size": 2, "learning_rate": 0.01,
    }  # fmt: skip
    lengths = None if isinstance(rows, Stream) else [len(row.input_ids) for row in rows]  # type: ignore[attr-defined]
    with bar("tiny", 1) as shown:
        yield DistillationTrainer(
            student, TrainingArguments(**{**settings, **arguments}), rows, lengths, Tokenizer(),  # type: ignore[arg-type]
            OptimizerSettings() if muon else None, keep, shown, **(more or {}),
        )  # fmt: skip


RUNS: dict[str, dict[str, Any]] = {
    "mapped": {"muon": True, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"},
    "streamed": {"optim": "adamw_torch", "lr_scheduler_type": "linear", "warmup_steps": 2},
}
STEPS, SAVED, KILLED = 8, 3, 5


class KilledAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    folder: Path, name: str, *, killed: bool = False, resume: Path | None = None
) -> tuple[list[Any], dict[str, Tensor]]:
    """Train one of `RUNS`, with dropout; return what was logged, and the weights."""
    rows: Any = Stream() if name == "streamed" else random_rows(21)
    student = distilled(tiny_student(dropout=0.2, tied=name == "streamed"))
    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "logging_steps": 2}
    with tiny_trainer(folder, student, rows, keep=5, **settings, **RUNS[name]) as trainer:
        if killed:
            trainer.add_callback(KilledAt(KILLED))
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    unequal = ("tokens_per_second", "memory_gb", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    history = [
        {key: value for key, value in entry.items() if key not in unequal} for entry in trainer.state.log_history
    ]
    return history, student.state_dict()


def main() -> None:
    """Kill a child in the middle of each run."""
    folder, *names = sys.argv[1:]
    for name in names:
        child = os.fork()
        if child == 0:
            run(Path(folder) / name, name, killed=True)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{name} was not killed: {status}")


if __name__ == "__main__":
    main()
