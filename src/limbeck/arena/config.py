"""An arena's configuration: one YAML file, validated as a whole, versioned in the store by its digest.

`load_arena` takes a file or the name of a preset from `recipes/arenas/`. What a round was decided by is the version
that the store held when the round was planned.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

import limbeck
from limbeck.arena.decision import Policy, parse_policy
from limbeck.arena.identity import DIGEST_PATTERN
from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.settings import Settings, load_settings


class TeacherSettings(Settings):
    """The model that is copied.

    Attributes:
        repo: a repository, a local folder, or the name of a registered teacher (`pocket`).
        revision: the pinned revision of a repository.
        tokenizer: digest of its tokenizer (`limbeck.data.tokenizer.tokenizer_digest`); taken from the teacher's own
            files when the arena is made, where it is left out.
    """

    repo: str
    revision: str | None = None
    tokenizer: str | None = None

    @field_validator("tokenizer")
    @classmethod
    def _is_a_digest(cls, value: str | None) -> str | None:
        if value is not None and not DIGEST_PATTERN.fullmatch(value):
            raise ValueError("expected 64 hexadecimal digits")
        return value


class StudentRules(Settings):
    """What a model must be to be admitted.

    Attributes:
        max_parameters: most elements over all tensors.
        max_bytes: most bytes over all files.
        vocabulary: rows of the embedding, and `vocab_size` in the configuration.
        architectures: allowed values of `architectures` in the configuration.
        dtypes: allowed dtypes of tensors, as safetensors names them.
    """

    max_parameters: int = Field(gt=0)
    max_bytes: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    architectures: tuple[str, ...] = Field(min_length=1)
    dtypes: tuple[Literal["BF16", "F16", "F32"], ...] = ("BF16", "F16", "F32")


class RoundSettings(Settings):
    """How a round is run.

    Attributes:
        evaluator: name of the registered evaluator that measures models.
        prompts: how many prompts king and challengers share.
        max_prompt_tokens: longest prompt, in tokens.
        max_new_tokens: longest continuation by the teacher, in tokens; 0 compares on the prompts themselves.
        max_challengers: most challengers in a round, first committed first.
        challengers_per_coldkey: most of them that one coldkey may own.
    """

    evaluator: str = "pocket"
    prompts: int = Field(40, gt=0)
    max_prompt_tokens: int = Field(256, gt=1)
    max_new_tokens: int = Field(0, ge=0)
    max_challengers: int = Field(10, gt=0)
    challengers_per_coldkey: int = Field(2, gt=0)


class ArenaConfig(Settings):
    """Everything that decides what an arena admits, measures and crowns."""

    name: str = Field(min_length=1, max_length=64)
    teacher: TeacherSettings
    student: StudentRules
    round: RoundSettings = RoundSettings()
    policy: SerializeAsAny[Policy]

    @field_validator("policy", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return parse_policy(value) if isinstance(value, dict) else value

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


def load_arena(source: str | Path, overrides: tuple[str, ...] = ()) -> ArenaConfig:
    """Read a configuration from a YAML file, or from the preset of that name.

    Raises:
        UserError: there is neither, or a key or value in it is wrong.
    """
    path = Path(source)
    if not path.suffix and not path.exists():
        path = preset_path(str(source))
    return load_settings(path, ArenaConfig, overrides)


def preset_path(name: str) -> Path:
    """Return the file of a preset, from the installed package or from the repository around it.

    Raises:
        UserError: there is no such preset; the message lists those there are.
    """
    package = Path(limbeck.__file__).parent
    folders = [package / "recipes" / "arenas", package.parent.parent / "recipes" / "arenas"]
    presets = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    if name not in presets:
        raise UserError(f"{name}: no such file, and no preset of that name. Presets: {', '.join(sorted(presets))}.")
    return presets[name]
