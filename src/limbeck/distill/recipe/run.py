"""The whole recipe of a training run.

Key names are those of the field's best-known distillation toolkit, so that its files keep working; unknown keys are
errors. `training_args` are the arguments of `transformers.TrainingArguments`, and checked by it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from limbeck.distill.layers import AttentionRelationSettings, LayerMapping
from limbeck.distill.recipe.data import DatasetSettings
from limbeck.distill.recipe.losses import LossSettings
from limbeck.distill.recipe.model import ModelSettings, PresetModel, QuantisationSettings
from limbeck.distill.recipe.teacher import DatasetTeacher
from limbeck.distill.teachers.settings import HfTeacher, MixedTeachers, RolloutSettings, ServedTeacher
from limbeck.settings import Settings


class OptimizerSettings(Settings):
    """Muon for hidden matrices, AdamW for the rest; the learning rate and its schedule are in `training_args`.

    Attributes:
        kind: of the optimizer.
        weight_decay: of the hidden matrices, times the learning rate.
        momentum: of Muon's average.
        scaling: of Muon's updates: to the size of AdamW's, so that one rate serves both, or as it was published.
        decay_until: the share of the run's steps after which the weight decay is 0.
    """

    kind: Literal["muon"] = "muon"
    weight_decay: float = Field(0.05, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    scaling: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    decay_until: float = Field(1.0, ge=0, le=1)


class EvaluationSettings(Settings):
    """What is measured on held-out rows while a student is trained; when is in `training_args` (`eval_steps`).

    Attributes:
        share: of the training rows that is held out where there is no `eval_dataset`.
        losses: what is measured, by name; absent: the exact forward KL, and the recipe's own losses at temperature 1.
    """

    share: float = Field(0.0, ge=0, lt=1)
    losses: tuple[str, ...] | None = None


class LoraSettings(Settings):
    """Low-rank adapters in place of whole matrices (needs the package `peft`); they are merged when training ends.

    Attributes:
        r: their rank.
        alpha: their scale, times 1 / r.
        dropout: of their input.
        target_modules: names of the layers that have one; all linear layers but the head when absent.
    """

    r: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None


def _nothing_is_empty(value: Any) -> Any:
    return () if value is None else value


TeacherSettings = Annotated[DatasetTeacher | HfTeacher | ServedTeacher | MixedTeachers, Discriminator("kind")]
Names = Annotated[tuple[str, ...], BeforeValidator(_nothing_is_empty)]


class Recipe(Settings):
    """A training run.

    Attributes:
        project_name: what trackers (W&B and others) file the run under.
        model: the student that training starts from: a folder or repository, a preset, or a dense model to convert.
        model_revision: of the repository that `model` names.
        model_auto_class: the class of `transformers` that loads it; of a multimodal model the text path is trained.
        model_kwargs: what else that class is told, such as `attn_implementation` or `dtype`.
        trust_remote_code: run Python code from the student's repository.
        use_flash_attention: FlashAttention 2, where the device and the installed packages have it.
        output_path: becomes a folder with the student and nothing else; the run's files go to `<output_path>.run`.
        sequence_length: the longest row. Rows of signals that are longer are an error; see `too_long` for text.
        dataset: rows.
        packing: put whole documents into rows of `sequence_length` tokens, isolated from each other.
        functionary_packing: another name for `packing` in DistillKit's recipes; documents are always isolated.
        teacher: who says what the next token should be.
        loss_functions: what is minimised: the weighted sum; with `rollout`, `reverse_kl` where nothing is said.
        layer_mapping: which layers losses on hidden states compare.
        attention_relation: where the loss of this name looks.
        force_hidden_state_projection: learn a projection between layers of equal width, too.
        resize_embeddings_to_multiple_of: pad the vocabulary of embeddings and head to a multiple of this.
        frozen_modules: names of modules that are not trained.
        frozen_res: regular expressions; parameters whose names they match are not trained.
        lora: train adapters only.
        compile_losses: losses over a whole vocabulary go through `torch.compile`.
        quantisation: how the rounding of a ternary student sets in; absent: all of it from the first step on.
        optimizer: absent: what `training_args.optim` names.
        rollout: the student writes part of what it is trained on.
        evaluation: held-out rows.
        training_args: of `transformers.TrainingArguments`.
    """

    project_name: str = "limbeck"
    model: ModelSettings
    model_revision: str | None = None
    model_auto_class: str = "AutoModelForCausalLM"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    trust_remote_code: bool = False
    use_flash_attention: bool = True
    output_path: Path
    sequence_length: int = Field(512, gt=1)
    dataset: DatasetSettings
    packing: bool = False
    functionary_packing: bool = False
    teacher: TeacherSettings = DatasetTeacher()
    loss_functions: Annotated[tuple[LossSettings, ...], Field(min_length=1)] = (
        LossSettings(function="cross_entropy", weight=0.5),
        LossSettings(function="kl", weight=0.5),
    )
    layer_mapping: LayerMapping | None = None
    attention_relation: AttentionRelationSettings | None = None
    force_hidden_state_projection: bool = False
    resize_embeddings_to_multiple_of: int | None = Field(None, gt=0)
    frozen_modules: Names = ()
    frozen_res: Names = ()
    lora: LoraSettings | None = None
    compile_losses: bool = False
    quantisation: QuantisationSettings | None = None
    optimizer: OptimizerSettings | None = None
    rollout: RolloutSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    training_args: dict[str, Any] = Field(default_factory=dict)

    @property
    def student_name(self) -> str:
        """Return what messages call the student that training starts from."""
        if isinstance(self.model, str):
            return self.model
        return self.model.preset if isinstance(self.model, PresetModel) else self.model.from_dense

    @property
    def tokenizer_source(self) -> str:
        """Return the folder or repository of the student's tokenizer."""
        return self.model.tokenizer if isinstance(self.model, PresetModel) else self.student_name

    @property
    def packs(self) -> bool:
        """Return whether documents are put into common rows, whichever of the recipe's keys says so."""
        asked = self.packing or self.functionary_packing or bool(self.training_args.get("packing"))
        return asked and not self.dataset.prepacked

    @model_validator(mode="before")
    @classmethod
    def _on_policy(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("rollout") is not None and "loss_functions" not in data:
            return {**data, "loss_functions": [{"function": "reverse_kl"}]}
        return data

    @model_validator(mode="after")
    def _packed_once(self) -> "Recipe":
        if self.packing and self.dataset.prepacked:
            raise ValueError("packing: the rows are packed already, as dataset.prepacked says; drop one of the two")
        return self
