"""What special tokens are for, whatever they are called: the start of a text, the user's turn, the hole in the middle.

Roles are read from a tokenizer's own attributes (`bos_token` and so on) and from the usual names of tokens for chat and
for filling in the middle. A token may have several roles (an end-of-text token that also pads), and a role several
tokens. A name that is not known has no role: nothing is guessed.
"""

import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

ATTRIBUTES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
NAMES = {
    "system": ("system",),
    "user": ("user", "human"),
    "assistant": ("assistant", "model", "bot"),
    "tool": ("tool", "ipython", "observation"),
    "turn_start": ("im_start", "start_of_turn", "start_header_id", "turn_start"),
    "turn_end": ("im_end", "end_of_turn", "eot_id", "eot", "turn_end", "end"),
    "fim_prefix": ("fim_prefix", "fim_begin", "PRE"),
    "fim_suffix": ("fim_suffix", "fim_hole", "SUF"),
    "fim_middle": ("fim_middle", "fim_end", "MID"),
    "fim_pad": ("fim_pad",),
}
SUBSTITUTES = {"turn_end": "eos", "bos": "eos", "eos": "turn_end", "pad": "eos", "cls": "bos", "sep": "eos"}
RESERVED = re.compile(r"reserved|unused|extra_?\d|dummy|placeholder|\bpad_?\d", re.IGNORECASE)
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names}


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return special and added tokens by id."""
    return {int(token): str(entry.content) for token, entry in tokenizer.added_tokens_decoder.items()}


def roles(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the token of each role, by id; where several have it, the one of the smallest id."""
    found: dict[str, int] = {}
    for token, text in sorted(added_tokens(tokenizer).items()):
        name = _bare(text)
        if (role := _ROLE_OF.get(name, _ROLE_OF.get(name.lower()))) is not None:
            found.setdefault(role, token)
    for role in ATTRIBUTES:
        own = getattr(tokenizer, f"{role}_token_id", None)
        if isinstance(own, int):
            found[role] = own
    return found


def counterparts(
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    substitutes: Mapping[str, str] = SUBSTITUTES,
) -> dict[int, int]:
    """Return, for special and added tokens of `source`, the token of `target` that is for the same.

    The same text comes first, then the same role, then a role that stands in for it (the end of the text for the end of
    a turn). Tokens without a counterpart are left out.
    """
    texts = {text: token for token, text in added_tokens(target).items()}
    by_role = roles(target)
    found = {token: texts[text] for token, text in added_tokens(source).items() if text in texts}
    for wanted in (lambda role: role, lambda role: substitutes.get(role, "")):
        for role, token in roles(source).items():
            if token not in found and wanted(role) in by_role:
                found[token] = by_role[wanted(role)]
    return found


def is_reserved(text: str) -> bool:
    """Return whether a special token stands for nothing yet."""
    return RESERVED.search(text) is not None


def _bare(text: str) -> str:
    """Return the name in a special token's text: `fim_prefix` of `<|fim_prefix|>`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("/", "end_")).strip("_")
