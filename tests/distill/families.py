"""Tokenizers of several families, trained on a few lines of text."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Größe und Länge: naïve café, déjà vu. Ünïcödé! \u65e5\u672c\u8a9e\u306e\u6587\u5b57 \U0001f600\U0001f680",
    "1234567890  two  spaces   three\tand a tab\r\n\r\nQuestion: what is 12 + 34? Answer: 46",
] * 3
NAMES = ("bytes", "large", "composed", "spaces", "first", "pieces", "words")


@cache
def family(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer by its family: bytes (small, large, with composed accents), ▁ (always, or at the start), words."""
    bos: str | None = None
    match name:
        case "bytes" | "large" | "composed":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name != "large")
            tokenizer.decoder = decoders.ByteLevel()
            if name == "composed":
                tokenizer.normalizer = normalizers.NFC()
                tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
            _train_bpe(tokenizer, {"bytes": 300, "large": 600, "composed": 400}[name], ["<|end|>", "<|user|>"], True)
            eos = "<|end|>"
        case "spaces" | "first":
            tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
            scheme = "always" if name == "spaces" else "first"
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
            tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
            _train_bpe(tokenizer, 250, ["<unk>", "<s>", "</s>"], False)
            _add_bytes(tokenizer)
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
            )
            bos, eos = "<s>", "</s>"
        case "pieces":
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
            unigram = trainers.UnigramTrainer(
                vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
            )
            tokenizer.train_from_iterator(TEXT, unigram)
            eos = "</s>"
        case _:
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
            wordpiece = trainers.WordPieceTrainer(
                vocab_size=250, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
            )
            tokenizer.train_from_iterator(TEXT, wordpiece)
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
            )
            eos = "[SEP]"
    unknown = next((token for token in ("<unk>", "[UNK]") if tokenizer.token_to_id(token) is not None), None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token=unknown, pad_token=eos,
        extra_special_tokens=["<|user|>"] if tokenizer.token_to_id("<|user|>") is not None else [],
    )  # fmt: skip


def _train_bpe(tokenizer: Tokenizer, size: int, special: list[str], alphabet: bool) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)


def _add_bytes(tokenizer: Tokenizer) -> None:
    """Let characters that were not seen in training be written byte by byte."""
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
