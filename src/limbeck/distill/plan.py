"""What a training run will be, before it is one: parameters, memory by part, steps and tokens. Nothing is trained.

Weights, gradients and optimizer states follow from the shapes; activations are an estimate, of blocks of a decoder
with fused attention; what libraries and fragmentation take is not in it. All of it is of one process that holds
everything: FSDP and DeepSpeed divide weights, gradients and optimizer states among processes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from limbeck.distill.checks import Checked
from limbeck.distill.layers import block_count, decoder_config, state_width
from limbeck.distill.optimizers.roles import split_by_role
from limbeck.distill.recipe import Recipe
from limbeck.distill.rows import Rows, RowSet
from limbeck.distill.sources import Stored
from limbeck.distill.teachers.settings import HfTeacher, MixedTeachers
from limbeck.distill.ternary import ramp_of
from limbeck.distill.walk import BLOCK_LOGITS, CHUNK_LOGITS, DEVICE_BLOCKS, DEVICE_CHUNKS
from limbeck.engines.transformers import quiet

EXACT = 4  # bytes of a float32
STATES = {"adafactor": 0.0, "sgd": 0.0, "adagrad": 4.0, "lion": 4.0, "8bit": 2.0}
ADAM = 8.0  # bytes a parameter: mean and variance in float32


@dataclass(frozen=True)
class Plan:
    """A run in figures.

    Attributes:
        parameters: of the student.
        trained: of them.
        teacher_parameters: of teachers in this process.
        memory: bytes of each part, on the device that trains.
        teacher_memory: bytes of the teachers' weights, wherever they are put.
        rows: in an epoch; None: a stream.
        tokens: in an epoch, padding not counted; None: a stream.
        steps: of the optimizer, in all.
        tokens_a_step: at most.
    """

    parameters: int
    trained: int
    teacher_parameters: int
    memory: dict[str, int]
    teacher_memory: int
    rows: int | None
    tokens: int | None
    steps: int
    tokens_a_step: int


def make_plan(checked: Checked, rows: Rows | None) -> Plan:
    """Return the plan of a run that was checked; without `rows`, what headers tell of them."""
    arguments = checked.arguments.values
    skeleton = checked.start.skeleton
    total = _count(skeleton.parameters())
    trained = _count(parameter for parameter in skeleton.parameters() if parameter.requires_grad)
    bytes_each = checked.start.dtype.itemsize
    teachers = [_teacher_size(one) for one in _teachers(checked.recipe)]
    memory = {
        "weights": total * bytes_each,
        "gradients": trained * bytes_each,
        "optimizer": optimizer_bytes(checked),
        "activations": activation_bytes(checked),
        "executor": executor_bytes(checked),
    }
    a_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    count, tokens = _size(checked, rows)
    ramp_of(checked.recipe.quantisation, steps_of(arguments, count))
    return Plan(
        parameters=total,
        trained=trained,
        teacher_parameters=sum(count for count, _ in teachers),
        memory=memory,
        teacher_memory=sum(size for _, size in teachers),
        rows=count,
        tokens=tokens,
        steps=steps_of(arguments, count),
        tokens_a_step=a_step * checked.recipe.sequence_length,
    )


def _size(checked: Checked, rows: Rows | None) -> tuple[int | None, int | None]:
    """Return rows and tokens of an epoch."""
    if rows is not None:
        return (len(rows.train), int(rows.train.lengths.sum())) if isinstance(rows.train, RowSet) else (None, None)
    recipe = checked.recipe
    training = list(checked.sources.values())[: len(recipe.dataset.train_dataset)]
    stored = [one for one in training if isinstance(one, Stored)]
    count, tokens = sum(one.rows for one in stored), sum(one.tokens for one in stored)
    wanted = min(recipe.dataset.num_samples or count, count)
    wanted -= round(wanted * recipe.evaluation.share) if recipe.dataset.eval_dataset is None else 0
    tokens = tokens * wanted // max(count, 1)
    return (-(-tokens // recipe.sequence_length) if recipe.packs else wanted), tokens


def steps_of(arguments: Any, rows: int | None) -> int:
    """Return how many steps of the optimizer a run takes; a stream ends where `max_steps` says."""
    if arguments.max_steps > 0 or rows is None:
        return int(arguments.max_steps)
    a_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    an_epoch = rows // a_step if arguments.dataloader_drop_last else -(-rows // a_step)
    return max(1, -int(-(an_epoch * arguments.num_train_epochs) // 1))


def optimizer_bytes(checked: Checked) -> int:
    """Return what the optimizer keeps of the trained parameters."""
    if checked.recipe.optimizer is not None:  # Muon keeps one average of a matrix, AdamW two of anything else
        groups = split_by_role(checked.start.skeleton, 0.0)
        return sum(_count(group["params"]) * (EXACT if group["muon"] else int(ADAM)) for group in groups)
    optim = str(checked.arguments.values.optim)
    each = next((size for name, size in STATES.items() if name in optim), ADAM)
    if each == ADAM:  # kept in the dtype of the weights
        each = 2.0 * checked.start.dtype.itemsize
    trained = (parameter for parameter in checked.start.skeleton.parameters() if parameter.requires_grad)
    return int(_count(trained) * each)


def activation_bytes(checked: Checked) -> int:
    """Return about what is kept of a micro-batch for the backward pass.

    Of each token a block keeps its input, two normed inputs, queries, keys, values, what attention returns, and four
    times the width of its MLP; with checkpointing only its input, and one block is computed again at a time.
    """
    arguments, config = checked.arguments.values, decoder_config(checked.start.config)
    tokens = arguments.train_batch_size * checked.recipe.sequence_length
    half = arguments.bf16 or arguments.fp16
    each = 2 if half else checked.start.dtype.itemsize
    width, blocks = state_width(config), block_count(config)
    heads = int(getattr(config, "num_attention_heads", 1))
    head = int(getattr(config, "head_dim", None) or width // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    a_block = 5 * width + 2 * heads * head + 2 * groups * head + 4 * inner
    numbers = blocks * width + a_block if arguments.activation_checkpointing else blocks * a_block
    return int(tokens * each * numbers) + tokens * width * each


def executor_bytes(checked: Checked) -> int:
    """Return what the losses need at a time: chunks of logits, blocks, and the gradient of the head in float32."""
    arguments, width = checked.arguments.values, state_width(checked.start.config)
    tokens = arguments.train_batch_size * checked.recipe.sequence_length
    chunks, blocks = (1, 1) if arguments.use_cpu else (DEVICE_CHUNKS, DEVICE_BLOCKS)
    whole = checked.teacher is not None and checked.teacher.kind in ("hidden", "dense")
    logits = min(chunks * CHUNK_LOGITS, tokens * checked.start.vocabulary) * (2 if whole else 1)
    head = checked.start.vocabulary * width
    return EXACT * (logits + 2 * blocks * BLOCK_LOGITS + head + tokens * width)


def _teachers(recipe: Recipe) -> list[HfTeacher]:
    teacher = recipe.teacher
    members = teacher.teachers if isinstance(teacher, MixedTeachers) else (teacher,)
    return [one for one in members if isinstance(one, HfTeacher)]


def _teacher_size(settings: HfTeacher) -> tuple[int, int]:
    """Return a teacher's parameters, and the bytes of its weights."""
    with quiet():
        config = transformers.AutoConfig.from_pretrained(
            settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        with torch.device("meta"):
            model = getattr(transformers, settings.model_auto_class).from_config(
                config, trust_remote_code=settings.trust_remote_code
            )
    count = _count(model.parameters())
    asked = str(settings.kwargs.get("torch_dtype", settings.kwargs.get("dtype", settings.dtype))).removeprefix("torch.")
    if settings.quantization is not None:
        return count, count // (1 if settings.quantization == "int8" else 2)
    own = getattr(config, "dtype", None) or torch.float32
    dtype = (own if torch.cuda.is_available() else torch.float32) if asked == "auto" else getattr(torch, asked)
    return count, count * int(dtype.itemsize)


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
