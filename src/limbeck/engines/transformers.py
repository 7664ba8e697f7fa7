"""Models of the `transformers` library, on any device it knows: loading, hidden states, and greedy answers.

Loading never runs code from a repository and takes safetensors only: a pickle checkpoint is refused by name.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from limbeck.engines.architectures import register_architectures
from limbeck.errors import UserError
from limbeck.seeds import derive_seed
from limbeck.signals.types import OutputHead

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt", "model.pkl")


def load_model(
    name: str | Path, *, revision: str | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Args:
        name: a local folder or a repository.
        revision: of the repository.
        device: where to put it.
        dtype: of the weights; float32 when absent and the device is a CPU (which computes bfloat16 slowly), the
            checkpoint's own otherwise.

    Raises:
        UserError: there is no such model or device, it is a pickle checkpoint, or its files are not what they say.
    """
    check_source(name)
    _check_device(device)
    register_architectures()
    if Path(name).is_dir():
        _check_folder(Path(name))
    if dtype is None and torch.device(device).type == "cpu":
        dtype = torch.float32
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(name), revision=revision, trust_remote_code=False)
            model, report = AutoModelForCausalLM.from_pretrained(
                str(name), config=config, revision=revision, dtype=dtype, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"{name}: no model can be loaded from here ({_first_line(error)}).") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{name}: its weights lack {len(missing)} tensors that config.json calls for, {missing[0]} among them. "
            "Save the whole model again."
        )
    return model.to(device).eval()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch's words for a device that it doesn't know, or that isn't here
        raise UserError(
            f"device {device!r}: not to be had here ({_first_line(error)}). Choose another: cpu, for one."
        ) from error


def check_source(name: str | Path) -> None:
    """Refuse what is neither a local folder nor the name of a repository, before anything asks the network.

    Raises:
        UserError: there is no such folder, and `owner/name` it is not (or the folder `owner` is here, without `name`).
    """
    path = Path(name)
    if path.is_dir():
        return
    if path.exists():
        raise UserError(f"{name}: not a folder. Name the folder that holds the model.")
    owner, slash, _ = str(name).partition("/")
    if not slash or not REPOSITORY.fullmatch(str(name)) or Path(owner).exists():
        raise UserError(f"{name}: no such folder, and not the name of a repository (owner/name).")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json here. Name a folder that holds a transformers model.")
    if not any(folder.glob("*.safetensors")):
        pickled = [name for name in PICKLES if (folder / name).exists()] or [p.name for p in folder.glob("*.bin")]
        if pickled:
            raise UserError(
                f"{folder / pickled[0]}: a pickle checkpoint, which can run code when it is loaded. "
                "Save the model as safetensors (save_pretrained does)."
            )
        raise UserError(f"{folder}: no *.safetensors file here. Save the model with save_pretrained.")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's own progress bars and warnings: Limbeck says itself what matters."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def final_hidden(model: PreTrainedModel, ids_BT: Tensor, attention_BT: Tensor | None = None) -> Tensor:
    """Return the final hidden states `[B, T, D]` (after the last norm): what the output head is applied to."""
    return model.get_decoder()(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False).last_hidden_state


def output_head(model: PreTrainedModel) -> OutputHead:
    """Return the model's output head; its tensors are the model's own, not copies.

    Raises:
        UserError: the head is not one linear layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(model).__name__}: the output head is a {type(head).__name__}, not one linear layer.")
    return OutputHead(head.weight, head.bias, getattr(model.config, "final_logit_softcapping", None))


@torch.no_grad()
def answer_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> Iterator[str]:
    """Yield the greedy continuation of each prompt (token ids), as text without special tokens, in order.

    Prompts are padded on the left and run in batches with a key-value cache, until the end-of-text token.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(len(prompt) for prompt in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention[row, width - len(prompt) :] = 1
        with quiet(), generating_by(model, settings):
            written = model.generate(ids.to(model.device), attention_mask=attention.to(model.device))
        yield from tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)


@contextmanager
def generating_by(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Put a model's own generation settings aside: a folder's penalties or beams would bend a greedy answer."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def continue_by_sampling(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int,
    eos_token_id: int,
    batch_size: int = 8,
) -> list[list[int]]:
    """Return a continuation of each prompt (token ids of equal length), sampled from the model at temperature 1.

    Each batch draws from its own generator, seeded by `seed` and the batch's place, so that the same call gives the
    same ids. A continuation ends with the end-of-text token where one is drawn.
    """
    continued: list[list[int]] = []
    for first in range(0, len(prompts), batch_size):
        generator = torch.Generator().manual_seed(derive_seed(seed, first) % 2**63)
        ids = torch.tensor(prompts[first : first + batch_size], device=model.device)
        written: list[Tensor] = []
        output = model(input_ids=ids, use_cache=True)
        for _ in range(max_new_tokens):
            chosen = torch.multinomial(output.logits[:, -1].float().softmax(-1).cpu(), 1, generator=generator)
            written.append(chosen)
            if len(written) < max_new_tokens:
                output = model(
                    input_ids=chosen.to(model.device), past_key_values=output.past_key_values, use_cache=True
                )
        for row in torch.cat(written, dim=1).tolist():
            end = row.index(eos_token_id) + 1 if eos_token_id in row else len(row)
            continued.append(row[:end])
    return continued
