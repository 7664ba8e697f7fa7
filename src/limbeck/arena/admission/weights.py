"""Checks of the weights by their headers: size, precision, architecture, vocabulary. No tensor is read."""

from typing import Any

from limbeck.arena.admission.architectures import ConfigValueError, expected_shapes, known_architectures
from limbeck.arena.admission.files import nested_keys
from limbeck.arena.admission.registry import RefusalError, Rules, check
from limbeck.arena.admission.submission import Submission

QUANTISATION_KEYS = (
    "quantization_config",
    "compression_config",
    "quantization",
    "quant_method",
    "load_in_4bit",
    "load_in_8bit",
)
QUANTISATION_NAMES = (
    "absmax",
    "quant_map",
    "quant_state",
    "scb",
    "g_idx",
    "qweight",
    "qzeros",
    "scales",
    "weight_scale",
    "input_scale",
    "zero_point",
)
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")


@check("parameters", cost=10, needs=("weights",))
def parameters(submission: Submission, rules: Rules) -> str:
    """Not more parameters than allowed, counted from the headers of all weight files."""
    total = sum(tensor.elements for tensor in submission.tensors.values())
    if total > rules.student.max_parameters:
        raise RefusalError(
            f"{total:,} parameters, at most {rules.student.max_parameters:,} are allowed.", "Train a smaller model."
        )
    return f"{total:,} parameters, at most {rules.student.max_parameters:,}"


@check("dtype", cost=11, needs=("weights",))
def dtype(submission: Submission, rules: Rules) -> str:
    """Every tensor has an allowed dtype."""
    for tensor in submission.tensors.values():
        if tensor.dtype not in rules.student.dtypes:
            raise RefusalError(
                f"tensor {tensor.name[:100]!r} is {tensor.dtype}; allowed: {', '.join(rules.student.dtypes)}.",
                "Save the weights in bf16: model.to(torch.bfloat16).save_pretrained(folder).",
            )
    return ", ".join(sorted({tensor.dtype for tensor in submission.tensors.values()}))


@check("quantisation", cost=12, needs=("weights",))
def quantisation(submission: Submission, rules: Rules) -> str:
    """No sign of quantisation, in the configuration or in the tensors' names."""
    mend = "Submit the weights in bf16, fp16 or fp32; quantised models are not admitted."
    for key, value in nested_keys(submission.config):
        if key in QUANTISATION_KEYS and value not in (None, False, {}):
            raise RefusalError(f"config.json has the key {key!r}.", mend)
    for name in submission.tensors:
        if name.lower().rpartition(".")[2] in QUANTISATION_NAMES:
            raise RefusalError(f"tensor {name[:100]!r} is a quantiser's.", mend)
    return "none"


@check("architecture", cost=13, needs=("weights",))
def architecture(submission: Submission, rules: Rules) -> str:
    """The architecture is allowed, and names and shapes of all tensors are those that the configuration stands for."""
    named = submission.config.get("architectures")
    allowed = [name for name in rules.student.architectures if name in known_architectures()]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in allowed:
        raise RefusalError(
            f"config.json names the architectures {str(named)[:80]}; allowed: {', '.join(allowed)}.",
            "Train one of the allowed architectures.",
        )
    try:
        expected = expected_shapes(named[0], submission.config)
    except ConfigValueError as error:
        raise RefusalError(f"config.json: {error}.", "Save the model again with save_pretrained.") from error
    actual = {tensor.name: tensor.shape for tensor in submission.tensors.values()}
    mend = "Save the model again with save_pretrained, and leave configuration and weights alone after that."
    if missing := sorted(set(expected) - set(actual)):
        raise RefusalError(f"config.json stands for tensor {missing[0]!r}, which is not there.", mend)
    if extra := sorted(set(actual) - set(expected)):
        raise RefusalError(f"tensor {extra[0][:100]!r} is not part of what config.json stands for.", mend)
    for name, shape in expected.items():
        if actual[name] != shape:
            raise RefusalError(
                f"tensor {name!r} is {_times(actual[name])}, and config.json says {_times(shape)}.", mend
            )
    return f"{named[0]}, {len(actual)} tensors as configured"


@check("vocabulary", cost=14, needs=("weights",))
def vocabulary(submission: Submission, rules: Rules) -> str:
    """The vocabulary has the arena's size, in the configuration and in the embedding itself."""
    size = rules.student.vocabulary
    said = submission.config.get("vocab_size")
    if said != size:
        raise RefusalError(f"config.json says vocab_size {str(said)[:20]}, the arena's is {size}.", _VOCABULARY_MEND)
    tables = [tensor for name, tensor in submission.tensors.items() if name.endswith((*EMBEDDINGS, "lm_head.weight"))]
    if not any(tensor.name.endswith(EMBEDDINGS) for tensor in tables):
        raise RefusalError("no tensor is an embedding.", _VOCABULARY_MEND)
    for tensor in tables:
        if len(tensor.shape) != 2 or tensor.shape[0] != size:
            raise RefusalError(f"tensor {tensor.name!r} is {_times(tensor.shape)}, not {size} rows.", _VOCABULARY_MEND)
    return f"{size} entries"


_VOCABULARY_MEND = "Train with the teacher's tokenizer, and do not resize the embedding."


def _times(shape: Any) -> str:
    return " x ".join(str(size) for size in shape) or "a scalar"
