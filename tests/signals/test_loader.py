"""The loader: every sample once, the same each time, from any step on; masks are shifted here and only here."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import IntegrityError, UserError
from limbeck.settings import Settings
from limbeck.signals.ahead import ahead
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.loader import DeviceCodec, SignalBatch, SignalLoader, collate
from limbeck.signals.order import EpochOrder, permutation
from limbeck.signals.types import DenseSignal, TokenSignal, TopkSignal, tensors_of
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import SPEC, header_of, make_row
from tests.signals.test_dataset import write


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SignalDataset:
    folder = tmp_path_factory.mktemp("signals") / "captured"
    return SignalDataset.open(write(folder, header_of(documents=True), documents=True))


def same(one: SignalBatch, two: SignalBatch) -> bool:
    assert isinstance(one.signal, TopkSignal) and isinstance(two.signal, TopkSignal)
    return (
        one.samples == two.samples
        and torch.equal(one.input_ids, two.input_ids)
        and torch.equal(one.counted, two.counted)
        and torch.equal(one.signal.logprobs, two.signal.logprobs)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_read_each_sample_once(dataset: SignalDataset, workers: int) -> None:
    seen: Counter[int] = Counter()
    ranks = [SignalLoader(dataset, 4, seed=5, rank=rank, world=2, buffer=7) for rank in range(2)]
    batches = [list(loader.batches(0, workers=workers)) for loader in ranks]
    assert len(batches[0]) == len(batches[1]) == ranks[0].steps == 3
    for batch in batches[0] + batches[1]:
        seen.update(batch.samples)
        assert batch.input_ids[:, 0].tolist() == [sample % 50 for sample in batch.samples]
    assert seen == Counter(range(23))


@pytest.mark.parametrize("rank", [0, 1])
def test_whoever_reads_ahead_the_batches_are_the_same(dataset: SignalDataset, rank: int) -> None:
    loader = SignalLoader(dataset, 4, seed=5, rank=rank, world=2, buffer=7)
    expected = [loader.batch(1, step) for step in range(1, loader.steps)]
    for options in ({"threads": 0}, {"threads": 1}, {"threads": 3}, {"workers": 2}):
        found = list(loader.batches(1, start=1, **options))  # type: ignore[arg-type]
        assert [batch.step for batch in found] == [1, 2]
        assert all(same(one, two) for one, two in zip(expected, found, strict=True))


def test_a_shard_that_fails_while_reading_ahead_fails_at_its_batch(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    (folder / "0000000015-0000000020.parquet").unlink()
    batches = SignalLoader(SignalDataset.open(folder), 5, shuffle=False).batches(0, threads=2)
    assert [next(batches).samples[0] for _ in range(3)] == [0, 4, 9]
    with pytest.raises(IntegrityError, match="0000000015-0000000020"):
        next(batches)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_working_ahead_keeps_the_order_and_takes_no_more_than_it_needs(threads: int) -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = ahead(lambda number: number**2, numbers(), threads)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 5 + 2 * threads
    results.close()  # type: ignore[attr-defined]
    assert list(ahead(str, range(7), threads)) == [str(number) for number in range(7)]
    assert list(ahead(str, [], threads)) == []


@pytest.mark.parametrize("spec", [SPEC, DenseSpec(), TokenSpec()])
def test_bytes_that_are_decoded_later_say_the_same(tmp_path: Path, spec: Settings) -> None:
    folder = write(tmp_path / "d", header_of(codec=spec), spec=spec)
    at_once, later = (SignalLoader(SignalDataset.open(folder), 4, seed=2, decode=decode) for decode in (True, False))
    for one, two in zip(at_once.batches(0), later.batches(0), strict=True):
        assert two.signal is None and two.encoded is not None and one.encoded is None
        assert not torch.equal(two.counted, two.attention_mask)
        two = later.decoded(two)
        assert torch.equal(one.counted, two.counted)
        assert one.signal is not None and two.signal is not None
        for name, value in tensors_of(one.signal).items():
            assert torch.equal(value, tensors_of(two.signal)[name])


def test_a_codec_that_can_is_asked_to_decode_on_the_device(dataset: SignalDataset, tmp_path: Path) -> None:
    spec = DenseSpec()
    dense = SignalDataset.open(write(tmp_path / "d", header_of(codec=spec), spec=spec))
    assert isinstance(dense.codec, DeviceCodec) and not isinstance(dataset.codec, DeviceCodec)
    for loader in (SignalLoader(dense, 2), SignalLoader(dataset, 2)):
        batch = next(loader.batches(0, device="meta"))
        assert batch.signal is not None
        assert {tensor.device.type for tensor in tensors_of(batch.signal).values()} == {"meta"}
        assert batch.input_ids.device.type == "meta"


def test_undecoded_batches_hold_no_more_than_twice_what_is_on_disk(tmp_path: Path) -> None:
    rows = [make_row(index, DenseSpec()) for index in range(8)]
    tokens = 256
    with DatasetWriter(tmp_path / "d", header_of(samples=8, samples_per_shard=8, codec=DenseSpec())) as writer:
        long = [
            SignalRow(
                row.input_ids.repeat(tokens)[:tokens],
                row.trained.repeat(tokens)[:tokens],
                DenseSignal(torch.zeros(tokens, 50), torch.ones(tokens) > 0),
            )
            for row in rows
        ]
        writer.write_shard(range(8), long)
        stored = writer.finish().shards[0].bytes
    batch = SignalLoader(SignalDataset.open(tmp_path / "d"), 8, decode=False).batch(0, 0)
    assert batch.encoded is not None
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    held = sum(value.nbytes for value in [*tensors, *batch.encoded.data.values(), *batch.encoded.offsets.values()])
    assert held <= 2 * stored


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    world=st.integers(1, 5),
    batch_size=st.integers(1, 5),
    buffer=st.integers(1, 40),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_every_split_is_a_partition(
    sizes: list[int], world: int, batch_size: int, buffer: int, epoch: int, shuffle: bool
) -> None:
    class Sizes:
        shard_sizes = sizes

        def __len__(self) -> int:
            return sum(sizes)

        def keep_shards(self, count: int) -> None:
            self.kept = count

    seen: Counter[int] = Counter()
    for rank in range(world):
        loader = SignalLoader(Sizes(), batch_size, 1, rank, world, buffer, shuffle)  # type: ignore[arg-type]
        for step in range(loader.steps):
            samples = loader.samples(epoch, step)
            assert len(samples) <= batch_size
            seen.update(samples)
    assert seen == Counter(range(sum(sizes)))


def test_an_epoch_is_a_function_of_seed_and_epoch(dataset: SignalDataset) -> None:
    loader, again = SignalLoader(dataset, 4, seed=5, buffer=7), SignalLoader(dataset, 4, seed=5, buffer=7)
    assert all(same(one, two) for one, two in zip(loader.batches(0), again.batches(0), strict=True))
    orders = {
        tuple(sample for step in range(other.steps) for sample in other.samples(epoch, step))
        for other in (loader, SignalLoader(dataset, 4, seed=6, buffer=7))
        for epoch in (0, 1)
    }
    assert len(orders) == 4
    assert tuple(range(23)) not in orders


def test_it_resumes_in_the_middle_of_an_epoch_at_the_exact_sample(dataset: SignalDataset) -> None:
    loader = SignalLoader(dataset, 4, seed=5, buffer=7)
    whole = list(loader.batches(2))
    rest = list(SignalLoader(dataset, 4, seed=5, buffer=7).batches(2, start=3))
    assert [batch.step for batch in rest] == [3, 4, 5]
    assert all(same(one, two) for one, two in zip(whole[3:], rest, strict=True))


def test_unshuffled_it_reads_in_order(dataset: SignalDataset) -> None:
    batches = SignalLoader(dataset, 6, shuffle=False).batches(0)
    assert [sample for batch in batches for sample in batch.samples] == list(range(23))


def test_a_rank_without_a_sample_gets_a_stand_in_that_trains_nothing(dataset: SignalDataset) -> None:
    loaders = [SignalLoader(dataset, 1, rank=rank, world=2) for rank in range(2)]
    assert [loader.steps for loader in loaders] == [12, 12]
    empty = [batch for loader in loaders for batch in loader.batches(0) if not batch.samples]
    assert len(empty) == 1
    assert not empty[0].counted.any() and not empty[0].trained.any()
    assert empty[0].signal is not None and not empty[0].signal.mask.any()
    assert len(empty[0].input_ids) == 1


def test_flags_of_tokens_become_masks_of_positions() -> None:
    """Position t is trained on if token t + 1 is: the token before the first one to learn, never the last token."""
    row = SignalRow(
        input_ids=torch.tensor([5, 6, 7, 8, 9]),
        trained=torch.tensor([True, False, True, True, True]),
        signal=TokenSignal(torch.zeros(5), torch.tensor([True, True, True, False, True])),
        documents=torch.tensor([0, 0, 0, 0, 1]),
    )
    short = SignalRow(
        torch.tensor([3, 4]),
        torch.ones(2).bool(),
        TokenSignal(torch.zeros(2), torch.ones(2).bool()),
        torch.tensor([0, 0]),
    )
    batch = collate([row, short], pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 1, 1, 1]]
    assert batch.targets.tolist() == [[6, 7, 8, 9, 1], [4, 1, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    # token 6 is not to learn; 7 and 8 are; 9 starts another document (and its position has no signal)
    assert batch.counted.tolist() == [[False, True, True, False, False], [True, False, False, False, False]]
    assert batch.signal is not None and torch.equal(batch.signal.mask, batch.counted)
    bare = collate([SignalRow(row.input_ids, row.trained, None, row.documents)])
    assert bare.signal is None
    assert bare.counted.tolist() == [[False, True, True, False, False]]


def test_the_signal_lines_up_with_the_rows(dataset: SignalDataset) -> None:
    for batch in SignalLoader(dataset, 5, seed=1).batches(0):
        assert isinstance(batch.signal, TopkSignal)
        for place, sample in enumerate(batch.samples):
            row = make_row(sample, documents=True)
            assert isinstance(row.signal, TopkSignal)
            length = len(row.input_ids)
            top = row.signal.ids[:, 0]
            stored = batch.signal.ids[place, :length]
            assert (stored == top[:, None]).any(1).all()
            assert batch.signal.mask[place, length - 1 :].sum() == 0


def test_batches_move_between_devices(dataset: SignalDataset) -> None:
    moved = SignalLoader(dataset, 2).batch(0, 0).to("meta")
    assert moved.input_ids.device.type == moved.signal.mask.device.type == "meta"  # type: ignore[union-attr]
    assert moved.samples == SignalLoader(dataset, 2).samples(0, 0)


def test_settings_that_make_no_sense_are_named(dataset: SignalDataset) -> None:
    with pytest.raises(UserError, match="rank 2"):
        SignalLoader(dataset, 4, rank=2, world=2)
    with pytest.raises(UserError, match="batch_size 0"):
        SignalLoader(dataset, 0)
    with pytest.raises(IndexError):
        SignalLoader(dataset, 4).samples(0, 6)


def test_permutations_are_the_same_on_every_machine() -> None:
    assert permutation(0, 8).tolist() == [2, 4, 6, 5, 1, 7, 0, 3]  # SplitMix64 in Python's integers, sorted
    assert sorted(permutation(123, 1000).tolist()) == list(range(1000))


def test_neighbours_come_from_different_shards() -> None:
    order = EpochOrder([100] * 10, buffer=300, seed=1, epoch=0)
    shards = [order.sample(place) // 100 for place in range(1000)]
    changes = sum(a != b for a, b in itertools.pairwise(shards))
    assert changes > 500
