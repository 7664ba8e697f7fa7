"""A teacher behind a server on loopback says what the same model in process says, document by document."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.distill.losses import get_loss
from limbeck.distill.teachers.online import Needs, OnlineTeacher, inspect_teacher, open_teacher
from limbeck.distill.teachers.settings import ServedTeacher
from limbeck.engines.transformers import output_head
from limbeck.errors import LimbeckError, UserError
from limbeck.settings import validate_settings
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate
from limbeck.signals.types import DenseSignal, TokenSignal, TopkSignal, at
from tests.engines.loopback import Loopback, serve
from tests.engines.tiny import new_model, save, tokenizer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serve(new_model(), tokenizer_of()) as running:
        yield running


def needs(*names: str) -> Needs:
    return Needs.of([Term.of(get_loss(name)) for name in names], vocabulary=300)


def opened(server: Loopback, folder: Path, wanted: Needs, **changes: Any) -> OnlineTeacher:
    data = {"kind": "server", "engine": server.engine().model_dump(), "path": str(folder)} | changes
    return open_teacher(validate_settings(data, ServedTeacher, "teacher"), wanted)


def batch() -> SignalBatch:
    generator = torch.Generator().manual_seed(5)
    rows = [
        SignalRow(torch.randint(10, 290, (length,), generator=generator), torch.arange(length) >= 3, None)
        for length in (12, 8)
    ]
    return collate(rows)


def exact(some: SignalBatch) -> torch.Tensor:
    with torch.no_grad():
        return new_model()(some.input_ids, attention_mask=some.attention_mask).logits.float().log_softmax(-1)


def test_scores_of_chosen_tokens_are_exact_whatever_their_rank(server: Loopback, folder: Path) -> None:
    teacher = opened(server, folder, needs("k1", "k3"))
    said, view = teacher.annotate(batch())
    assert view is None and isinstance(said.signal, TokenSignal)
    assert torch.equal(said.counted, batch().counted)
    own = exact(said).gather(-1, said.targets[..., None])[..., 0]
    torch.testing.assert_close(said.signal.logprobs[said.counted], own[said.counted], rtol=1e-5, atol=1e-5)
    assert [len(asked["prompt"]) for asked in server.asked("/v1/completions")] == [12, 8]


@pytest.mark.parametrize("name", ["kl", "reverse_kl"])
def test_top_k_loss_is_that_of_the_teacher_in_process(server: Loopback, folder: Path, name: str) -> None:
    """With all 300 entries nothing is left out, and the sparse loss is the dense one."""
    said, _ = opened(server, folder, needs(name), top_k=300).annotate(batch())
    assert isinstance(said.signal, TopkSignal)
    dense = replace(said, signal=DenseSignal(exact(said), said.counted))
    student = new_model(9)
    values = []
    for some in (said, dense):
        hidden = torch.randn(some.counted.sum(), 16, generator=torch.Generator().manual_seed(1))
        positions = Positions(hidden, some.targets[some.counted], at(some.signal, some.counted))
        values.append(total_loss(positions, output_head(student), [Term.of(get_loss(name))], 1.0)[0].item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_documents_of_a_packed_row_are_asked_about_one_by_one(server: Loopback, folder: Path) -> None:
    packed = batch()
    documents = torch.tensor([[0] * 7 + [1] * 5, [2] * 8 + [-1] * 4])
    counted = packed.counted & (torch.roll(documents, -1, 1) == documents)
    packed = replace(packed, documents=documents, counted=counted)
    said, _ = opened(server, folder, needs("k1")).annotate(packed)
    assert sorted(len(asked["prompt"]) for asked in server.asked("/v1/completions")) == [5, 7, 8]
    alone = exact(collate([SignalRow(packed.input_ids[0, 7:], torch.ones(5, dtype=torch.bool), None)]))[0]
    expected = alone[:-1].gather(-1, packed.input_ids[0, 8:, None])[:, 0]
    assert isinstance(said.signal, TokenSignal)
    torch.testing.assert_close(said.signal.logprobs[0, 7:11], expected, rtol=1e-5, atol=1e-5)
    assert said.counted[0, 7:11].all() and not said.counted[0, 6] and not said.counted[0, 11]


def test_a_batch_in_which_nothing_counts_asks_nothing(server: Loopback, folder: Path) -> None:
    idle = replace(batch(), counted=torch.zeros_like(batch().counted))
    said, _ = opened(server, folder, needs("kl"), top_k=5).annotate(idle)
    assert isinstance(said.signal, TopkSignal) and not said.counted.any()
    assert server.asked("/v1/completions") == []


def test_another_models_answer_stops_the_run(server: Loopback, folder: Path) -> None:
    teacher = opened(server, folder, needs("k1"))
    server.reported = "org/other"
    with pytest.raises(LimbeckError, match="'org/other' answered"):
        teacher.annotate(batch())


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        (needs("kl"), {}, r"teacher: 'kl' is not defined on a 'token' signal.*Set teacher\.top_k"),
        (needs("k1"), {"top_k": 4}, r"teacher: 'k1' is not defined on a 'topk'.*Leave out teacher\.top_k"),
        (Needs(layers=(0,)), {}, "layer_mapping: a served teacher shows no inner layers"),
    ],
)
def test_what_a_server_cannot_tell_is_refused_before_it_is_asked(
    folder: Path, wanted: Needs, changes: dict[str, Any], message: str
) -> None:
    engine = {"engine": "server", "base_url": "http://127.0.0.1:1/v1", "model": "org/teacher", "vocabulary": 300}
    settings = ServedTeacher(engine=engine, path=str(folder), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        inspect_teacher(settings, wanted)
