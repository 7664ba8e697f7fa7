"""The loader: every sample once, the same each time, from any step on; masks are shifted here and only here."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.loader import SignalBatch, SignalLoader, collate
from limbeck.signals.order import EpochOrder, permutation
from limbeck.signals.types import TokenSignal, TopkSignal
from tests.signals.making import header_of, make_row
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
