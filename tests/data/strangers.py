"""Tokenizers of other houses, made in a test: their marks, their templates, their ways to begin a text."""

import json
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.engines.tiny import TEXT

CHATML = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "<answer>{{ message.content }}</answer>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}"
    "{% for call in message.tool_calls %}"
    "\n<call>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</call>"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Roles in the text, one turn for several tool outputs, contents trimmed, an end mark and a line break."""

LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no role ' + message.role) }}{% endif %}"
    "{% endfor %}"
)
"""No marks of roles but in plain text, and a beginning that the template writes itself."""


@lru_cache(maxsize=1)
def chatml() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose ids of special tokens come last, and that begins no text with a mark."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT, "user\nassistant\nsystem\n\n\n"] * 3,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False),
    )
    marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    backend.add_special_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHATML,
    )  # fmt: skip


@lru_cache(maxsize=1)
def llama() -> PreTrainedTokenizerFast:
    """The way of sentencepiece: spaces are letters, one before every text, bytes for the unknown; texts have a mark."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    backend.train_from_iterator([TEXT, "[INST]"] * 3, trainer)
    trained = json.loads(backend.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in specials]
    backend = Tokenizer.from_str(json.dumps(trained))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA
    )
