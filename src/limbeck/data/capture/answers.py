"""The section `generate:` of a capture: the teacher answers the prompts of a text, and its answers are the text.

Answers are kept beside the dataset, in `OUTPUT.answers.jsonl`: a first line that says what was asked, then one object
for each answer, in the order of prompts. A run that was killed drops a last line that is not whole and goes on with the
prompt behind it; answers have seeds of their own, so the file ends as if nothing had happened.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.data.capture.recipe import CaptureRecipe, GenerateSettings
from limbeck.data.chat import Conversation, conversation_row
from limbeck.data.encoding import TokenRow
from limbeck.data.shapes import Text, contents, document_of
from limbeck.data.sources import Rows, chosen_records
from limbeck.data.table import RowWriter
from limbeck.engines.completions import Completion, Prompt, open_generator, prompt_ids
from limbeck.errors import LimbeckError, UserError
from limbeck.files import digest_of
from limbeck.progress import bar, say


@dataclass(frozen=True)
class NamedPrompt:
    """What the teacher is asked, and the document that it is from."""

    document: str
    prompt: Prompt


@dataclass(frozen=True)
class Answer:
    """One answer, as a row: `ids[first:]` are the teacher's."""

    prompt: int
    choice: int
    ids: tuple[int, ...]
    first: int
    text: str
    finish_reason: str


def read_prompts(recipe: CaptureRecipe, tokenizer: PreTrainedTokenizerBase) -> list[NamedPrompt]:
    """Return what the teacher is to answer: conversations up to their last answer; plain texts as a user's turn.

    With `chat_template: false` a plain text is given as it is, to be gone on with.

    Raises:
        UserError: the source can't be read, or holds no prompt.
    """
    source = recipe.dataset
    order, records = chosen_records(source, answered=False)
    found = []
    for place, record in records:
        asked = next(contents(record, source.columns, place, answered=False))
        found.append(NamedPrompt(document_of(record, source.columns, place), _prompt(asked)))
    if not found:
        raise UserError(f"{source.path}: no prompts to answer.")
    if not source.chat_template:
        found = [_plain(one, tokenizer) for one in found]
    return [found[place] for place in order]


def write_answers(recipe: CaptureRecipe, generate: GenerateSettings, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Have the teacher answer the prompts, or go on with what was begun, and return the answers as rows.

    Raises:
        UserError: the file of answers belongs to other prompts or settings.
        LimbeckError: the teacher failed; answers so far are kept.
    """
    prompts = read_prompts(recipe, tokenizer)
    path = answers_path(recipe)
    asked = digest_of(
        {
            "model": recipe.model, "revision": recipe.revision, "sampling": generate.sampling.model_dump(mode="json"),
            "prompts": [list(one.prompt) for one in prompts],
        }
    )  # fmt: skip
    done = _take_up(path, asked, generate.sampling.n)
    if done < len(prompts):
        _answer(recipe, generate, tokenizer, prompts, done, path)
    writer = RowWriter()
    length, too_long = recipe.dataset.sequence_length, 0
    for answer in _kept(path):
        row = TokenRow(answer.ids, tuple(place >= answer.first for place in range(len(answer.ids))))
        fits = len(row.ids) <= length
        too_long += not fits
        writer.append(prompts[answer.prompt].document, [row] if fits else [])
    if too_long:
        say(f"{too_long:,} answers are longer, with their prompts, than the {length} tokens of a row, and are left out")
    rows = writer.finish()
    if not len(rows):
        raise UserError(
            f"{path}: no rows: every answer is longer, with its prompt, than dataset.sequence_length {length}."
        )
    return Rows(rows, rows.digest(), MappingProxyType({"too long": too_long} if too_long else {}), len(prompts))


def answers_path(recipe: CaptureRecipe) -> Path:
    """Return where the answers are kept.

    Raises:
        UserError: the dataset lies on a remote store, where lines can't be added to a file.
    """
    if "://" in recipe.output:
        raise UserError(f"{recipe.output}: answers are kept beside the dataset; with `generate`, name a local folder.")
    return Path(f"{recipe.output.rstrip('/')}.answers.jsonl")


def answer_row(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion) -> tuple[list[int], int]:
    """Return the ids of a prompt with its answer, and how many of them are the prompt's.

    Where the engine did not say which tokens it wrote, they are those of its text, by the chat template.
    """
    before = prompt_ids(tokenizer, prompt)
    if completion.ids is not None:
        return [*before, *completion.ids], len(before)
    if not all(isinstance(part, dict) for part in prompt):
        raise LimbeckError(
            f"prompt {completion.prompt}: the engine says no token ids, and a plain text has no template."
        )
    messages: list[Any] = [*prompt, {"role": "assistant", "content": completion.text}]
    row = conversation_row(tokenizer, messages)
    return list(row.ids), row.trained.index(True)


def _prompt(content: Text | Conversation) -> Prompt:
    if isinstance(content, Text):
        return [{"role": "user", "content": content.text}]
    messages = list(content.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


def _plain(one: NamedPrompt, tokenizer: PreTrainedTokenizerBase) -> NamedPrompt:
    text = "\n".join(str(message["content"]) for message in one.prompt if isinstance(message, dict))
    return NamedPrompt(one.document, list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))


def _answer(
    recipe: CaptureRecipe,
    generate: GenerateSettings,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[NamedPrompt],
    done: int,
    path: Path,
) -> None:
    engine = generate.engine or recipe.engine
    generator = open_generator(recipe.model, recipe.revision, engine, tokenizer)
    try:
        with path.open("ab") as file, bar("writing answers (prompts)", len(prompts), done) as shown:
            first = done
            for batch in _batches(prompts[done:], generate.batch_prompts):
                completions = generator.generate([one.prompt for one in batch], generate.sampling, first_prompt=first)
                for completion in completions:
                    ids, before = answer_row(tokenizer, prompts[completion.prompt].prompt, completion)
                    answer = Answer(
                        completion.prompt, completion.choice, tuple(ids), before, completion.text,
                        completion.finish_reason,
                    )  # fmt: skip
                    file.write(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                first += len(batch)
                shown.advance(len(batch))
    finally:
        generator.close()


def _batches(prompts: Sequence[NamedPrompt], size: int) -> Iterator[Sequence[NamedPrompt]]:
    """Yield prompts in batches of `size`."""
    for first in range(0, len(prompts), size):
        yield prompts[first : first + size]


def _take_up(path: Path, asked: str, choices: int) -> int:
    """Begin the file of answers, or cut it back to its last prompt with all its answers; return the prompts it has."""
    head = json.dumps({"asked": asked}).encode() + b"\n"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head)
        return 0
    done, whole = 0, 0
    with path.open("rb+") as file:
        if file.readline() != head:
            raise UserError(
                f"{path}: holds answers to other prompts, or by other settings. Move it away, or restore those."
            )
        whole = file.tell()
        for number, line in enumerate(iter(file.readline, b""), start=1):
            if not line.endswith(b"\n"):
                break
            if number % choices == 0:
                done, whole = number // choices, file.tell()
        file.truncate(whole)
    return done


def _kept(path: Path) -> Iterator[Answer]:
    """Yield the answers in a file, which has been taken up."""
    with path.open("rb") as file:
        file.readline()
        for line in file:
            data = json.loads(line)
            yield Answer(**data | {"ids": tuple(data["ids"])})
