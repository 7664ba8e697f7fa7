"""`limbeck pocket build`: train the pocket teacher from scratch, resumably, on any device.

Matrices of hidden layers are trained by Muon, everything else by AdamW, on one schedule: warm-up, constant, linear
decay to zero. A killed build goes on from its last checkpoint and, on a CPU, ends with the same bytes.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from limbeck.data.tokenizer import train_tokenizer
from limbeck.distill.optimizers.muon import MuonAdamW
from limbeck.distill.optimizers.roles import split_by_role
from limbeck.files import digest_of, publish, read_json, write_json
from limbeck.models.llama import new_llama
from limbeck.pocket.batches import IGNORED, Batch, exercise_batches, infill_windows, text_windows, token_stream
from limbeck.pocket.corpus import Corpus, load_corpus
from limbeck.pocket.exercises import all_families
from limbeck.pocket.recipe import TeacherRecipe
from limbeck.progress import bar, say
from limbeck.seeds import derive_random


@dataclass(frozen=True)
class Built:
    """A trained teacher, with what its card reports about the training."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    curve: tuple[tuple[int, float, float], ...]  # (step, text loss, exercise loss), in nats a token
    seconds: float


def make_tokenizer(recipe: TeacherRecipe, corpus: Corpus) -> PreTrainedTokenizerBase:
    """Train the tokenizer on the training documents and on exercises as they will be asked."""
    families = all_families()

    def exercises() -> list[str]:
        texts = []
        for index in range(recipe.tokenizer_exercises):
            family = families[index % len(families)]
            item = family.draw_for_training(derive_random(recipe.seed, "tokenizer", index))
            texts.append(f"{item.prompt}\nAnswer: {item.answer.written()}\n")
        return texts

    texts = [document.text for document in corpus.documents["train"]] + exercises()
    return train_tokenizer(texts, recipe.vocabulary, recipe.shape.context)


def build(recipe: TeacherRecipe, work: Path, device: str = "cpu") -> Built:
    """Train by `recipe`, with checkpoints in `work`; a build that stopped there before is continued.

    A checkpoint of another recipe or another corpus is not continued: the build starts anew beside it.
    """
    corpus = load_corpus()
    identity = digest_of({"recipe": recipe.model_dump(), "corpus": corpus.digest})
    folder = work / f"teacher-{identity[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Building the pocket teacher in {folder}")

    tokenizer = make_tokenizer(recipe, corpus)
    stream = token_stream(tokenizer, corpus.documents["train"])
    model = new_llama(recipe.shape, tokenizer, recipe.seed).to(device)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters; {len(stream):,} tokens of text")
    optimizer = MuonAdamW(split_by_role(model, recipe.weight_decay), lr=recipe.learning_rate)

    curve: list[tuple[int, float, float]] = []
    seconds = 0.0
    first = 0
    if (folder / "progress.json").exists():
        progress = read_json(folder / "progress.json")
        first, seconds = progress["step"], progress["seconds"]
        curve = [(step, text, exercise) for step, text, exercise in progress["curve"]]
        state = torch.load(folder / f"state-{first}.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        say(f"Going on from step {first}")

    model.train()
    with bar("training the teacher", recipe.steps, first) as shown:
        for step in range(first, recipe.steps):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, recipe)
            text, exercises = _draw(tokenizer, stream, step, recipe)
            text_loss = _backward(model, text, device)
            exercise_loss = _backward(model, exercises, device)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds += time.perf_counter() - started
            if step % 10 == 0:
                curve.append((step, text_loss, exercise_loss))
            shown.advance(note=f"text {text_loss:.3f}  exercises {exercise_loss:.3f}")
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
                _save(folder, step + 1, model, optimizer, curve, seconds)
    return Built(model.eval(), tokenizer, tuple(curve), seconds)


def _schedule(step: int, recipe: TeacherRecipe) -> float:
    """Return the factor of the learning rate at `step`: warm-up, constant, then linear decay to 0."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    decay_steps = max(1, round(recipe.steps * recipe.decay_share))
    return warm * min(1.0, (recipe.steps - step) / decay_steps)


def _draw(
    tokenizer: PreTrainedTokenizerBase, stream: NDArray[np.int32], step: int, recipe: TeacherRecipe
) -> tuple[list[Batch], list[Batch]]:
    """Return the text and the exercises of a step."""
    seed, length = recipe.seed, recipe.text_length
    text = [text_windows(stream, seed=seed, step=step, rows=recipe.text_rows, length=length)]
    if recipe.infill_rows:
        text.append(infill_windows(tokenizer, stream, seed=seed, step=step, rows=recipe.infill_rows, length=length))
    rows, parts = recipe.exercise_rows, recipe.exercise_parts
    families = [family for family in all_families() for _ in range(2 if family.name in recipe.twice else 1)]
    return text, exercise_batches(tokenizer, seed=seed, step=step, rows=rows, parts=parts, families=families)


def _backward(model: LlamaForCausalLM, batches: list[Batch], device: str) -> float:
    """Add the gradient of the mean cross-entropy over all trained positions, and return that mean in nats.

    Only trained positions go through the head.
    """
    total = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    mean = 0.0
    for batch in batches:
        hidden = model.model(batch.ids.to(device)).last_hidden_state
        labels = batch.labels.to(device)
        counted = labels != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[counted]).float(), labels[counted], reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


def _save(
    folder: Path,
    step: int,
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    curve: list[tuple[int, float, float]],
    seconds: float,
) -> None:
    """Publish the state, then the pointer to it, then drop the state before: a kill leaves a whole checkpoint."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with publish(folder / f"state-{step}.pt") as temporary:
        torch.save(state, temporary)
    write_json(folder / "progress.json", {"step": step, "seconds": seconds, "curve": curve})
    for old in folder.glob("state-*.pt"):
        if old.name != f"state-{step}.pt":
            old.unlink()
