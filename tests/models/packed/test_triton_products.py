"""The kernels for GPUs, interpreted: exact sums, and PyTorch's outputs to the last bit.

They run in a process of their own: Triton reads TRITON_INTERPRET when kernels are defined, and other tests' kernels are
not to be interpreted.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]


def test_the_kernels_compute_with_integers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.packed.triton_sums"], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "sums_are_those_of_integers", "outputs_are_those_of_pytorch", "inputs_are_rounded_as_pytorch_rounds_them",
        "inputs_are_normalised", "a_student_computes_the_same",
    ]  # fmt: skip
