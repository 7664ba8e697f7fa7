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
    """One loss and its share of the sum; weights are used as given."""

    function: str
    weight: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)


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
