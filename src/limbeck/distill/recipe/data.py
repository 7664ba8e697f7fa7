"""The section `dataset:` of a training recipe: which rows a student is trained and measured on."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from limbeck.settings import Settings


class DataSource(Settings):
    """Where rows are: signals (ours or DistillKit's), or text (plain, prompts with responses, conversations).

    What a folder holds is seen from its files. The keys from `columns` on are for text, and mean what they mean in a
    capture's `dataset:` section (`limbeck.data.sources.TextSource`).

    Attributes:
        disk_path: a folder (a dataset of signals, DistillKit's Parquet files, what `datasets` saved to disk, files of
            text), a file, a glob, or the URL of a dataset of signals.
        repo_id: a dataset of the Hugging Face hub.
        revision: of the repository.
        config_name: configuration of the repository.
        label: what `teacher.datasets` calls the rows of this source; the path or repository when absent.
        split: of the repository, or of what was saved to disk; `train` where there is more than one.
        columns: which columns hold what: `text`, `prompt`, `response`, `messages`, `system`, `tools`, `document`.
        chat_template: whether the tokenizer's chat template writes prompts and messages.
        template_arguments: what else the template is told.
        separator: what stands between contents that are joined without a template.
        trained: roles whose turns are trained.
        turns_apart: each trained turn becomes a row of its own.
        too_long: what is done with text beyond `sequence_length`: `split`, `skip` (and count) or `refuse`.
        kl_start_pos: of text: losses count from this position of each row on, at which the teacher has seen enough.
        streaming: read text while training, again and again, without making all of it into rows first.
        shuffle_buffer: rows of a stream that are shuffled together.
    """

    disk_path: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    config_name: str | None = None
    split: str | None = None
    label: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    chat_template: bool = True
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    separator: str = "\n"
    trained: tuple[str, ...] = ("assistant",)
    turns_apart: bool = False
    too_long: Literal["split", "skip", "refuse"] = "split"
    kl_start_pos: int = Field(0, ge=0)
    streaming: bool = False
    shuffle_buffer: int = Field(1024, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("disk_path"), Path):
            return {**data, "disk_path": str(data["disk_path"])}
        return data

    @model_validator(mode="after")
    def _one_place(self) -> "DataSource":
        if (self.disk_path is None) == (self.repo_id is None):
            raise ValueError("name one of disk_path and repo_id")
        return self

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return self.disk_path or str(self.repo_id)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


class DatasetSettings(Settings):
    """What the student is trained on.

    Attributes:
        train_dataset: one source, or a list of sources of one kind, whose rows are trained together.
        eval_dataset: what it is measured on while it is trained; see also `evaluation.share`.
        seed: picks `num_samples` rows and the held-out share; 0: the first ones.
        num_samples: rows to train on, of all sources together; all when absent.
        num_eval_samples: rows to measure on.
        eos_label_token_ids: targets that are one of these ids become the tokenizer's end-of-text token.
        prepared_dataset_path: folder for DistillKit's files as our own, by a digest of what they are made from; beside
            the student when absent.
        prepacked: rows are packed already: they are trained as they are.
    """

    train_dataset: Annotated[tuple[DataSource, ...], BeforeValidator(_as_list), Field(min_length=1)]
    eval_dataset: DataSource | None = None
    seed: int | None = 42
    num_samples: int | None = Field(None, gt=0)
    num_eval_samples: int | None = Field(None, gt=0)
    eos_label_token_ids: tuple[int, ...] | None = None
    prepared_dataset_path: Path | None = None
    prepacked: bool = False
