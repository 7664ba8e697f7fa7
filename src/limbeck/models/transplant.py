"""Moving a student to another tokenizer: embeddings and output head made of the rows that it has.

A token of the new vocabulary whose bytes are a token of the old one takes over its rows. One that is not is composed of
the old tokens that its bytes are written in: the mean of their rows (Gee et al., Fast Vocabulary Transfer,
arXiv:2402.09977), in the head as in the embeddings. Special tokens go by their role. What is left is drawn at random
with the mean and the spread of the old rows. Everything else in the model stays as it is: a transplanted student says
less well what it knew, but starts far ahead of one with random embeddings, and every loss that needs the teacher's
vocabulary applies to it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.engines.transformers import quiet
from limbeck.errors import UserError
from limbeck.models.token_roles import counterparts
from limbeck.models.transplant_tokens import Kind, Lexicon, Origin, origins
from limbeck.seeds import derive_seed

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")
OTHER_ROLES = ("unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
OF_THE_OLD_VOCABULARY = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
EXAMPLES = 8


@dataclass(frozen=True)
class Transplanted:
    """What became of the vocabulary.

    Attributes:
        counts: rows of each kind of origin.
        examples: of each kind, some tokens and what they were made of.
        old_vocabulary: rows before.
        new_vocabulary: rows now.
        tied: whether embeddings and head are one matrix.
    """

    counts: dict[str, int]
    examples: dict[str, list[tuple[str, list[str]]]]
    old_vocabulary: int
    new_vocabulary: int
    tied: bool


def transplant(
    model: PreTrainedModel,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
    *,
    vocabulary: int | None = None,
    seed: int = 1,
    random: bool = False,
) -> Transplanted:
    """Give a model the vocabulary of another tokenizer, in place.

    Args:
        model: with one table of embeddings and one linear head, tied or not.
        old: its tokenizer.
        new: the tokenizer that it is to have.
        vocabulary: rows of the result, at least the new tokenizer's entries; None: as many.
        seed: of what is drawn at random.
        random: draw every row at random: what a transplant has to be better than.

    Raises:
        UserError: a tokenizer's tokens can't be told by their bytes, or the model has other tables over its vocabulary.
    """
    rows = _checked(model, new, vocabulary)
    before = int(model.get_input_embeddings().weight.shape[0])
    found = _origins(model, old, new, rows)
    _give(model, [Origin("random")] * rows if random else found.made, seed)
    set_special_ids(model, new, counterparts(old, new))
    return found.report(model, before)


def report(
    model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, vocabulary: int
) -> Transplanted:
    """Return what a transplant would make of the vocabulary; the model stays as it is. Raises as `transplant`."""
    before = int(model.get_input_embeddings().weight.shape[0])
    return _origins(model, old, new, _checked(model, new, vocabulary)).report(model, before)


def give_vocabulary(model: PreTrainedModel, rows: int, seed: int) -> None:
    """Pad (or cut) a model's vocabulary to `rows`; the rows that both have stay as they are."""
    before = int(model.get_input_embeddings().weight.shape[0])
    if rows != before:
        _give(model, [Origin("copied", (row,)) if row < before else Origin("padding") for row in range(rows)], seed)


def set_special_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counterpart: Mapping[int, int] | None = None
) -> None:
    """Write a tokenizer's special ids into the configuration and the settings of generation.

    Args:
        model: its configuration is changed.
        tokenizer: whose ids they are to be.
        counterpart: the new id for each special id of the old tokenizer, for ids of other roles.

    Raises:
        UserError: the configuration names a token (of an image, say) that the new tokenizer has no counterpart for.
    """
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        for name, value in config.to_dict().items():
            if name in ROLES + OTHER_ROLES:
                setattr(config, name, getattr(tokenizer, name, None))
            elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and counterpart is not None:
                if value not in counterpart:
                    raise UserError(
                        f"{type(model).__name__}: its configuration's {name} is token {value} of the student's "
                        "tokenizer, and the new tokenizer has no such special token."
                    )
                setattr(config, name, counterpart[value])
    for name in ROLES:
        setattr(model.generation_config, name, getattr(tokenizer, name, None))
    for name in OF_THE_OLD_VOCABULARY:
        setattr(model.generation_config, name, None)


@dataclass(frozen=True)
class _Origins:
    """Where each row comes from, and the two vocabularies."""

    made: list[Origin]
    old: Lexicon
    new: Lexicon

    def report(self, model: PreTrainedModel, before: int) -> Transplanted:
        examples: dict[str, list[tuple[str, list[str]]]] = {}
        for token, origin in enumerate(self.made):
            shown = examples.setdefault(origin.kind, [])
            if len(shown) < EXAMPLES and origin.kind != "padding":
                shown.append((self.new.shown(token), [self.old.shown(piece) for piece in origin.pieces]))
        counts = Counter(origin.kind for origin in self.made)
        kinds: tuple[Kind, ...] = get_args(Kind)
        return Transplanted({kind: counts[kind] for kind in kinds}, examples, before, len(self.made), _tied(model))


def _checked(model: PreTrainedModel, new: PreTrainedTokenizerBase, vocabulary: int | None) -> int:
    """Return the rows of the result."""
    rows = len(new) if vocabulary is None else vocabulary
    if rows < len(new):
        raise UserError(f"vocabulary: {rows} rows for a tokenizer of {len(new)} entries. Give it as many at least.")
    if not isinstance(head := model.get_output_embeddings(), nn.Linear):
        raise UserError(f"{type(model).__name__}: the output head is a {type(head).__name__}, not one linear layer.")
    known = {id(table) for table in _tables(model).values()}
    before = model.get_input_embeddings().weight.shape[0]
    for name, parameter in model.named_parameters():
        if id(parameter) not in known and parameter.ndim == 2 and parameter.shape[0] == before and "embed" in name:
            raise UserError(
                f"{type(model).__name__}: {name} is a further table over the vocabulary; it can't be moved."
            )
    return rows


def _origins(model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, rows: int) -> _Origins:
    before = int(model.get_input_embeddings().weight.shape[0])
    lexicons = Lexicon(old, "the student's tokenizer"), Lexicon(new, "the new tokenizer")
    return _Origins([_within(origin, before) for origin in origins(*lexicons, rows)], *lexicons)


def _within(origin: Origin, rows: int) -> Origin:
    """Leave out pieces that the old tokenizer has and the old model does not."""
    kept = tuple(piece for piece in origin.pieces if piece < rows)
    return origin if kept == origin.pieces else Origin("composed" if kept else "random", kept)


def _tied(model: PreTrainedModel) -> bool:
    return "head" not in _tables(model)


def _give(model: PreTrainedModel, sources: Sequence[Origin], seed: int) -> None:
    """Put rows of the given origins in the place of a model's own."""
    moved = {name: _rows(table.detach(), sources, derive_seed(seed, name)) for name, table in _tables(model).items()}
    with quiet(), torch.no_grad():
        model.resize_token_embeddings(len(sources), mean_resizing=False)
        for name, table in _tables(model).items():
            table.copy_(moved[name])


def _tables(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what has a row for each token: embeddings, the head's weight where it is another matrix, its bias."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = {"embedding": embedding.weight, "head": head.weight, "bias": head.bias}
    return {
        name: table
        for name, table in found.items()
        if table is not None and (name == "embedding" or table is not embedding.weight)
    }


def _rows(old_Vx: Tensor, sources: Sequence[Origin], seed: int) -> Tensor:
    """Return the mean of each source's old rows; without any, a draw from their distribution."""
    wide_VD = old_Vx.float().cpu().flatten(1) if old_Vx.ndim > 1 else old_Vx.float().cpu()[:, None]
    pieces = torch.tensor([piece for source in sources for piece in source.pieces], dtype=torch.long)
    lengths = torch.tensor([len(source.pieces) for source in sources])
    offsets = lengths.cumsum(0) - lengths
    made_WD = nn.functional.embedding_bag(pieces, wide_VD, offsets, mode="mean")
    drawn = torch.tensor([source.kind == "random" or not source.pieces for source in sources])
    mean_D, spread_D = wide_VD.mean(0), wide_VD.std(0)
    noise = torch.randn(int(drawn.sum()), wide_VD.shape[1], generator=torch.Generator().manual_seed(seed % 2**63))
    made_WD[drawn] = mean_D + noise * spread_D
    made_WD[torch.tensor([source.kind == "padding" for source in sources])] = mean_D
    return made_WD.to(old_Vx.dtype).view(-1, *old_Vx.shape[1:])
