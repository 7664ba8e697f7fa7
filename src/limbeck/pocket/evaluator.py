"""The arena's evaluator on the pocket world: the round's prompts are held-out text, drawn from the block's seed.

A prompt is the beginning of a passage of a document that nobody was trained on; the teacher goes on from there (by
sampling, seeded), and king and challengers are compared with the teacher on exactly that continuation, token by token
over the whole vocabulary. Where the round asks for no continuation, they are compared on the passage itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from limbeck import __version__
from limbeck.arena.decision import PromptEvidence
from limbeck.arena.evaluation import RoundPrompt, RoundSpec, evaluator, teacher
from limbeck.arena.faults import CandidateError, Fault, ForeignError
from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.transformers import continue_by_sampling, load_model
from limbeck.errors import UserError
from limbeck.evaluate.divergences import RowDivergence, TextRow, measure
from limbeck.files import digest_of, read_json, write_json
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.world import POCKET, teacher_folder
from limbeck.seeds import derive_random, derive_seed

BATCH = 8
MOST_DRAWS = 1000  # a prompt; the held-out text has no passage longer than its longest file


@teacher(POCKET)
def pocket_teacher() -> Path:
    """Return the folder of the shipped teacher."""
    return teacher_folder()


@dataclass(frozen=True)
class _Passage:
    """A prompt of the round with the teacher's continuation; predictions from `first` on are compared."""

    ids: tuple[int, ...]
    first: int


class PocketMeasurement:
    """A round's prompts with the teacher's continuations."""

    def __init__(self, spec: RoundSpec) -> None:
        self.spec = spec
        self._passages = self._draw()

    @cached_property
    def _teacher(self) -> PreTrainedModel:
        return load_model(self.spec.teacher)

    @property
    def prompts(self) -> Sequence[RoundPrompt]:
        """The prompts, named by the SHA-256 of their tokens."""
        return [
            RoundPrompt(
                index=index,
                digest=hashlib.sha256(",".join(map(str, passage.ids)).encode()).hexdigest(),
                tokens=len(passage.ids) - 1 - passage.first,
            )
            for index, passage in enumerate(self._passages)
        ]

    def evaluate(self, model: Path) -> Sequence[PromptEvidence]:
        """Compare the model in a folder with the teacher on every passage.

        Raises:
            CandidateError: the model can't be loaded, or has another vocabulary.
        """
        teacher = self._teacher  # loaded out here: a teacher that is gone is not the candidate's fault
        try:
            rows = measure(
                load_model(model), teacher, [TextRow(str(i), p.ids, 0) for i, p in enumerate(self._passages)],
                batch_size=BATCH,
            )  # fmt: skip
        except UserError as error:
            raise CandidateError(str(error)) from error
        return [_evidence(index, row, self._passages[index].first) for index, row in enumerate(rows)]

    def _check_context(self) -> None:
        context, asked = self._teacher.config.max_position_embeddings, self.spec.max_prompt_tokens
        if asked + self.spec.max_new_tokens > context:
            raise ForeignError(
                f"round: prompts of {asked} tokens and continuations of {self.spec.max_new_tokens} do not fit into the "
                f"teacher's context of {context}. Ask for shorter ones.",
                Fault.HOST,
            )

    def _draw(self) -> list[_Passage]:
        """Return the round's passages, from the round's folder if they were made before a crash."""
        cache, identity = self.spec.work / "passages.json", _identity(self.spec)
        if cache.exists() and (kept := read_json(cache))["spec"] == identity:
            return [_Passage(tuple(ids), first) for ids, first in kept["passages"]]
        tokenizer = load_tokenizer(self.spec.teacher)
        self._check_context()
        rng = derive_random(self.spec.seed, "prompts")
        documents = load_corpus().documents["held_out"]
        prompts: list[list[int]] = []
        length = self.spec.max_prompt_tokens
        for _ in range(MOST_DRAWS * self.spec.prompts):
            if len(prompts) == self.spec.prompts:
                break
            document = rng.choices(documents, weights=[len(document.text) for document in documents])[0]
            start = document.text.rfind("\n", 0, rng.randrange(len(document.text))) + 1
            ids = tokenizer(document.text[start : start + 8 * length], add_special_tokens=False, verbose=False)[
                "input_ids"
            ][:length]
            if len(ids) == length and ids not in prompts:
                prompts.append(ids)
        if len(prompts) < self.spec.prompts:
            raise ForeignError(
                f"round.prompts: only {len(prompts)} of {self.spec.prompts} passages of {length} tokens were found in "
                "the held-out text. Ask for fewer or shorter prompts.",
                Fault.HOST,
            )
        passages = [_Passage(tuple(prompt), 0) for prompt in prompts]
        if self.spec.max_new_tokens:
            continued = continue_by_sampling(
                self._teacher,
                prompts,
                max_new_tokens=self.spec.max_new_tokens,
                seed=derive_seed(self.spec.seed, "continuations"),
                eos_token_id=tokenizer.eos_token_id,
                batch_size=BATCH,
            )
            passages = [
                _Passage((*prompt, *more), len(prompt) - 1) for prompt, more in zip(prompts, continued, strict=True)
            ]
        kept = [[list(passage.ids), passage.first] for passage in passages]
        write_json(cache, {"spec": identity, "passages": kept})
        return passages


class PocketEvaluator:
    """Exact full-vocabulary divergences in float32 on this machine's processor."""

    @property
    def description(self) -> str:
        """What measured: name, version, precision, device, library."""
        return f"pocket {__version__}, float32 on cpu, torch {torch.__version__}"

    def prepare(self, spec: RoundSpec) -> PocketMeasurement:
        """Draw the round's prompts and let the teacher continue them."""
        return PocketMeasurement(spec)


@evaluator(POCKET)
def pocket_evaluator() -> PocketEvaluator:
    """Return the pocket world's evaluator."""
    return PocketEvaluator()


def _identity(spec: RoundSpec) -> str:
    """Return the digest of what decides a round's passages: another spec draws them anew."""
    return digest_of((spec.seed, spec.prompts, spec.max_prompt_tokens, spec.max_new_tokens, load_corpus().digest))


def _evidence(index: int, row: RowDivergence, first: int) -> PromptEvidence:
    kl, reverse_kl, agreement = row.kl[first:], row.reverse_kl[first:], row.agreement[first:]
    if not len(kl):
        return PromptEvidence(prompt=index, tokens=0, error="the teacher's continuation is empty", fault=Fault.TEACHER)
    return PromptEvidence(
        prompt=index,
        tokens=len(kl),
        kl=float(kl.mean()),
        reverse_kl=float(reverse_kl.mean()),
        top1=float(agreement.mean()),
    )
