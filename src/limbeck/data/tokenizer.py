"""Byte-level BPE tokenizers with chat roles and fill-in-the-middle sentinels.

Any text can be written and read back byte for byte; digits always stand alone, so that numbers are seen digit by
digit. Special tokens have fixed ids from 0 on, in the order of `SPECIAL_TOKENS`.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from limbeck.engines.transformers import check_source
from limbeck.errors import UserError

PAD, EOS = "<|pad|>", "<|endoftext|>"
SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"
SPECIAL_TOKENS = (PAD, EOS, SYSTEM, USER, ASSISTANT, TOOL, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD)

CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ ('" + SYSTEM + "' if loop.first else '\n') + (tool | tojson) }}{% endfor %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% for call in message['tool_calls'] %}"
    "{{ '\n' if message['content'] or not loop.first }}"
    "{{ {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '" + EOS + "' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)
"""Turns as `<|role|>content`. Tools are a first system turn, a JSON object a line; so are calls, at a turn's end."""


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts`.

    Args:
        texts: the training text; the same texts in the same order give the same tokenizer.
        vocabulary: number of entries, special tokens included.
        context: the longest input of the models that will use it, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (PAD, EOS)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def load_tokenizer(folder: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder or a repository; no code from the repository is ever run.

    Raises:
        UserError: there is no tokenizer there.
    """
    check_source(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), revision=revision, trust_remote_code=False)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: no tokenizer can be loaded from here ({first_line}).") from error


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 that identifies what a fast tokenizer does with text.

    It covers the backend's own serialisation (vocabulary, merges, normaliser, pre-tokenizer, added tokens), without
    padding and truncation, which are settings of a call.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
