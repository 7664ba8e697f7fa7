"""Engine `packed`: packed students write, one text after another, on a CPU or a GPU.

Which token is taken and where a text ends is decided by `limbeck.engines.writing`, as for every model of this process:
a packed student completes a prompt as the student does that it unpacks to, wherever their logits lead to the same
draws. A prompt is read once for all of its completions, wherever in the call it is repeated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck.engines.completions import Completion, Prompt, Sampling, completion_seed, prompt_ids
from limbeck.engines.registry import opens
from limbeck.engines.writing import OnToken, TextStopper, TokenChooser, check_fit, completed, end_tokens, unheard
from limbeck.errors import UserError
from limbeck.files import read_json
from limbeck.models.packed.files import NAME
from limbeck.models.packed.products import Products, best_products
from limbeck.models.packed.runtime import PackedStudent, Session
from limbeck.settings import Settings

GENERATION = "generation_config.json"


class PackedEngine(Settings):
    """A packed student in this process.

    Attributes:
        device: `cpu`, or a GPU (`cuda`, `cuda:1`), whose kernels are Triton's.
        threads: of the kernels; None: as many as PyTorch uses.
        cache: type of keys and values.
        context: longest prompt and completion together, in tokens; None: the student's longest input. The cache is
            made for so many.
        reuse: go on from what was read last, as far as the next prompt begins alike, so that a conversation is not read
            again at every turn. The last digits of logits, and a text with them, may then depend on earlier calls.
    """

    engine: Literal["packed"] = "packed"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1)
    cache: Literal["float16", "float32"] = "float16"
    context: int | None = Field(default=None, ge=2)
    reuse: bool = False


class PackedGenerator:
    """A packed student that writes; see `limbeck.engines.writing.LocalGenerator`.

    Args:
        student: ready to read.
        tokenizer: its tokenizer.
        engine: the settings.
        name: what completions call the model.
        ends: tokens that end a text besides the tokenizer's own.

    Raises:
        UserError: the engine's context is longer than the student's.
    """

    def __init__(
        self,
        student: PackedStudent,
        tokenizer: PreTrainedTokenizerBase,
        engine: PackedEngine,
        name: str,
        ends: int | list[int] | None = None,
    ) -> None:
        longest = student.config.max_position_embeddings
        if engine.context is not None and engine.context > longest:
            raise UserError(f"engine.context: {engine.context} tokens are more than the student's {longest}.")
        self._student: PackedStudent | None = student
        self._tokenizer, self._engine, self._name = tokenizer, engine, name
        self.context: int | None = engine.context or longest
        self.ends = end_tokens(ends, tokenizer)
        self._session: Session | None = None
        self._read: list[int] = []
        self.description: dict[str, Any] = {
            **engine.model_dump(mode="json", exclude={"device", "threads", "context"}),
            "instructions": student.products.name,
            "torch": str(torch.__version__),
        }

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0, on_token: OnToken = unheard
    ) -> list[Completion]:
        """Return completions of each prompt; see `LocalGenerator`.

        Raises:
            UserError: a prompt and its completion do not fit into the context, or an id is not of the vocabulary.
        """
        student = self._opened()
        ids = [prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        check_fit(ids, sampling, self.context, first_prompt)
        places: dict[tuple[int, ...], list[int]] = {}
        for place, prompt in enumerate(ids):
            places.setdefault(tuple(prompt), []).append(place)
        found: dict[tuple[int, int], Completion] = {}
        for alike in places.values():
            session, logits_V = self._begin(student, ids[alike[0]])
            for place in alike:
                for choice in range(sampling.n):
                    session.forget(len(ids[place]))
                    del self._read[len(ids[place]) :]
                    found[place, choice] = self._write(
                        session, logits_V, ids[place], sampling, (place, choice, first_prompt), on_token
                    )
        return [found[place, choice] for place in range(len(ids)) for choice in range(sampling.n)]

    def close(self) -> None:
        """Let go of the student and its cache."""
        self._student = self._session = None

    def _opened(self) -> PackedStudent:
        if self._student is None:
            raise ValueError("this generator is closed")
        return self._student

    def _begin(self, student: PackedStudent, prompt: list[int]) -> tuple[Session, Tensor]:
        """Read a prompt; return the session that holds it, and the logits `[V]` behind it."""
        if self._session is None:
            self._session = student.session(self.context, getattr(torch, self._engine.cache))
        session, kept = self._session, 0
        if self._engine.reuse:
            most = min(len(self._read), len(prompt) - 1)  # the last token is read again: its state is what follows from
            kept = next((place for place in range(most) if self._read[place] != prompt[place]), most)
        session.forget(kept)
        self._read = prompt[:kept]
        state_D = session.read(prompt[kept:])[-1]
        self._read = list(prompt)
        return session, student.logits(state_D)

    def _write(
        self,
        session: Session,
        logits_V: Tensor,
        prompt: list[int],
        sampling: Sampling,
        job: tuple[int, int, int],
        on_token: OnToken,
    ) -> Completion:
        """Return one completion of the prompt that the session has read."""
        place, choice, first_prompt = job
        chooser = TokenChooser(sampling, [completion_seed(sampling, first_prompt + place, choice)])
        stopper = TextStopper(self._tokenizer, self.ends, sampling.stop, 1)
        written: list[int] = []
        while True:
            token = int(chooser.take(logits_V[None])[0])
            written.append(token)
            on_token(place, choice, token)
            if stopper.see(0, written, len(written)) or len(written) == sampling.max_tokens:
                break
            logits_V = session.student.logits(session.read([token])[-1])
            self._read.append(token)
        return completed(
            0, written, chooser, stopper, prompt=first_prompt + place, choice=choice, prompt_ids=prompt,
            model=self._name,
        )  # fmt: skip


@opens("generator", "packed", PackedEngine)
def open_packed(
    model: str, revision: str | None, engine: PackedEngine, tokenizer: PreTrainedTokenizerBase
) -> PackedGenerator:
    """Load the packed student of a folder and return its generator.

    Raises:
        UserError: there is no such folder, or no packed student in it.
        IntegrityError: its file is not whole.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise UserError(f"{model}: no such folder. Packed students are read from local folders only.")
    student = PackedStudent.load(folder, _products(engine), engine.device)
    if len(tokenizer) > student.config.vocab_size:
        raise UserError(
            f"{model}: the tokenizer has {len(tokenizer)} entries, the student {student.config.vocab_size}. "
            "Export it again with its own tokenizer."
        )
    ends = student.config.eos_token_id
    if (folder / GENERATION).exists():
        ends = read_json(folder / GENERATION).get("eos_token_id", ends)
    return PackedGenerator(student, tokenizer, engine, model, ends)


def _products(engine: PackedEngine) -> Products:
    """Return the arithmetic for the engine's device."""
    if engine.device == "cpu":
        return best_products(engine.threads)
    if not torch.cuda.is_available():
        raise UserError(f"device {engine.device!r}: not to be had here (no GPU that torch can use). Choose cpu.")
    try:
        from limbeck.models.packed.triton_products import TritonProducts
    except ImportError as error:
        raise UserError(f"device {engine.device!r}: needs Triton. Install it (pip install triton).") from error
    return TritonProducts()


def is_packed(folder: Path) -> bool:
    """Return whether a folder holds a packed student."""
    return (folder / NAME).exists()
