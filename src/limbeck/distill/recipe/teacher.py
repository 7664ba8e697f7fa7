"""The section `teacher:` of a training recipe: signals that stand in the dataset, or a teacher that is asked."""

from typing import Any, Literal

from pydantic import Field

from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec, read_config


class DatasetTeacher(Settings):
    """The teacher's signals stand in the training dataset.

    A dataset of ours names its codec itself; where a codec is given here as well, both have to agree. DistillKit's
    files say which codec they are in by `compression_config.yaml`, or not at all: then it has to stand here.

    Attributes:
        logprob_compressor: DistillKit's settings of the compression.
        legacy_logit_compression: its older ones.
        vocab_size: of the signals, to be checked against the dataset.
        name: whose words DistillKit's files hold, for the record.
    """

    kind: Literal["dataset"] = "dataset"
    logprob_compressor: dict[str, Any] | None = None
    legacy_logit_compression: dict[str, Any] | None = None
    vocab_size: int | None = Field(None, gt=0)
    name: str | None = None

    def codec(self) -> DistillkitSpec | DistillkitLegacySpec | None:
        """Return the codec that is given here.

        Raises:
            UserError: its settings are not what they should be, or both kinds are given.
        """
        sections = self.model_dump(include={"logprob_compressor", "legacy_logit_compression"}, exclude_none=True)
        if len(sections) == 2:
            raise UserError(
                "teacher: logprob_compressor and legacy_logit_compression are two codecs. "
                "Keep the one that the data are in."
            )
        return read_config(sections, "teacher") if sections else None
