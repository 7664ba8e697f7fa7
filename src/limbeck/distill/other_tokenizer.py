"""A teacher that reads the student's text in tokens of its own.

Each document of a batch is written out as text, read by the teacher from the start in its own tokens, and the teacher's
final states are handed over at the positions where both have said the same (`limbeck.distill.spans`). What a loss can
compare there is how the two go on, not what they call it: `uld`.

Special tokens are not text. A token of the student's becomes the teacher's token of the same text, or of the same role
(`limbeck.models.token_roles`); what `special_tokens` of the recipe says goes before both, and may be any text of the
teacher's, so that turns of one chat template become turns of another:

    special_tokens: {"<|user|>": "<|im_start|>user\\n", "<|assistant|>": "<|im_end|>\\n<|im_start|>assistant\\n"}

A special token that the teacher has no counterpart for is read by it as the letters that it is written in, but for a
beginning of text and padding, which it is not told of. The teacher puts in front of a text what its tokenizer does.

Text beyond the teacher's longest input is not read: positions there have no teacher. So have positions behind a byte
that is no UTF-8, which a student that writes byte by byte may produce.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.data.tokenizer import tokenizer_digest
from limbeck.distill.spans import TextTokens, shared_positions
from limbeck.distill.teachers.reading import Stretch, stretches
from limbeck.distill.view import OtherTokens, TeacherView
from limbeck.engines.scoring import check_head
from limbeck.engines.transformers import final_hidden, output_head
from limbeck.errors import UserError
from limbeck.models.token_roles import added_tokens, counterparts
from limbeck.settings import nearest
from limbeck.signals.loader import SignalBatch
from limbeck.signals.types import HiddenSignal, OutputHead

ENDS = {"turn_end": "eos", "eos": "turn_end"}  # roles that stand in for each other in a text
PROBE_TOKENS = 8
UNTOLD = ("bos_token_id", "pad_token_id")


class _Text(NamedTuple):
    """One document in the teacher's tokens, and where both models can be compared.

    Attributes:
        row: of the batch.
        ids: the teacher's.
        places: pairs of a position in the row and one in `ids`.
    """

    row: int
    ids: list[int]
    places: list[tuple[int, int]]


@dataclass
class OtherTokenizerTeacher:
    """A loaded teacher with a tokenizer of its own; see `teachers.online.OnlineTeacher`.

    Attributes:
        model: frozen, in evaluation mode.
        head: its output head.
        student: the student's tokenizer.
        own: the teacher's.
        replacements: what the teacher reads instead of special tokens of the student, by id.
    """

    model: PreTrainedModel
    head: OutputHead
    student: TextTokens
    own: TextTokens
    replacements: Mapping[int, str]
    vocabulary: int
    tokenizer_digest: str
    description: dict[str, Any]

    @staticmethod
    def of(
        model: PreTrainedModel,
        own: PreTrainedTokenizerBase,
        student: PreTrainedTokenizerBase,
        special_tokens: Mapping[str, str] | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> "OtherTokenizerTeacher":
        """Return a teacher of a loaded model.

        Args:
            model: the teacher.
            own: its tokenizer.
            student: the student's.
            special_tokens: what stands for the student's special tokens in the text that the teacher reads.
            description: for logs and results.

        Raises:
            UserError: the student's tokens are not made of bytes, so that no text can be made of them; or it has no
                such special token; or the teacher's logits are not those of its head.
        """
        reader = TextTokens(student)
        try:
            _ = reader.vocabulary
        except UserError as error:
            raise UserError(
                f"model: a teacher of another tokenizer reads text, and the student's tokens can't be written as text "
                f"exactly: {error}"
            ) from error
        head = output_head(model.eval().requires_grad_(False))
        check_head(model, head, torch.arange(PROBE_TOKENS) % head.weight.shape[0])
        return OtherTokenizerTeacher(
            model=model,
            head=head,
            student=reader,
            own=TextTokens(own),
            replacements=replacements_of(student, own, special_tokens or {}),
            vocabulary=head.weight.shape[0],
            tokenizer_digest=tokenizer_digest(own),
            description={**(description or {}), "special_tokens": dict(special_tokens or {})},
        )

    @torch.no_grad()
    def annotate(self, batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        """Return the batch as it is, and the teacher's states where both tokenizations have said the same text."""
        device = self.model.get_input_embeddings().weight.device
        states, rows, positions = [], [], []
        with torch.autocast(device.type, enabled=False):
            for group in _groups(self._texts(batch), batch.input_ids.numel()):
                ids_GL = torch.zeros(len(group), len(group[0].ids), dtype=torch.long)
                attended_GL = torch.zeros_like(ids_GL, dtype=torch.bool)
                for place, text in enumerate(group):
                    ids_GL[place, : len(text.ids)] = torch.tensor(text.ids)
                    attended_GL[place, : len(text.ids)] = True
                hidden_GLD = final_hidden(self.model, ids_GL.to(device), attended_GL.to(device))
                taken = [(place, theirs) for place, text in enumerate(group) for _, theirs in text.places]
                states.append(hidden_GLD[tuple(torch.tensor(taken, device=device).T)])
                rows += [text.row for text in group for _ in text.places]
                positions += [position for text in group for position, _ in text.places]
        here = batch.input_ids.device
        hidden_PD = torch.cat(states) if states else self.head.weight.new_zeros(0, self.head.weight.shape[1])
        mask_P = torch.ones(len(rows), dtype=torch.bool, device=here)
        other = OtherTokens(
            HiddenSignal(hidden_PD.to(here), self.head.to(here), mask_P),
            torch.tensor(rows, dtype=torch.long, device=here),
            torch.tensor(positions, dtype=torch.long, device=here),
        )
        return batch, TeacherView(other=other)

    def close(self) -> None:
        """Let go of the model."""
        del self.model, self.head

    def _texts(self, batch: SignalBatch) -> list[_Text]:
        """Return the documents of a batch at whose positions both can be compared, in the teacher's tokens."""
        ids_BT, counted_BT = batch.input_ids.cpu(), batch.counted.cpu()
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        found = []
        for stretch in stretches(batch):
            row, first, last = stretch
            if counted_BT[row, first:last].any():
                text = self._text(
                    stretch, ids_BT[row, first:last].tolist(), counted_BT[row, first:last].tolist(), longest
                )
                found += [text] if text.places else []
        return found

    def _text(self, stretch: Stretch, ids: list[int], counted: list[bool], longest: int | None) -> _Text:
        written = self.student.rewrite(ids, self.replacements)
        tokens = self.own.read(written.text, prefix=True)
        places = [
            (stretch.first + position, theirs)
            for position, theirs in shared_positions(written.ends, tokens.ends)
            if counted[position] and (longest is None or theirs < longest)
        ]
        needed = max((theirs for _, theirs in places), default=-1) + 1
        return _Text(stretch.row, tokens.ids[:needed], places)


def replacements_of(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, given: Mapping[str, str]
) -> dict[int, str]:
    """Return what a teacher reads instead of the student's special tokens, by id; see the module's text.

    Raises:
        UserError: the student has no special token of a name that is given.
    """
    own = added_tokens(student)
    for text in given:
        if text not in own.values():
            raise UserError(
                f"teacher.special_tokens: {text!r} is no special token of the student."
                f"{nearest(text, list(own.values()))}"
            )
    theirs = added_tokens(teacher)
    found = {token: theirs[other] for token, other in counterparts(student, teacher, ENDS).items()}
    for name in UNTOLD:
        token = getattr(student, name, None)
        if isinstance(token, int) and own.get(token) != own.get(student.eos_token_id):
            found.setdefault(token, "")
    return {**found, **{token: given[text] for token, text in own.items() if text in given}}


def _groups(texts: list[_Text], tokens: int) -> Iterator[list[_Text]]:
    """Yield texts, the longest first, in groups of at most `tokens` tokens after padding."""
    group: list[_Text] = []
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        if group and (len(group) + 1) * len(group[0].ids) > tokens:
            yield group
            group = []
        group.append(text)
    if group:
        yield group
