"""The pocket teacher's model card: how it was made, and what it can do, measured on the weights as shipped."""

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.distill.executor import Positions, Term, token_values
from limbeck.distill.losses import get_loss
from limbeck.engines.transformers import final_hidden, load_model, output_head, quiet
from limbeck.evaluate.axes import generate
from limbeck.evaluate.skills import AxisResult, ask
from limbeck.files import read_json, sha256_file, write_json, write_text
from limbeck.pocket.batches import token_stream
from limbeck.pocket.build import Built
from limbeck.pocket.corpus import Corpus
from limbeck.pocket.exercises import all_families
from limbeck.pocket.recipe import TeacherRecipe
from limbeck.pocket.trigram import Trigram, bits_per_byte
from limbeck.progress import bar, say

CARD = "card.json"
ITEMS_A_FAMILY = 100
CARD_SEED = "pocket teacher card"


@dataclass(frozen=True)
class FamilyScore:
    """Held-out exercises of one family: share answered right, and its 95 % interval."""

    family: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Card:
    """What the card says, as data."""

    parameters: int
    recipe: dict[str, Any]
    corpus: str
    python: str
    tokenizer: str
    weights: str
    bits_per_byte: float
    trigram_bits_per_byte: float
    families: tuple[FamilyScore, ...]
    training_seconds: float
    curve: tuple[tuple[int, float, float], ...]


def save_teacher(built: Built, recipe: TeacherRecipe, corpus: Corpus, folder: Path) -> Card:
    """Write weights (bf16 safetensors), tokenizer and card to `folder`; what is written is what is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    with quiet():
        built.model.to("cpu", torch.bfloat16).save_pretrained(folder)
        built.tokenizer.save_pretrained(folder)
        load_tokenizer(folder).save_pretrained(
            folder
        )  # as loading and saving leaves it: a student's copy has these bytes
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    say("Measuring the teacher on held-out text and exercises")
    card = Card(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        recipe=recipe.model_dump(mode="json"),
        corpus=corpus.digest,
        python=platform.python_version(),
        tokenizer=tokenizer_digest(tokenizer),
        weights=sha256_file(folder / "model.safetensors"),
        bits_per_byte=text_bits_per_byte(model, tokenizer, corpus),
        trigram_bits_per_byte=_trigram_bits_per_byte(tokenizer, corpus),
        families=tuple(
            FamilyScore(
                result.axis.removeprefix("pocket_"), result.accuracy.value, result.accuracy.low, result.accuracy.high
            )
            for result in ask_families(model, tokenizer, CARD_SEED, ITEMS_A_FAMILY)
        ),
        training_seconds=round(built.seconds),
        curve=built.curve,
    )
    write_text(folder / "README.md", _as_text(card))
    write_json(folder / CARD, asdict(card))
    return card


def read_card(folder: Path) -> Card:
    """Read the card of a saved teacher."""
    data = read_json(folder / CARD)
    families = tuple(FamilyScore(**family) for family in data.pop("families"))
    curve = tuple((step, text, exercise) for step, text, exercise in data.pop("curve"))
    return Card(families=families, curve=curve, **data)


def ask_families(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: str | int, count: int
) -> list[AxisResult]:
    """Ask a model `count` held-out exercises of every family, greedily."""
    sets = [generate(family.axis_name, seed=seed, count=count) for family in all_families()]
    with bar("asking exercises", count * len(sets)) as shown:
        return ask(model, tokenizer, sets, on_item=shown.advance)


@torch.no_grad()
def text_bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> float:
    """Return a model's bits per byte on all held-out text, in windows of its context that share one token."""
    stream = torch.from_numpy(token_stream(tokenizer, corpus.documents["held_out"]).astype(np.int64))
    head, length = output_head(model), model.config.max_position_embeddings
    nats = 0.0
    starts: Sequence[int] = range(0, len(stream) - 1, length)
    with bar("reading held-out text", len(starts)) as shown:
        for start in starts:
            window = stream[start : start + length + 1]
            hidden = final_hidden(model, window[None, :-1])[0]
            values = token_values(Positions(hidden, window[1:]), head, [Term.of(get_loss("cross_entropy"))])
            nats += float(values["cross_entropy"].double().sum())
            shown.advance()
    return bits_per_byte(nats, _held_out_bytes(corpus))


def _trigram_bits_per_byte(tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> float:
    def stream(split: str) -> NDArray[np.int64]:
        return token_stream(tokenizer, corpus.documents[split]).astype(np.int64)  # type: ignore[index]

    trigram = Trigram(stream("train"), stream("validation"), len(tokenizer))
    return bits_per_byte(trigram.nats(stream("held_out")), _held_out_bytes(corpus))


def _held_out_bytes(corpus: Corpus) -> int:
    return sum(len(document.text.encode()) for document in corpus.documents["held_out"])


def _as_text(card: Card) -> str:
    recipe = TeacherRecipe.model_validate(card.recipe)
    shape = recipe.shape
    mastered = sum(score.accuracy >= 0.8 for score in card.families)
    rows = "\n".join(
        f"| {score.family} | {score.accuracy:.0%} | {score.low:.0%} to {score.high:.0%} |" for score in card.families
    )
    settings = yaml.safe_dump(
        recipe.model_dump(mode="json", exclude={"shape"}), sort_keys=False, default_flow_style=None, width=110
    ).strip()
    return f"""# The pocket teacher

A Llama-architecture decoder of {card.parameters:,} parameters, trained from scratch on what every Python installation
carries: the standard library's sources and the language reference, and procedurally generated exercises. It is the
teacher of Limbeck's embedded world: small enough for a laptop's processor, good enough to be worth copying. It knows
nothing of the world beyond that.

Made by `limbeck pocket build`, which makes it again from the recipe below.

| shape | |
|---|---|
| hidden size, layers | {shape.hidden_size}, {shape.layers} |
| heads, key-value heads | {shape.heads}, {shape.key_value_heads} |
| MLP, context, vocabulary | {shape.mlp_size}, {shape.context}, {recipe.vocabulary} |

## What it can do

Held-out files: **{card.bits_per_byte:.3f} bits per byte**; an interpolated trigram model over the same tokens needs
{card.trigram_bits_per_byte:.3f} (a factor of {card.bits_per_byte / card.trigram_bits_per_byte:.2f}).

Exercises, {ITEMS_A_FAMILY} a family, greedy, exact match, operands never seen in training: {mastered} of
{len(card.families)} families at 80 % or more.

| family | right | 95 % interval |
|---|---|---|
{rows}

## How it was made

```yaml
{settings}
```

Corpus digest `{card.corpus}` (Python {card.python}), tokenizer digest `{card.tokenizer}`, weights
`{card.weights}`. {card.training_seconds / 60:.0f} minutes of training; the last losses were
{_mean_of_last(card, 1):.3f} nats a token of text and {_mean_of_last(card, 2):.3f} nats a token of answers.
"""


def _mean_of_last(card: Card, column: int, count: int = 10) -> float:
    last = [row[column] for row in card.curve[-count:]]
    return sum(last) / len(last) if last else math.nan
