"""A tiny arena for tests: models of a few thousand parameters, and an evaluator that reads its answer from them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from limbeck.arena.config import ArenaConfig
from limbeck.arena.decision import PromptEvidence
from limbeck.arena.evaluation import RoundPrompt, RoundSpec
from limbeck.arena.faults import CandidateError
from limbeck.arena.local import LocalArena
from limbeck.seeds import derive_random

VOCABULARY = 300
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def arena_config(teacher: Path, **overrides: Any) -> ArenaConfig:
    data: dict[str, Any] = {
        "name": "test",
        "teacher": {"repo": str(teacher)},
        "student": {
            "max_parameters": 10_000,
            "max_bytes": 10_000_000,
            "vocabulary": VOCABULARY,
            "architectures": ["LlamaForCausalLM"],
        },
        "round": {"evaluator": "fake", "prompts": 8},
        "policy": {"name": "kl_duel"},
    }
    return ArenaConfig.model_validate(data | overrides)


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        block = f"model.layers.{layer}"
        found |= {
            f"{block}.self_attn.q_proj.weight": (8, 8),
            f"{block}.self_attn.k_proj.weight": (4, 8),
            f"{block}.self_attn.v_proj.weight": (4, 8),
            f"{block}.self_attn.o_proj.weight": (8, 8),
            f"{block}.mlp.gate_proj.weight": (16, 8),
            f"{block}.mlp.up_proj.weight": (16, 8),
            f"{block}.mlp.down_proj.weight": (8, 16),
            f"{block}.input_layernorm.weight": (8,),
            f"{block}.post_attention_layernorm.weight": (8,),
        }
    return found


def make_model(
    folder: Path,
    teacher: Path,
    *,
    kl: float = 0.5,
    seed: int = 0,
    dtype: str = "float32",
    config: Mapping[str, Any] = {},
) -> Path:
    """Write a model that `FakeEvaluator` will find `kl` nats from the teacher, give or take the prompt."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes().items()}
    tensors["model.norm.weight"][0] = kl
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(teacher / name, folder / name)
    return folder


class FakeEvaluator:
    """KL is what the final norm's first weight says, times a little noise of the prompt's; calls go to a file."""

    description = "fake 1"

    def __init__(self, log: Path | None = None) -> None:
        self._log = log

    def prepare(self, spec: RoundSpec) -> "FakeMeasurement":
        self._note("teacher")
        return FakeMeasurement(spec, self._note)

    def _note(self, what: str) -> None:
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(what + "\n")


class FakeMeasurement:
    def __init__(self, spec: RoundSpec, note: Any) -> None:
        self._spec, self._note = spec, note
        self.prompts = [
            RoundPrompt(index=index, digest=f"{derive_random(spec.seed, index).getrandbits(256):064x}", tokens=7)
            for index in range(spec.prompts)
        ]

    def evaluate(self, model: Path) -> list[PromptEvidence]:
        self._note(model.name)  # the revision, in a model store
        level = float(load_file(model / "model.safetensors")["model.norm.weight"][0])
        if level == 99:
            raise CandidateError("the model cannot be run.")
        seed = self._spec.seed
        noise = [1 + derive_random(seed, "noise", prompt.index).gauss(0, 0.05) for prompt in self.prompts]
        return [
            PromptEvidence(prompt=index, tokens=7, kl=level * factor, reverse_kl=level, top1=0.5)
            for index, factor in enumerate(noise)
        ]


def arena_with(folder: Path, teacher: Path, models: Mapping[str, Path], **overrides: Any) -> LocalArena:
    """Open a new arena in which each hotkey of `models` has committed its model."""
    arena = LocalArena.open(folder, arena_config(teacher, **overrides), seed=1)
    for hotkey, model in models.items():
        commit(arena, hotkey, model)
    return arena


def commit(arena: LocalArena, hotkey: str, model: Path) -> str:
    arena.register(hotkey, f"wallet-{hotkey}")
    return str(arena.submit(arena.publish(f"{hotkey}/student", model), hotkey, f"wallet-{hotkey}"))
