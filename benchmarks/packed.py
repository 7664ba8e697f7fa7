"""Packed students against their dense twins: the 100M `bitnet`, decoding and reading prompts on a CPU.

Weights are drawn at random, which changes neither bytes nor time. The dense twin has the same shape in float32 and runs
in `transformers` with its key-value cache; both decode at the same context. Memory is what a process of its own grows
by when it loads the packed student and fills its longest context.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import Row, in_turn
from limbeck.models.bitnet import LimbeckBitNetForCausalLM
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.bitnet.presets import preset_config
from limbeck.models.packed.files import NAME, read_packed, save_packed, unpack_student
from limbeck.models.packed.products import CompiledProducts, PackedLayer, best_products
from limbeck.models.packed.runtime import PackedStudent

TITLE = "Packed students, 100M parameters, against the dense twin in float32"
PRESET, PROMPT, DECODED, RUNS = "bitnet-100m", 128, 24, 5
MEMORY = """
import sys
from pathlib import Path
import torch
from limbeck.models.packed.runtime import PackedStudent

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

torch.set_num_threads(1)
torch.ones(8, 8) @ torch.ones(8, 8)
before = resident()
student = PackedStudent.load(Path(sys.argv[1]))
session = student.session()
session.read([1] * (session.capacity - 1))
student.logits(session.read([2])[-1])
print(resident() - before)
"""


@torch.inference_mode()
def run() -> list[Row]:
    torch.manual_seed(0)
    student = LimbeckBitNetForCausalLM(preset_config(PRESET)).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = save_packed(student, folder)
        print(f"\n{PRESET}: {NAME} {size / 1e6:.1f} MB (goal: 44); bfloat16 twin {2 * 100_126_464 / 1e6:.1f} MB")
        del student
        grown = int(subprocess.run([sys.executable, "-c", MEMORY, name], capture_output=True, check=True).stdout)
        print(f"memory with a full context of 2,048: {grown / 1e6:.1f} MB, {grown / size:.2f}x the file (goal: 2)")
        exactness(folder)
        twin = LimbeckBitNetForCausalLM(preset_config(PRESET, {"ternary": False})).eval()
        return [row for threads in (1, 2) for row in speed(folder, twin, threads)]


def exactness(folder: Path) -> None:
    """Print how many sums differ from integers', and how far logits are from the student's that training computes."""
    packed = read_packed(folder)
    student, plain = PackedStudent(packed), unpack_student(packed)
    if isinstance(student.products, CompiledProducts):
        wrong = 0
        for name, layer in ternary_layers(plain).items():
            inputs = student.products.rounded(torch.randn(4, layer.in_features))
            wanted = inputs.numbers[:, : layer.in_features].double() @ layer.codes()[0].double().T
            stored = PackedLayer(packed.tensors[f"{name}.codes"], packed.tensors[f"{name}.gamma"], layer.in_features)
            wrong += int((student.products.sums(stored, inputs).double() != wanted).sum())
        print(f"sums that differ from integers' ({student.products.name}): {wrong}")
    ids = torch.randint(0, packed.config.vocab_size, (1, 32))
    session = student.session(64, torch.float32)
    found = torch.stack([student.logits(state) for state in session.read(ids[0].tolist())])
    wanted = plain(ids).logits[0]
    again = plain.double()(ids).logits[0].float()
    print(
        f"logits, greatest difference: packed from fake-quantised {float((found - wanted).abs().max()):.1e}; the "
        f"fake-quantised in float32 from itself in float64 {float((again - wanted).abs().max()):.1e} "
        f"(logits up to {float(wanted.abs().max()):.1f})"
    )


def speed(folder: Path, twin: LimbeckBitNetForCausalLM, threads: int) -> list[Row]:
    """Time both by turns."""
    torch.set_num_threads(threads)
    student = PackedStudent.load(folder, best_products(threads))
    session = student.session()
    ids = torch.randint(0, student.config.vocab_size, (1, PROMPT))

    def read() -> None:
        session.forget(0)
        student.logits(session.read(ids[0].tolist())[-1])

    def read_dense() -> None:
        twin(ids, use_cache=True, logits_to_keep=1)

    prefill, prefill_dense = in_turn(read, read_dense, RUNS)
    cache = twin(ids, use_cache=True, logits_to_keep=1).past_key_values

    def decode() -> None:
        session.forget(PROMPT)
        for token in range(DECODED):
            student.logits(session.read([token])[-1])

    def decode_dense() -> None:
        if (surplus := cache.get_seq_length() - PROMPT) > 0:
            cache.crop(-surplus)
        for token in range(DECODED):
            twin(torch.tensor([[token]]), past_key_values=cache, use_cache=True)

    one, dense = in_turn(decode, decode_dense, RUNS)
    with_threads = f"{threads} thread{'s' * (threads > 1)}"
    decoded = f"decode, {with_threads}: {DECODED / one:,.0f} tokens/s, {dense / one:.1f}x (goal: 5)"
    prompt = (
        f"read {PROMPT}, {with_threads}: {PROMPT / prefill:,.0f} tokens/s, {prefill_dense / prefill:.1f}x (goal: 1)"
    )
    return [Row(decoded, one, dense, "dense twin"), Row(prompt, prefill, prefill_dense, "dense twin")]
