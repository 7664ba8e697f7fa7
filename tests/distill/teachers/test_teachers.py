"""Teachers in process: what they hand over is what they would say, exactly, and nothing leaks between documents."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.integrations import deepspeed

from limbeck.data.tokenizer import tokenizer_digest
from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.distill.losses import get_loss
from limbeck.distill.student import DistilledStudent
from limbeck.distill.teachers.hf import ModelTeacher, fitted
from limbeck.distill.teachers.loading import on_this_rank_alone
from limbeck.distill.teachers.online import Needs, OnlineTeacher, inspect_teacher, open_teacher
from limbeck.distill.teachers.reading import read, stretches
from limbeck.distill.teachers.settings import HfTeacher, MixedTeachers
from limbeck.engines.scoring import complete_spec, score_rows
from limbeck.engines.transformers import load_model, output_head, quiet
from limbeck.errors import UserError
from limbeck.settings import validate_settings
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate
from limbeck.signals.types import DenseSignal, HiddenSignal, OutputHead, TopkSignal, at
from tests.distill.plain import logits_of
from tests.engines.tiny import new_model, save, tokenizer_of

VOCABULARY = len(tokenizer_of())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two teachers with different weights."""
    root = tmp_path_factory.mktemp("teachers")
    return [save(root / f"teacher-{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return new_model(7)


def terms(*names: str, temperature: float = 1.0) -> list[Term]:
    return [Term.of(get_loss(name), temperature=temperature) for name in names]


def rows(*lengths: int, seed: int = 3, prompt: int = 2) -> list[SignalRow]:
    generator = torch.Generator().manual_seed(seed)
    return [
        SignalRow(torch.randint(10, VOCABULARY, (length,), generator=generator), torch.arange(length) >= prompt, None)
        for length in lengths
    ]


def opened(settings: dict[str, Any], needs: Needs, model: type[Any] = HfTeacher) -> OnlineTeacher:
    return open_teacher(validate_settings(settings, model, "recipe"), needs, "cpu")


def loss_of(student: PreTrainedModel, batch: SignalBatch, used: list[Term]) -> Tensor:
    student.zero_grad()
    module = DistilledStudent(student, used, needs_teacher=True)
    loss, _ = module(batch, float(batch.counted.sum()))
    loss.backward()
    return loss.detach()


def test_online_equals_a_capture_of_the_same_teachers_states(folders: list[Path], student: LlamaForCausalLM) -> None:
    """The same loss and gradient as from a dataset of hidden states, whose rows are read one by one."""
    used = terms("kl", "reverse_kl", "jsd")
    texts = rows(12, 7, 19)
    teacher = load_model(folders[0])
    spec = complete_spec(HiddenSpec(dtype="float32"), teacher)
    captured = score_rows(teacher, [(row.input_ids, row.trained) for row in texts], spec, batch_tokens=1)
    offline = collate([replace(row, signal=signal) for row, signal in zip(texts, captured, strict=True)])
    online, view = opened({"path": str(folders[0])}, Needs.of(used)).annotate(collate(texts))
    assert view is None and isinstance(online.signal, HiddenSignal)
    assert torch.equal(online.counted, offline.counted)
    losses, gradients = [], []
    for batch in (offline, online):
        losses.append(loss_of(student, batch, used))
        gradients.append(student.get_input_embeddings().weight.grad.clone())
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


def test_hidden_states_come_without_logits(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's own forward, which makes logits, is never called once it is open."""
    teacher = opened({"path": str(folders[0])}, Needs.of(terms("kl"), layers=(0,)))

    def logits(*_: Any, **__: Any) -> None:
        raise AssertionError("logits were made")

    assert isinstance(teacher, ModelTeacher)
    monkeypatch.setattr(type(teacher.model), "forward", logits)
    batch, view = teacher.annotate(collate(rows(6, 9)))
    assert isinstance(batch.signal, HiddenSignal) and batch.signal.hidden.shape == (2, 9, 16)
    assert view is not None and view.layers[0].shape == (2, 9, 16)


def test_a_teacher_is_frozen_and_no_part_of_the_student(folders: list[Path], student: LlamaForCausalLM) -> None:
    teacher = opened({"path": str(folders[0])}, Needs.of(terms("kl")))
    assert isinstance(teacher, ModelTeacher)
    assert not teacher.model.training and not any(one.requires_grad for one in teacher.model.parameters())
    module = DistilledStudent(student, terms("kl"), needs_teacher=True)
    batch, _ = teacher.annotate(collate(rows(6)))
    assert isinstance(batch.signal, HiddenSignal)
    assert not batch.signal.hidden.requires_grad and not batch.signal.head.weight.requires_grad
    module(batch, 1.0)[0].backward()
    own = {id(one) for one in student.parameters()}
    assert {id(one) for one in module.parameters()} == own
    assert not own & {id(one) for one in teacher.model.parameters()}


def packed() -> SignalBatch:
    """Three documents in one row, two in another, padded."""
    texts = rows(20, 11)
    places = [torch.tensor([0] * 6 + [1] * 9 + [2] * 5), torch.tensor([4] * 3 + [5] * 8)]
    return collate([replace(row, documents=place) for row, place in zip(texts, places, strict=True)])


def test_packed_documents_are_read_as_if_alone(folders: list[Path]) -> None:
    model = load_model(folders[0])
    batch = packed()
    assert stretches(batch) == [(0, 0, 6), (0, 6, 15), (0, 15, 20), (1, 0, 3), (1, 3, 11)]
    reading = read(model, batch, layers=(0, 1), relations=(1,))
    for row, first, last in stretches(batch):
        alone = collate([SignalRow(batch.input_ids[row, first:last], batch.trained[row, first:last], None)])
        single = read(model, alone, layers=(0, 1), relations=(1,))
        torch.testing.assert_close(reading.hidden[row, first:last], single.hidden[0], rtol=1e-5, atol=1e-5)
        for layer in (0, 1):
            torch.testing.assert_close(reading.view.layers[layer][row, first:last], single.view.layers[layer][0])
        for part in ("queries", "keys", "values"):
            whole, own = (getattr(one.view.relations[1], part) for one in (reading, single))
            torch.testing.assert_close(whole[row, :, first:last], own[0])


def test_what_stands_in_one_document_does_not_reach_another(folders: list[Path]) -> None:
    model, batch = load_model(folders[0]), packed()
    other = batch.input_ids.clone()
    other[0, :6] = 11
    before, after = (read(model, replace(batch, input_ids=ids)).hidden for ids in (batch.input_ids, other))
    assert torch.equal(before[0, 6:], after[0, 6:]) and torch.equal(before[1], after[1])
    assert not torch.allclose(before[0, :6], after[0, :6])


def test_padding_changes_nothing(folders: list[Path]) -> None:
    model = load_model(folders[0])
    short, long = rows(5, 17)
    together, alone = read(model, collate([short, long])).hidden[0, :5], read(model, collate([short])).hidden[0]
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_entries_are_exact_at_the_losses_temperature(folders: list[Path], temperature: float) -> None:
    used = terms("kl", temperature=temperature)
    batch, _ = opened({"path": str(folders[0]), "top_k": 9}, Needs.of(used)).annotate(collate(rows(8, 13)))
    assert isinstance(batch.signal, TopkSignal)
    assert batch.signal.ids.shape == (2, 13, 9) and temperature in batch.signal.temperatures
    exact = load_model(folders[0])(batch.input_ids, attention_mask=batch.attention_mask).logits.log_softmax(-1)
    expected = exact.topk(9)
    torch.testing.assert_close(batch.signal.logprobs[batch.counted], expected.values[batch.counted])
    assert torch.equal(batch.signal.ids[batch.counted], expected.indices[batch.counted])
    place = batch.signal.temperatures.index(temperature)
    normaliser = (exact / temperature).logsumexp(-1)
    torch.testing.assert_close(
        batch.signal.log_normalisers[..., place][batch.counted], normaliser[batch.counted], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_several_teachers_are_the_weighted_mean_of_their_distributions(
    folders: list[Path], student: LlamaForCausalLM, name: str, temperature: float
) -> None:
    used = terms(name, temperature=temperature)
    settings = {
        "kind": "mixed",
        "teachers": [{"kind": "hf", "path": str(folders[0]), "weight": 3}, {"kind": "hf", "path": str(folders[1])}],
    }
    batch, _ = opened(settings, Needs.of(used), MixedTeachers).annotate(collate(rows(12, 7)))
    said = [load_model(folder)(batch.input_ids, attention_mask=batch.attention_mask).logits for folder in folders]
    mean = (0.75 * said[0].double().softmax(-1) + 0.25 * said[1].double().softmax(-1)).log()
    dense = replace(batch, signal=DenseSignal(mean.float(), batch.counted))
    losses = [loss_of(student, one, used).item() for one in (batch, dense)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_forward_kl_to_a_mean_has_the_gradient_of_the_mean_of_forward_kls(
    folders: list[Path], student: LlamaForCausalLM
) -> None:
    """What the page says of the choice between averaging distributions and averaging losses."""
    used, batch = terms("kl"), collate(rows(12, 7))
    teachers = [{"kind": "hf", "path": str(folder)} for folder in folders]
    mixed, _ = opened({"kind": "mixed", "teachers": teachers}, Needs.of(used), MixedTeachers).annotate(batch)
    loss_of(student, mixed, used)
    of_mean = student.get_input_embeddings().weight.grad.clone()
    means = []
    for one in teachers:
        loss_of(student, opened(one, Needs.of(used)).annotate(batch)[0], used)
        means.append(student.get_input_embeddings().weight.grad.clone())
    torch.testing.assert_close(of_mean, sum(means) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 5])
def test_each_dataset_can_have_its_own_teacher(folders: list[Path], top_k: int | None) -> None:
    used = terms("kl")
    texts = [replace(row, source=source) for row, source in zip(rows(9, 6, 11), ("code", "prose", "code"), strict=True)]
    members = [
        {"kind": "hf", "path": str(folder), "datasets": [name], "top_k": top_k}
        for folder, name in zip(folders, ("prose", "code"), strict=True)
    ]
    teacher = opened({"kind": "mixed", "teachers": members}, Needs.of(used), MixedTeachers)
    batch, _ = teacher.annotate(collate(texts))
    for row, folder in ((0, folders[1]), (1, folders[0]), (2, folders[1])):
        exact = load_model(folder)(batch.input_ids[row : row + 1]).logits[0].log_softmax(-1)
        said = at(batch.signal, (torch.tensor(row), batch.counted[row]))
        if isinstance(said, TopkSignal):
            torch.testing.assert_close(said.logprobs, exact[batch.counted[row]].topk(5).values)
        else:
            positions = Positions(torch.zeros(len(said.mask), 16), batch.targets[row][batch.counted[row]], said)
            flat = OutputHead(torch.zeros(VOCABULARY, 16))
            found = total_loss(positions, flat, used, 1.0)[0].item()
            expected = (exact.exp() * exact).sum(-1)[batch.counted[row]].sum() + len(said.mask) * torch.tensor(
                float(VOCABULARY)
            ).log()
            assert found == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(UserError, match="no teacher is for rows of 'poems'"):
        teacher.annotate(collate([replace(texts[0], source="poems")]))


def test_paddings_of_the_vocabulary_may_differ() -> None:
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    head = OutputHead(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))
    logits = logits_of(hidden, head)
    torch.testing.assert_close(logits_of(hidden, fitted(head, 7)), logits[:, :7])
    wider = logits_of(hidden, fitted(head, 12)).softmax(-1)
    torch.testing.assert_close(wider[:, :9], logits.softmax(-1))
    assert float(wider[:, 9:].max()) < 1e-60


def test_facts_are_known_before_anything_is_loaded(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.distill.teachers.hf.load_teacher", None)
    facts = inspect_teacher(HfTeacher(path=str(folders[0])), Needs.of(terms("kl")))
    assert (facts.kind, facts.vocabulary) == ("hidden", VOCABULARY)
    assert facts.tokenizer_digest == tokenizer_digest(tokenizer_of())
    assert facts.configs[str(folders[0])].hidden_size == 16
    topk = inspect_teacher(HfTeacher(path=str(folders[0]), top_k=3), Needs.of(terms("kl", temperature=2.0)))
    assert (topk.kind, topk.temperatures) == ("topk", (1.0, 2.0))


def test_dtype_and_arguments_of_the_seed_are_honoured(folders: list[Path]) -> None:
    needs = Needs.of(terms("kl"))
    half = opened(
        {"path": str(folders[0]), "kwargs": {"torch_dtype": "bfloat16", "attn_implementation": "eager"}}, needs
    )
    assert isinstance(half, ModelTeacher)
    assert half.model.dtype == torch.bfloat16 and half.model.config._attn_implementation == "eager"
    batch, _ = half.annotate(collate(rows(6)))
    assert isinstance(batch.signal, HiddenSignal) and batch.signal.hidden.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the student's autocast is not the teacher's
        exact, _ = opened({"path": str(folders[0])}, needs).annotate(collate(rows(6)))
    plain, _ = opened({"path": str(folders[0])}, needs).annotate(collate(rows(6)))
    assert isinstance(exact.signal, HiddenSignal) and isinstance(plain.signal, HiddenSignal)
    assert torch.equal(exact.signal.hidden, plain.signal.hidden)


def hf(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"path": str(folder)} | changes


@pytest.mark.parametrize(
    ("settings", "needs", "message"),
    [
        (hf(), Needs.of(terms("hinge")), r"teacher: 'hinge' is not defined on a 'hidden' signal.*Set teacher\.top_k"),
        (hf(top_k=4), Needs.of(terms("hs_mse")), r"'hs_mse' is not defined on a 'topk'.*Leave out teacher\.top_k"),
        (hf(), Needs(layers=(2,)), r"layer_mapping: block 2 of the teacher.*has 2 \(0 to 1\)"),
        (hf(), Needs(relations=(5,)), r"attention_relation\.layers: block 5"),
        (
            hf(),
            Needs(vocabulary=200),
            r"teacher\.path: the tokenizer .* entries, and the student's vocabulary only 200",
        ),
        (hf(weight=2.0), Needs(), r"teacher\.weight: means something where there are several"),
        (hf(datasets=["code"]), Needs(), r"teacher\.datasets: means something"),
        (hf(device="cuda:7"), Needs(), r"teacher\.device: 'cuda:7' is not here"),
        (hf(device="phone"), Needs(), r"teacher\.device: 'phone' is no device"),
        (hf(quantization="int4"), Needs(), r"teacher\.quantization: int4 needs the package bitsandbytes"),
        (hf(kwargs={"torch_dtype": "int3"}), Needs(), r"teacher\.kwargs: 'int3' is no dtype"),
        (hf(kwargs={"hidden_sizes": 3}), Needs(), r"teacher\.path: .*no teacher can be loaded"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    folders: list[Path], settings: Callable[[Path], dict[str, Any]], needs: Needs, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(settings(folders[0]), needs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"path": "x", "kwarg": {}}, HfTeacher, r"unknown key 'kwarg'\. Did you mean 'kwargs'"),
        ({"path": "x", "kwargs": {"trust_remote_code": True}}, HfTeacher, r"kwargs\.trust_remote_code: say it as"),
        ({"path": "x", "device": "cpu", "kwargs": {"device_map": "auto"}}, HfTeacher, "device_map places the teacher"),
        ({"kind": "mixed", "teachers": [{"kind": "hf", "path": "x"}]}, MixedTeachers, "teachers"),
        (
            {"kind": "mixed", "teachers": [{"kind": "hf", "path": "x"}, {"kind": "hf", "path": "y", "top_k": 3}]},
            MixedTeachers,
            "only distributions over the whole vocabulary can be averaged",
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(data: dict[str, Any], model: type[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(data, model, "recipe")


def test_a_teacher_is_whole_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the student is divided, no setting of it reaches into the loading of a teacher."""
    student = type("ZeRO", (), {"is_zero3": lambda self: True})()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: student)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert deepspeed.is_deepspeed_zero3_enabled()
    with on_this_rank_alone():
        assert not deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert deepspeed.is_deepspeed_zero3_enabled() and os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


def test_a_pickled_or_missing_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.path: .*no such folder"):
        opened({"path": str(tmp_path / "nowhere")}, Needs())
    folder = save(tmp_path / "pickled")
    torch.save(new_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"teacher\.path: .*no teacher can be loaded"):
        opened({"path": str(folder)}, Needs())


def test_a_teacher_that_does_more_than_its_head_is_refused(tmp_path: Path) -> None:
    """Granite divides its logits: a head alone would say something else."""
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=4.0, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    with quiet():
        GraniteForCausalLM(config).save_pretrained(tmp_path)
        tokenizer_of().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its logits are not those of its output head"):
        opened({"path": str(tmp_path)}, Needs.of(terms("kl")))


def test_a_head_of_heads_keeps_its_teachers_heads(folders: list[Path]) -> None:
    """No copy of a head is made on the device where it lies already."""
    settings = {"kind": "mixed", "teachers": [{"kind": "hf", "path": str(folder)} for folder in folders]}
    teacher = opened(settings, Needs.of(terms("kl")), MixedTeachers)
    batch, _ = teacher.annotate(collate(rows(6)))
    assert isinstance(batch.signal, HiddenSignal)
    members = [one for one in teacher.teachers if isinstance(one, ModelTeacher)]  # type: ignore[attr-defined]
    ours = [output_head(one.model).weight.data_ptr() for one in members]
    assert [head.weight.data_ptr() for head in batch.signal.head.heads] == ours  # type: ignore[attr-defined]
