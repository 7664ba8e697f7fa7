"""Which of the student's blocks learns from which of the teacher's; found from the two configurations alone.

Blocks are counted from 0, and a block's state is its output: what stands in the residual stream behind it. The
embedding is not a block, and the last block's state is taken before the final norm.

Not here: looking into models that are loaded (`taps`), and the losses on what is seen there (`alignment`).
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, NonNegativeInt, Tag

from limbeck.errors import UserError
from limbeck.settings import Settings

Pairs = tuple[tuple[int, int], ...]
Part = Literal["queries", "keys", "values"]
PARTS: tuple[Part, ...] = get_args(Part)
WITHOUT_QUERIES = ("linear_attention", "conv", "moe")  # kinds of blocks, as configurations call them

LayerMapping = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1), Tag("pairs")],
    Discriminator(lambda given: "all" if isinstance(given, str) else "pairs"),
]


class AttentionRelationSettings(Settings):
    """Where, and on what, `attention_relation` compares how positions relate to each other.

    Attributes:
        layers: pairs of blocks, the student's first, or `all`; absent: the last block of each.
        relation_heads: how many relations of each kind a block's heads are regrouped to; absent: the largest number
            that cuts no head of either model.
        of: which of the three are compared.
    """

    layers: LayerMapping | None = None
    relation_heads: int | None = Field(None, gt=0)
    of: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS


def decoder_config(config: Any) -> Any:
    """Return the configuration of the text decoder: the model's own, or its part of a multimodal one."""
    return config.get_text_config(decoder=True)


def block_count(config: Any) -> int:
    """Return how many blocks the text decoder has."""
    return int(decoder_config(config).num_hidden_layers)


def state_width(config: Any) -> int:
    """Return how wide the states of the text decoder's blocks are."""
    return int(decoder_config(config).hidden_size)


def proportional(student_blocks: int, teacher_blocks: int) -> Pairs:
    """Return each student block s with the teacher block `ceil((s + 1) * teacher_blocks / student_blocks) - 1`.

    That is the first block behind which at least the same share of the depth lies: the last goes to the last, the order
    is kept, and blocks of models of equal depth go to each other.
    """
    return tuple((s, -(-(s + 1) * teacher_blocks // student_blocks) - 1) for s in range(student_blocks))


def resolve_layers(mapping: LayerMapping, student: Any, teacher: Any, key: str = "layer_mapping") -> Pairs:
    """Return the pairs `(student block, teacher block)` that a mapping stands for.

    Args:
        mapping: as a recipe gives it.
        student: configuration of the student (of `transformers`; multimodal ones too).
        teacher: configuration of the teacher.
        key: where the mapping stands in the recipe, for messages.

    Raises:
        UserError: a model has no such block, or a pair stands there twice.
    """
    counts = block_count(student), block_count(teacher)
    if isinstance(mapping, str):
        return proportional(*counts)
    for index, pair in enumerate(mapping):
        for block, count, model in zip(pair, counts, ("student", "teacher"), strict=True):
            if not 0 <= block < count:
                raise UserError(
                    f"{key}.{index}: the {model} has {count} blocks (0 to {count - 1}), and block {block} is asked for."
                )
        if pair in mapping[:index]:
            raise UserError(f"{key}.{index}: the pair {list(pair)} stands there already. Remove one of the two.")
    return tuple(mapping)


def resolve_relations(settings: AttentionRelationSettings, student: Any, teacher: Any) -> Pairs:
    """Return the pairs of blocks that `attention_relation` compares.

    Raises:
        UserError: as `resolve_layers`; a block has no softmax attention; or one model's heads can't be regrouped to as
            many relations as asked for.
    """
    key = "attention_relation"
    relations = settings.relation_heads or 1
    for model, config in (("student", student), ("teacher", teacher)):
        for heads, width in _head_shapes(decoder_config(config)):
            if heads * width % relations:
                raise UserError(
                    f"{key}.relation_heads: {heads} heads of {width} numbers of the {model} can't be regrouped to "
                    f"{relations} relations of equal width. Choose a divisor of {heads * width}."
                )
    pairs: Pairs = ((block_count(student) - 1, block_count(teacher) - 1),)
    if settings.layers is not None:
        pairs = resolve_layers(settings.layers, student, teacher, f"{key}.layers")
    for index, pair in enumerate(pairs):
        for block, model, config in zip(pair, ("student", "teacher"), (student, teacher), strict=True):
            kinds = getattr(decoder_config(config), "layer_types", None) or ()
            if block < len(kinds) and kinds[block] in WITHOUT_QUERIES:
                raise UserError(
                    f"{key}.layers.{index}: block {block} of the {model} is {kinds[block]!r}, without softmax over "
                    "queries and keys. Choose another block."
                )
    return pairs


def _head_shapes(config: Any) -> list[tuple[int, int]]:
    """Return number and width of the heads of queries, and of keys and values, where the configuration tells them.

    Attention over compressed keys states neither; what it shows is checked when it is seen.
    """
    if getattr(config, "kv_lora_rank", None) is not None:
        return []
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    return [(heads, width), (groups, width)]
