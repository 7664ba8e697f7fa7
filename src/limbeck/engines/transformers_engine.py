"""Engine `transformers`: scores and generates with the library in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.engines.registry import opens
from limbeck.engines.scorer import OnRow, Row, Scorer, quietly
from limbeck.engines.scoring import complete_spec, score_rows, write_references
from limbeck.engines.settings import TransformersEngine
from limbeck.engines.transformers import load_model, output_head
from limbeck.settings import Settings
from limbeck.signals.types import TeacherSignal


class TransformersScorer:
    """A loaded model that scores rows; see `limbeck.engines.scoring`."""

    def __init__(self, model: PreTrainedModel, engine: TransformersEngine) -> None:
        self._model: PreTrainedModel | None = model
        self._engine = engine
        self.vocabulary = int(output_head(model).weight.shape[0])
        self.description: dict[str, Any] = {
            **engine.model_dump(mode="json", exclude={"device"}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def score(
        self,
        rows: Sequence[Row],
        spec: Settings,
        *,
        first_sample: int = 0,
        seed: int = 0,
        on_row: OnRow = quietly,
    ) -> list[TeacherSignal]:
        """Return the signal of each row; see `Scorer`."""
        return score_rows(
            self._loaded(), rows, spec, batch_tokens=self._engine.batch_tokens, on_row=on_row, seed=seed,
            first_sample=first_sample,
        )  # fmt: skip

    def complete(self, spec: Settings) -> Settings:
        """Return a codec's settings with what they have to know of the teacher; see `Scorer`."""
        return complete_spec(spec, self._loaded())

    def write_references(self, folder: Path | str, spec: Settings) -> None:
        """Publish the output head where the codec needs it; see `Scorer`."""
        write_references(folder, spec, self._loaded())

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            raise ValueError("this scorer is closed")
        return self._model


@opens("scorer", "transformers", TransformersEngine)
def open_transformers(
    model: str, revision: str | None, engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> Scorer:
    """Load the teacher and return its scorer."""
    return TransformersScorer(load_engine_model(model, revision, engine), engine)


def load_engine_model(model: str, revision: str | None, engine: TransformersEngine) -> PreTrainedModel:
    """Load a model as the engine's settings say."""
    dtype = None if engine.dtype == "auto" else getattr(torch, engine.dtype)
    return load_model(model, revision=revision, device=engine.device, dtype=dtype)
