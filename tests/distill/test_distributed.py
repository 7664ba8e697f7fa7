"""Two processes under DDP and FSDP2: the gradient of one process, exact resume, sums over ranks. One spawn for all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.distill.checkpoints import complete_checkpoints
from limbeck.engines.transformers import load_model
from tests.distill.tiny_run import distilled, random_rows, tiny_student, tiny_trainer

WRAPPERS = ("ddp", "fsdp2")
TOLERANCES = {"float64": 1e-12, "few": 1e-12, "float32": 5e-6}


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gloo")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.distill.gloo_run", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(spawned: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((spawned / "found.json").read_text())
    return read


@pytest.mark.parametrize("case", ["float64", "float32", "few"])
@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_gradient_is_that_of_one_process(found: dict[str, Any], wrapper: str, head: str, case: str) -> None:
    error, sharded = found[f"{wrapper}-{head}-{case}"]
    assert error < TOLERANCES[case]
    assert sharded == (0 if wrapper == "ddp" else 20 if head == "tied" else 21)  # every parameter, the head among them


@pytest.mark.parametrize("case", ["ddp", "fsdp2", "ddp-checkpointed", "fsdp2-checkpointed"])
def test_the_gradient_of_losses_on_inner_layers_is_that_of_one_process(found: dict[str, Any], case: str) -> None:
    assert found["alignment"][case] < 1e-12


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_mixed_precision_and_recomputed_activations(found: dict[str, Any], wrapper: str) -> None:
    cosines = found[f"{wrapper}-variants"]
    assert cosines["recomputed"] > 1 - 1e-9
    assert 0.999 < cosines["bf16"] < 1 - 1e-9
    assert 0.999 < cosines["both"] < 1 - 1e-9


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_checkpoint_goes_on_with_the_same_bits(found: dict[str, Any], wrapper: str) -> None:
    assert found[f"{wrapper}-resumed"]["same_weights"]
    assert found[f"{wrapper}-resumed"]["same_losses"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run in one process, with the same rows in each step."""
    folder = tmp_path_factory.mktemp("alone")
    rows = {"eval_dataset": random_rows(5)}
    with tiny_trainer(
        folder, distilled(tiny_student()), random_rows(13), muon=True, more=rows, max_steps=4, save_strategy="steps",
        save_steps=2, per_device_train_batch_size=4,
    ) as trainer:  # fmt: skip
        trainer.train()
        evaluated = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "evaluated": evaluated, "folder": folder, "weights": trainer.model.state_dict()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_losses_and_evaluation_are_those_of_one_process(
    found: dict[str, Any], alone: dict[str, Any], wrapper: str
) -> None:
    there = found[f"{wrapper}-resumed"]
    assert there["losses"] == pytest.approx(alone["losses"], rel=2e-4)  # Muon turns rounding into a little more
    assert there["evaluated"]["eval_tokens"] == alone["evaluated"]["eval_tokens"]
    assert there["evaluated"]["eval_kl"] == pytest.approx(alone["evaluated"]["eval_kl"], rel=2e-3)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_checkpoint_of_two_processes_goes_on_in_one(
    spawned: Path, found: dict[str, Any], wrapper: str, tmp_path: Path
) -> None:
    checkpoint = complete_checkpoints(spawned / wrapper / "whole")[0]
    with tiny_trainer(
        tmp_path, distilled(tiny_student()), random_rows(13), muon=True, max_steps=4, per_device_train_batch_size=4
    ) as trainer:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[:2] == found[f"{wrapper}-resumed"]["losses"][:2]
    assert losses == pytest.approx(found[f"{wrapper}-resumed"]["losses"], rel=2e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_students_folder_can_be_loaded(spawned: Path, wrapper: str) -> None:
    final = spawned / wrapper / "whole" / "final"
    stored = load_file(complete_checkpoints(spawned / wrapper / "whole")[-1] / "model.safetensors")
    loaded = load_model(final).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_loss_that_is_no_number_stops_all_ranks(found: dict[str, Any], wrapper: str) -> None:
    messages = found[f"{wrapper}-stopped"]
    named = [message for message in messages if "samples 3, 2" in message or "samples 2, 3" in message]
    assert len(named) == 1 and "kl nan" in named[0]
    assert all("the loss is not finite" in message for message in messages)
