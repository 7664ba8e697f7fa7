"""Several teachers: the weighted mean of their distributions at each position, or one teacher for each dataset.

Mean of distributions rather than a sum of losses: it is one target, the same for every loss and on every report, it
costs one pass of the executor, and for the forward KL at temperature 1 both have the same gradient. (For the reverse KL
a sum of losses would mean the geometric mean of the teachers, which is small wherever one of them objects.) A
temperature is applied to the mean.

Teachers in process hand over their states side by side with a head of heads (`MixedHead`): the mean is exact, and made
for a chunk of positions at a time. A teacher reads the rows that it is asked about, and no others.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.distill.mixture import MOST_WEIGHTS, MixedHead
from limbeck.distill.teachers.hf import ModelTeacher
from limbeck.distill.teachers.needs import Needs
from limbeck.distill.teachers.online import OnlineTeacher, TeacherFacts, inspect_teacher, open_teacher
from limbeck.distill.teachers.settings import HfTeacher, MixedTeachers, ServedTeacher
from limbeck.distill.view import TeacherView
from limbeck.errors import UserError
from limbeck.signals.loader import SignalBatch
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import HiddenSignal, OutputHead, TeacherSignal, at

ALONE = {"weight": 1.0, "datasets": ()}


@dataclass(frozen=True)
class Shares:
    """How much each of M teachers is asked about rows of each dataset.

    Attributes:
        weights: of the teachers.
        datasets: of each teacher; empty: all.
    """

    weights: tuple[float, ...]
    datasets: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(teachers: Sequence[HfTeacher | ServedTeacher]) -> "Shares":
        """Return the shares that settings ask for."""
        return Shares(tuple(one.weight for one in teachers), tuple(one.datasets for one in teachers))

    def at(self, source: str) -> tuple[float, ...]:
        """Return each teacher's share of the target of rows from `source`; they sum to 1.

        Raises:
            UserError: no teacher is for this dataset.
        """
        asked = [
            weight if not names or source in names else 0.0
            for weight, names in zip(self.weights, self.datasets, strict=True)
        ]
        if not any(asked):
            raise UserError(
                f"teacher.teachers: no teacher is for rows of {source or 'the one dataset there is'!r}. Name it in "
                "the datasets of one, or leave datasets out of one."
            )
        return tuple(share / sum(asked) for share in asked)


def inspect_mixed(settings: MixedTeachers, needs: Needs) -> TeacherFacts:
    """Return what is known of several teachers; see `online.inspect_teacher`."""
    if needs.layers or needs.relations or needs.states:
        raise UserError(
            "teacher.teachers: losses on hidden states compare with one teacher, and here are several. "
            "Use losses on distributions, or one teacher."
        )
    found: list[TeacherFacts] = []
    for index, one in enumerate(settings.teachers):
        found.append(inspect_teacher(one.model_copy(update=ALONE), needs, f"teacher.teachers.{index}"))
        if found[-1].kind != found[0].kind:
            raise UserError(
                f"teacher.teachers.{index}: it gives a {found[-1].kind!r} signal, and the first a {found[0].kind!r} "
                "one. Set top_k for all, or for none."
            )
        if found[-1].tokenizer_digest != found[0].tokenizer_digest:
            raise UserError(
                f"teacher.teachers.{index}: its tokenizer ({found[-1].tokenizer_digest[:12]}…) is not the first one's "
                f"({found[0].tokenizer_digest[:12]}…). Teachers that are averaged need one tokenizer."
            )
    return TeacherFacts(
        kind=found[0].kind,
        temperatures=found[0].temperatures,
        vocabulary=max(one.vocabulary for one in found),
        tokenizer_digest=found[0].tokenizer_digest,
        configs={path: config for one in found for path, config in one.configs.items()},
    )


def open_mixed(settings: MixedTeachers, needs: Needs, device: torch.device) -> "Mixture":
    """Open every teacher; see `online.open_teacher`."""
    facts = inspect_mixed(settings, needs)
    needs = replace(needs, vocabulary=facts.vocabulary)
    with ExitStack() as stack:
        opened: list[OnlineTeacher] = []
        for one in settings.teachers:
            opened.append(open_teacher(one.model_copy(update=ALONE), needs, device))
            stack.callback(opened[-1].close)
        heads = tuple(one.head for one in opened if isinstance(one, ModelTeacher))
        stack.pop_all()
    members = [
        {**teacher.description, "weight": one.weight, "datasets": list(one.datasets)}
        for teacher, one in zip(opened, settings.teachers, strict=True)
    ]
    return Mixture(
        tuple(opened), heads, Shares.of(settings.teachers), facts.vocabulary, facts.tokenizer_digest,
        {"kind": "mixed", "teachers": members},
    )  # fmt: skip


@dataclass
class Mixture:
    """Several opened teachers; see `online.OnlineTeacher`.

    Attributes:
        teachers: all of them.
        heads: of those in process.
        shares: how much each is asked.
    """

    teachers: tuple[OnlineTeacher, ...]
    heads: tuple[OutputHead, ...]
    shares: Shares
    vocabulary: int
    tokenizer_digest: str
    description: dict[str, Any]
    _head: MixedHead | None = None
    _ways: tuple[tuple[float, ...], ...] = ()

    def annotate(self, batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        """Ask the teachers about their rows; see `online.OnlineTeacher`.

        Raises:
            UserError: no teacher is for a row's dataset.
        """
        sources = batch.sources or ("",) * len(batch.input_ids)
        shares_B = [self.shares.at(source) for source in sources]
        signals: list[TeacherSignal | None] = []
        rows: list[list[int]] = []
        for index, teacher in enumerate(self.teachers):
            rows.append([row for row, shares in enumerate(shares_B) if shares[index] > 0])
            signals.append(teacher.annotate(_rows(batch, rows[-1]))[0].signal if rows[-1] else None)
        found = [(signal, places) for signal, places in zip(signals, rows, strict=True) if signal is not None]
        if isinstance(found[0][0], HiddenSignal):
            mixed: TeacherSignal = self._side_by_side(batch, signals, rows, shares_B)
        else:
            order = torch.tensor([row for _, places in found for row in places]).argsort()
            mixed = at(concatenate([signal for signal, _ in found]), order.to(batch.input_ids.device))
        counted_BT = batch.counted & mixed.mask
        return replace(batch, signal=replace(mixed, mask=counted_BT), counted=counted_BT, encoded=None), None

    def close(self) -> None:
        """Let go of all."""
        self._head = None
        for teacher in self.teachers:
            teacher.close()

    def _side_by_side(
        self,
        batch: SignalBatch,
        signals: Sequence[TeacherSignal | None],
        rows: Sequence[Sequence[int]],
        shares_B: Sequence[tuple[float, ...]],
    ) -> HiddenSignal:
        """Return the states of all teachers in one tensor, with a head that mixes them."""
        device = batch.input_ids.device
        head = self._mixed_head(shares_B, device)
        parts: list[Tensor] = []
        for one, signal, places in zip(head.heads, signals, rows, strict=True):
            states_BTD = one.weight.new_zeros((*batch.input_ids.shape, one.weight.shape[1]))
            if isinstance(signal, HiddenSignal):
                states_BTD[list(places)] = signal.hidden.to(states_BTD)
            parts.append(states_BTD)
        numbers_B = torch.tensor([self._ways.index(shares) for shares in shares_B], device=device)
        numbers_BT1 = numbers_B[:, None, None].expand(*batch.input_ids.shape, 1)
        return HiddenSignal(torch.cat([*parts, numbers_BT1.to(parts[0].dtype)], -1), head, batch.counted)

    def _mixed_head(self, shares_B: Sequence[tuple[float, ...]], device: torch.device) -> MixedHead:
        """Return the head of heads that knows all these ways to weigh; it is made anew only when one is new."""
        new = tuple(sorted(set(shares_B) - set(self._ways)))
        if new or self._head is None:
            self._ways += new
            if len(self._ways) > MOST_WEIGHTS:
                raise UserError(f"teacher.teachers: more than {MOST_WEIGHTS} ways to weigh the teachers.")
            heads = tuple(head.to(device) for head in self.heads)
            self._head = MixedHead.of(heads, torch.tensor(self._ways, dtype=torch.float32))
        return self._head


def _rows(batch: SignalBatch, rows: Sequence[int]) -> SignalBatch:
    """Return some rows of a batch."""
    if len(rows) == len(batch.input_ids):
        return batch
    tensors: dict[str, Any] = {
        name: value[list(rows)] for name, value in vars(batch).items() if isinstance(value, Tensor)
    }
    pick = tuple(batch.sources[row] for row in rows) if batch.sources else ()
    return replace(batch, **tensors, signal=None, encoded=None, samples=(), sources=pick)
