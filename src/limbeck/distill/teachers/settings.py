"""Which teacher answers while the student trains, and how much of the text the student writes itself.

The sections `teacher:` and `rollout:` of a recipe. Nothing heavy is imported here, so that a recipe can be checked
before torch is loaded.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from limbeck.engines.settings import ServerEngine
from limbeck.settings import Settings

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OWN_KEYS = {"revision": "revision", "trust_remote_code": "trust_remote_code", "device": "device"}
MINE = ("config", "use_safetensors", "output_loading_info", "state_dict", "weights_only", "local_files_only")


class HfTeacher(Settings):
    """A model of the `transformers` library in this process, on a device and in a dtype of its own.

    It hands its final hidden states and its output head to the losses: its distributions over the whole vocabulary are
    exact, and its logits exist for a chunk of positions at a time only.

    Attributes:
        path: its folder or repository.
        revision: of the repository.
        kwargs: other arguments of `from_pretrained`, such as `attn_implementation`, `device_map`, `quantization_config`
            or `torch_dtype` (which goes before `dtype`).
        device: any that torch knows; by default the student's, unless `kwargs` name a `device_map`.
        dtype: of the weights; `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        quantization: weights in 8 or 4 bits (package bitsandbytes, on a GPU). A checkpoint that is quantised already
            says so itself.
        top_k: hand over the most probable tokens and the exact mass of the rest instead of hidden states, for losses
            that are not defined on a whole vocabulary (`hinge`, `logistic_ranking`).
        model_auto_class: which class loads it; of a multimodal teacher the text path is used.
        trust_remote_code: run Python code from the teacher's repository. Off unless you have read that code.
        special_tokens: of a teacher with another tokenizer than the student's: what it reads in place of the student's
            special tokens.
        weight: its share where there are several teachers.
        datasets: rows of these datasets alone are asked of it, where there are several teachers; empty: all rows.
    """

    kind: Literal["hf"] = "hf"
    path: str = Field(min_length=1)
    revision: str | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)
    device: str | None = None
    dtype: Dtype = "auto"
    quantization: Literal["int8", "int4"] | None = None
    top_k: int | None = Field(default=None, ge=1)
    model_auto_class: Literal["AutoModelForCausalLM", "AutoModelForImageTextToText"] = "AutoModelForCausalLM"
    trust_remote_code: bool = False
    special_tokens: dict[str, str] = Field(default_factory=dict)
    weight: float = Field(default=1.0, gt=0)
    datasets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "HfTeacher":
        for key in self.kwargs:
            if key in OWN_KEYS:
                raise ValueError(f"kwargs.{key}: say it as teacher.{OWN_KEYS[key]}, a key of its own")
            if key in MINE:
                raise ValueError(f"kwargs.{key}: can't be chosen; teachers are loaded from safetensors as they are")
        if self.device is not None and "device_map" in self.kwargs:
            raise ValueError("device: kwargs.device_map places the teacher already; name one of the two")
        if self.quantization is not None and "quantization_config" in self.kwargs:
            raise ValueError("quantization: kwargs.quantization_config is there as well; name one of the two")
        return self


class ServedTeacher(Settings):
    """A teacher behind a server that returns prompt log-probabilities, as vLLM's does.

    Attributes:
        engine: where it is, and how it is asked (`engine: server`, `mode: prompt`).
        path: folder or repository of its tokenizer and configuration; by default `engine.model`.
        revision: of the repository.
        top_k: the most probable tokens at each position, with the exact mass of the rest. By default only the token
            that the text goes on with, exactly, whatever its rank: all that `k1`, `k2` and `k3` need.
        weight: its share where there are several teachers.
        datasets: rows of these datasets alone are asked of it, where there are several teachers; empty: all rows.
    """

    kind: Literal["server"] = "server"
    engine: ServerEngine
    path: str | None = None
    revision: str | None = None
    top_k: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, gt=0)
    datasets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "ServedTeacher":
        if self.engine.mode != "prompt":
            raise ValueError("engine.mode: a teacher of given text has to return prompt log-probabilities: mode prompt")
        return self

    @property
    def source(self) -> str:
        """Return where its tokenizer and configuration are."""
        return self.path or self.engine.model


OneTeacher: TypeAlias = Annotated[HfTeacher | ServedTeacher, Field(discriminator="kind")]


class MixedTeachers(Settings):
    """Several teachers. The target at a position is the weighted mean of their distributions, `sum_i w_i p_i(v)`.

    Weights are shares: they are divided by their sum over the teachers that are asked about a row. Teachers that hand
    over entries (`top_k`, or a server) can't be averaged: there each row needs a teacher of its own (`datasets`).
    """

    kind: Literal["mixed"] = "mixed"
    teachers: Annotated[tuple[OneTeacher, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _check(self) -> "MixedTeachers":
        whole = [isinstance(teacher, HfTeacher) and teacher.top_k is None for teacher in self.teachers]
        if all(whole):
            return self
        named = Counter(name for teacher in self.teachers for name in teacher.datasets)
        alone = all(teacher.datasets for teacher in self.teachers) and max(named.values()) == 1
        if any(whole) or not alone:
            raise ValueError(
                "teachers: only distributions over the whole vocabulary can be averaged (kind hf without top_k). Leave "
                "top_k away, or give each teacher datasets of its own, and all of them top_k"
            )
        return self


OnlineTeacherSettings: TypeAlias = HfTeacher | ServedTeacher | MixedTeachers
"""What a recipe's `teacher:` may be besides a dataset; told apart by `kind`."""


class ServerWriter(Settings):
    """The student's completions are written by a vLLM server that is given the new weights now and then.

    The server has to be started with `VLLM_SERVER_DEV_MODE=1`, on a folder with a model of the student's shape.

    Attributes:
        engine: where it is, and under which name it serves the student.
        weights: a folder that this process writes the student to.
        weights_as_served: the same folder as the server sees it; by default the same path. Empty: the server reads the
            folder that it was started on again, and is not told of another.
        refresh_every: optimisation steps after which the weights are given anew. Only with 1 does a run that is resumed
            write what an uninterrupted one would have.
    """

    kind: Literal["server"] = "server"
    engine: ServerEngine
    weights: Path
    weights_as_served: str | None = None
    refresh_every: int = Field(default=1, ge=1)


class OwnWriter(Settings):
    """The student's completions are written by the student in this process.

    Attributes:
        batch_tokens: tokens of prompts and completions that are written at a time.
    """

    kind: Literal["student"] = "student"
    batch_tokens: int = Field(default=16384, ge=1)


class RolloutSettings(Settings):
    """On-policy training: in a share of the steps the student goes on by itself, and the teacher says what it thinks.

    A row's prompt is what stands before its first trained token; of a row that is trained throughout, its first
    `prompt_tokens` tokens. The completion takes the place of the rest of the row. Of a prompt that leaves no room for
    `max_new_tokens` in `sequence_length` the last tokens are kept.

    Attributes:
        fraction: the share of optimisation steps that are on-policy, evenly spread.
        max_new_tokens: of one completion.
        temperature: at which the student draws; the sampled-token losses need that of their own.
        top_p: draw from the fewest tokens whose mass reaches this.
        stop: texts that end a completion. End-of-text tokens always do.
        completions: of each prompt.
        prompt_tokens: how much of a row without a prompt is one.
        writer: who writes.
    """

    fraction: float = Field(default=1.0, ge=0, le=1)
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()
    completions: int = Field(default=1, ge=1)
    prompt_tokens: int = Field(default=32, ge=1)
    writer: Annotated[OwnWriter | ServerWriter, Field(discriminator="kind")] = OwnWriter()
