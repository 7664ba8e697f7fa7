"""Training recipes: what `limbeck train RECIPE.yaml` reads.

Key names are those of the field's best-known distillation toolkit, so that its files keep working; unknown keys are
errors. `training_args` are the arguments of `transformers.TrainingArguments`, and checked by it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.settings import Settings


class DataSource(Settings):
    """A dataset of signals in a local folder."""

    disk_path: Path = Field(description="folder that holds manifest.json and its shards")


class DatasetSettings(Settings):
    """What the student is trained on."""

    train_dataset: DataSource


class DatasetTeacher(Settings):
    """The teacher's signals stand in the training dataset; the codec is read from its manifest."""

    kind: Literal["dataset"] = "dataset"


class LossSettings(Settings):
    """One loss and its share of the sum; weights are used as given.

    Attributes:
        function: the loss, by its registered name.
        weight: its share.
        temperature: of both distributions.
        missing_probability_handling: how mass that a `topk` signal does not list is accounted for; absent: as well as
            the signal allows.
        beta: of `jsd`.
        alpha: of `skew_kl` and `skew_reverse_kl`.
        threshold: of `entropy_aware_kl`.
        width: of `entropy_aware_kl`.
        margin: of `hinge`.
        sparse_chunk_length: accepted from DistillKit's recipes; the executor chooses its chunks itself.
    """

    function: str
    weight: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    missing_probability_handling: Literal["zero", "uniform", "symmetric_uniform", "tail"] | None = None
    beta: float | None = None
    alpha: float | None = None
    threshold: float | None = None
    width: float | None = None
    margin: float | None = None
    sparse_chunk_length: int | None = Field(None, gt=0)

    @property
    def parameters(self) -> dict[str, float]:
        """Return the parameters that are given."""
        given = {name: getattr(self, name) for name in ("beta", "alpha", "threshold", "width", "margin")}
        return {name: value for name, value in given.items() if value is not None}


class OptimizerSettings(Settings):
    """Muon for hidden matrices, AdamW for the rest; the learning rate and its schedule are in `training_args`."""

    kind: Literal["muon"] = "muon"
    weight_decay: float = Field(0.05, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)


class Recipe(Settings):
    """A training run."""

    project_name: str = "limbeck"
    model: str = Field(description="folder or repository of the student that training starts from")
    output_path: Path
    sequence_length: int = Field(512, gt=1, description="rows longer than this are an error, never cut silently")
    dataset: DatasetSettings
    teacher: DatasetTeacher = DatasetTeacher()
    loss_functions: Annotated[tuple[LossSettings, ...], Field(min_length=1)] = (
        LossSettings(function="cross_entropy", weight=0.5),
        LossSettings(function="kl", weight=0.5),
    )
    optimizer: OptimizerSettings | None = Field(None, description="absent: what training_args.optim names")
    training_args: dict[str, Any] = Field(default_factory=dict)
