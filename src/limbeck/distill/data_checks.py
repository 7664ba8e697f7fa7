"""Whether a student can be trained on what a recipe's `dataset:` names, as far as headers tell."""

from collections.abc import Sequence

from limbeck.data.sources import TextSource
from limbeck.distill.layers import decoder_config
from limbeck.distill.recipe import DatasetTeacher, Recipe
from limbeck.distill.sources import Opened, Stored, open_source
from limbeck.distill.starting import Start
from limbeck.distill.term import Term
from limbeck.errors import UserError

LISTED = ("topk", "sampled", "token")  # kinds that say nothing of ids beyond the teacher's own vocabulary


def open_sources(recipe: Recipe) -> dict[str, Opened]:
    """Return the opened sources by their keys in the recipe; that of held-out rows is the last, if there is one.

    Raises:
        UserError: one is not there, or not what the recipe says it is.
    """
    settings = recipe.dataset
    several = len(settings.train_dataset) > 1
    sources = {
        f"dataset.train_dataset.{index}" if several else "dataset.train_dataset": source
        for index, source in enumerate(settings.train_dataset)
    }
    if settings.eval_dataset is not None:
        sources["dataset.eval_dataset"] = settings.eval_dataset
    return {
        key: open_source(source, key, settings, recipe.teacher, recipe.sequence_length)
        for key, source in sources.items()
    }


def check_stored(teacher: DatasetTeacher, terms: Sequence[Term], sources: dict[str, Opened]) -> None:
    """Refuse text where signals are needed, and signals that can't be in one run.

    Raises:
        UserError: so it is; the key of the source is named.
    """
    reading = [term.name for term in terms if term.loss.signals]
    first: Stored | None = None
    for key, one in sources.items():
        if isinstance(one, TextSource):
            if reading:
                raise UserError(
                    f"{key}: {one.path} is text, and {reading[0]!r} compares with a teacher's signals. Capture them "
                    "(limbeck capture), or name a teacher that is asked while training (teacher.kind: hf)."
                )
            continue
        if teacher.vocab_size not in (None, one.vocabulary):
            raise UserError(f"teacher.vocab_size: {teacher.vocab_size}, but {one.where} is over {one.vocabulary}.")
        first = first or one
        if difference := one.differs_from(first):
            raise UserError(
                f"{key}: its {difference}. All rows of a run need one codec and vocabulary: "
                "limbeck signals convert brings datasets to one codec."
            )


def check_tokens(recipe: Recipe, begun: Start, digest: str, signals: Sequence[Stored]) -> None:
    """Refuse signals that were captured with another tokenizer, or over another vocabulary.

    Args:
        recipe: the recipe.
        begun: its student.
        digest: of the student's tokenizer.
        signals: that rows are taken from; with an online teacher only their tokens are.
    """
    for one in signals:
        if one.tokenizer_digest not in (None, digest):
            raise UserError(
                f"model: {recipe.student_name}: this student's tokenizer ({digest[:12]}…) is not the one that "
                f"{one.where} was captured with ({str(one.tokenizer_digest)[:12]}…). Train a student with the "
                "teacher's tokenizer (limbeck tokenizer transplant makes one), or capture with the student's."
            )
        padded = one.kind in LISTED and one.vocabulary < begun.vocabulary
        if isinstance(recipe.teacher, DatasetTeacher) and one.vocabulary != begun.vocabulary and not padded:
            raise UserError(
                f"model: {recipe.student_name}: a vocabulary of {begun.vocabulary}, but the signals in {one.where} "
                f"are over {one.vocabulary}. Choose another student, or resize it (resize_embeddings_to_multiple_of)."
            )


def check_lengths(recipe: Recipe, begun: Start, sources: Sequence[Opened]) -> None:
    """Refuse rows that are longer than the recipe allows, or than the student can read."""
    longest = 0
    for one in sources:
        if isinstance(one, Stored) and one.longest > recipe.sequence_length:
            raise UserError(
                f"sequence_length: the dataset has a row of {one.longest} tokens, more than {recipe.sequence_length} "
                f"({one.where}). Raise sequence_length, or capture shorter rows."
            )
        longest = max(longest, one.longest if isinstance(one, Stored) else recipe.sequence_length)
    context = getattr(decoder_config(begun.config), "max_position_embeddings", None)
    if context is not None and longest > context:  # packed documents count their positions from 0 each
        raise UserError(
            f"sequence_length: rows of {longest} tokens, but {recipe.student_name} reads {context} at most "
            "(max_position_embeddings). Lower sequence_length, or capture shorter rows."
        )
