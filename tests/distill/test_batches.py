"""The rows of a step: the same however they are divided; every row once; any place reachable by itself."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.distill.batches import Division, EpochLoader, KeySampler, MappedBatches, StreamedBatches
from limbeck.distill.sampling import LengthGroupedOrder
from limbeck.errors import UserError
from limbeck.signals.dataset import SignalRow
from tests.distill.tiny_run import Stream, random_rows

sizes = st.integers(1, 4)


@given(rows=st.integers(1, 60), size=sizes, micro_batches=sizes, world=sizes, drop_last=st.booleans())
def test_each_row_is_in_one_part_of_one_step(
    rows: int, size: int, micro_batches: int, world: int, drop_last: bool
) -> None:
    divisions = [Division(size, micro_batches, rank, world) for rank in range(world)]
    whole = divisions[0]
    taken = []
    for step in range(whole.steps(rows, drop_last=drop_last)):
        of_step = range(rows)[step * whole.a_step : (step + 1) * whole.a_step]
        parts = [of_step[d.part(m, len(of_step))] for m in range(micro_batches) for d in divisions]
        assert max(map(len, parts)) <= size
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        taken += [row for part in parts for row in part]
    assert taken == list(range(rows // whole.a_step * whole.a_step if drop_last else rows))


def mapped(division: Division) -> MappedBatches:
    rows = random_rows(21)
    order = LengthGroupedOrder([len(row.input_ids) for row in rows], division.a_step, seed=1)
    return MappedBatches(rows, order.of_epoch, division)


@pytest.mark.parametrize(("micro_batches", "world"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_rows_of_a_step_do_not_depend_on_how_it_is_divided(micro_batches: int, world: int) -> None:
    rows_a_part = 8 // micro_batches // world
    of_steps: list[set[int]] = [set(), set(), set()]
    for rank in range(world):
        division = Division(rows_a_part, micro_batches, rank, world)
        batches = mapped(division)
        for number in range(division.steps(21) * micro_batches):
            batch = batches[1, number]
            assert batch.step == number // micro_batches
            of_steps[batch.step] |= set(batch.samples)
    whole = mapped(Division(8))
    assert of_steps == [set(whole[1, step].samples) for step in range(3)]


def test_a_batch_holds_the_rows_that_it_names() -> None:
    batch, rows = mapped(Division(3))[0, 2], random_rows(21)
    for place, sample in enumerate(batch.samples):
        assert torch.equal(batch.input_ids[place, : len(rows[sample].input_ids)], rows[sample].input_ids)


def test_a_rank_without_rows_has_nothing_to_train_on() -> None:
    rows = random_rows(5)
    batches = [MappedBatches(rows, lambda epoch: range(5), Division(2, 1, rank, 2)) for rank in range(2)]
    last = [batch[0, 1] for batch in batches]
    assert [batch.samples for batch in last] == [(), (4,)]
    assert not last[0].counted.any() and last[1].counted.any()


class Seeking(Stream):
    def __init__(self) -> None:
        super().__init__()
        self.first: list[int] = []

    def rows_from(self, first: int) -> Iterator[SignalRow]:
        self.first.append(first)
        number, place = divmod(first, 9)
        while True:
            self.number = number
            yield from list(self)[place:]
            number, place = number + 1, 0


def ids(batches: StreamedBatches, numbers: range) -> list[list[int]]:
    found = [batches[0, number] for number in numbers]
    return [
        row[mask].tolist() for batch in found for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


@pytest.mark.parametrize("stream", [Stream, Seeking])
def test_a_stream_goes_on_at_any_place(stream: type[Stream]) -> None:
    whole = ids(StreamedBatches(stream(), Division(2)), range(12))
    assert len(whole) == 24 and whole[:9] != whole[9:18]
    assert sorted(whole[:9]) == sorted(whole[9:18])
    assert ids(StreamedBatches(stream(), Division(2)), range(5, 12)) == whole[10:]


def test_a_stream_is_divided_among_ranks() -> None:
    parts = [ids(StreamedBatches(Stream(), Division(2, 2, rank, 2)), range(4)) for rank in range(2)]
    whole = ids(StreamedBatches(Stream(), Division(8)), range(2))
    interleaved = [row for number in range(4) for part in parts for row in part[2 * number : 2 * number + 2]]
    assert interleaved == whole


def test_a_stream_that_can_seek_is_not_read_from_its_start() -> None:
    stream = Seeking()
    assert StreamedBatches(stream, Division(2))[0, 7].samples == (14, 15)
    assert stream.first == [14]


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(UserError, match="the stream has no rows"):
        StreamedBatches(iter(()), Division(2))[0, 0]


def test_keys_are_those_of_the_epoch() -> None:
    sampler = KeySampler(3)
    sampler.set_epoch(2)
    assert list(sampler) == [[(2, 0)], [(2, 1)], [(2, 2)]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_an_epoch(workers: int) -> None:
    loader = EpochLoader(mapped(Division(8)), 3, workers)
    loader.set_epoch(1)
    expected = [mapped(Division(8))[1, step].samples for step in range(3)]
    assert [inputs["batch"].samples for inputs in loader] == expected
