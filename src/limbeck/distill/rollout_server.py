"""Completions by a vLLM server that follows the student: weights are saved to a folder, and the server reads them anew.

vLLM's server, started with `VLLM_SERVER_DEV_MODE=1`, takes calls to its workers at `/collective_rpc`; `reload_weights`
puts weights of the same shape in place of those it has, from the folder it is told of. What it remembers of prompts was
computed by the old weights and is dropped (`/reset_prefix_cache`). Prompts and completions travel as token ids.

Under several ranks the first one saves and tells, while the others wait; each asks for its own completions.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.distill.teachers.settings import ServerWriter
from limbeck.engines.chat import ServerGenerator
from limbeck.engines.completions import Completion, Sampling
from limbeck.engines.endpoint import Endpoint
from limbeck.engines.transformers import quiet
from limbeck.errors import LimbeckError, UserError

RPC, FORGET = "collective_rpc", "reset_prefix_cache"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class RefreshedServer:
    """A server that writes as the student would.

    Args:
        settings: of the server and its folder.
        student: the model that is trained.
        tokenizer: the student's.

    Raises:
        UserError: the server can't be reached, or has no such model.
    """

    def __init__(self, settings: ServerWriter, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._settings = settings
        self._student = student
        self._tokenizer = tokenizer
        self._generator = ServerGenerator("student", None, settings.engine, tokenizer)
        self._control = Endpoint(settings.engine)
        self._refreshed: int | None = None

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, step: int) -> list[Completion]:
        """Return completions by the student as it was at the last refresh; see `Writer`.

        Raises:
            UserError: the server does not reload weights.
            LimbeckError: it goes on failing, or answers something else.
        """
        if self._refreshed is None or step >= self._refreshed + self._settings.refresh_every:
            self.refresh()
            self._refreshed = step
        return self._generator.generate(prompts, sampling)

    def refresh(self) -> None:
        """Save the student, and have the server read it; every rank has to call this."""
        state = get_model_state_dict(self._student, options=WHOLE)
        failed: list[LimbeckError | None] = [None]
        if _rank() == 0:
            try:
                _save(self._student, state, self._tokenizer, self._settings.weights)
                self._reload()
            except LimbeckError as error:  # the others wait: they have to hear of it, and then all fail alike
                failed[0] = error
            except OSError as error:
                failed[0] = LimbeckError(
                    f"rollout.writer.weights: {self._settings.weights}: can't be written ({error})."
                )
        if dist.is_initialized():
            dist.broadcast_object_list(failed, src=0)
        if failed[0] is not None:
            raise failed[0]

    def close(self) -> None:
        """Close the connections."""
        self._generator.close()
        self._control.close()

    def _reload(self) -> None:
        served = self._settings.weights_as_served
        served = str(self._settings.weights.resolve()) if served is None else served
        call: dict[str, Any] = {"method": "reload_weights"}
        if served:
            call["kwargs"] = {"weights_path": served}
        root = self._settings.engine.base_url.rstrip("/").removesuffix("/v1")

        async def tell(order: tuple[str, dict[str, Any]]) -> None:
            path, body = order
            try:
                await self._control.post(f"{root}/{path}", body, f"weights for {path}", _answer)
            except UserError as error:
                raise UserError(
                    f"rollout.writer: {error} A vLLM server reloads weights only if it was started with "
                    "VLLM_SERVER_DEV_MODE=1, on a model of the student's shape."
                ) from error

        for order in ((RPC, call), (FORGET, {})):
            self._control.for_each([order], tell)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _save(student: PreTrainedModel, state: dict[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model in place of the one in `folder`; each file is whole at any moment, and no old shard is left."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name, quiet():
        student.save_pretrained(name, state_dict=state)
        tokenizer.save_pretrained(name)
        written = sorted(Path(name).iterdir())
        for path in written:
            path.replace(folder / path.name)
        kept = {path.name for path in written}
        for old in folder.glob("model*.safetensors*"):
            if old.name not in kept:
                old.unlink()


def _answer(data: bytes) -> Any:
    """Return what the server says, which may be nothing."""
    return json.loads(data) if data.strip() else {}
