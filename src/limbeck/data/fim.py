"""Fill-in-the-middle rows: a document rearranged so that a decoder learns to write what is missing inside it.

Cuts fall between characters, before tokenising, so that the middle may begin and end inside what would be one token
(Bavarian et al., arXiv:2207.14255). Half of the rows put the prefix first and half the suffix:

    PSM: <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>
    SPM: <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle <|endoftext|>

In SPM order prefix and middle are one text to the tokenizer, which is what the order is good for: nothing is cut
between them. A document that spells sentinels is text like any other. Documents have to be cut to size beforehand: rows
are as long as they come out.
"""

from random import Random

from transformers import PreTrainedTokenizerBase

from limbeck.data.tokenizer import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX
from limbeck.errors import UserError


def sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Return the ids of the prefix, suffix and middle sentinels.

    Raises:
        UserError: the tokenizer lacks one of them as a single token, or an end-of-text token to close with.
    """
    vocabulary = tokenizer.get_vocab()
    for token in (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE):
        if token not in vocabulary:
            raise UserError(f"the tokenizer has no token {token}: it can't be used to fill in the middle.")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token: a filled middle would have no end.")
    return vocabulary[FIM_PREFIX], vocabulary[FIM_SUFFIX], vocabulary[FIM_MIDDLE]


def infill_prompt(tokenizer: PreTrainedTokenizerBase, prefix: str, suffix: str) -> list[int]:
    """Return the ids after which a model writes what belongs between `prefix` and `suffix` (PSM order)."""
    before, after, middle = sentinels(tokenizer)
    return [before, *_ids(tokenizer, prefix), after, *_ids(tokenizer, suffix), middle]


def infill_row(tokenizer: PreTrainedTokenizerBase, document: str, rng: Random) -> list[int]:
    """Cut a document at two places drawn evenly, and return its parts in PSM or SPM order, each half the time.

    Args:
        tokenizer: with the three sentinels and an end-of-text token.
        document: the text; any of its parts may come out empty.
        rng: where the cuts and the order are drawn from.

    Raises:
        UserError: as `sentinels`.
    """
    first, second = sorted((rng.randint(0, len(document)), rng.randint(0, len(document))))
    prefix, middle, suffix = document[:first], document[first:second], document[second:]
    end = tokenizer.eos_token_id
    if rng.random() < 0.5:
        return [*infill_prompt(tokenizer, prefix, suffix), *_ids(tokenizer, middle), end]
    return [*infill_prompt(tokenizer, "", suffix), *_ids(tokenizer, prefix + middle), end]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])
