"""What is wrong with a training run is found here, before any model's weights are loaded.

Read are configurations, tokenizers and headers: of the student, of a teacher in process, of datasets of signals. Each
refusal is one line that begins with the path of the key in the recipe.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.integrations.integration_utils import get_available_reporting_integrations

from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.distill.arguments import Arguments, training_arguments
from limbeck.distill.data_checks import check_lengths, check_stored, check_tokens, open_sources
from limbeck.distill.layers import Pairs, state_width
from limbeck.distill.loss_checks import check_layers, check_signal, check_widths, configured_terms, evaluated_terms
from limbeck.distill.places import run_folder
from limbeck.distill.recipe import DatasetTeacher, Recipe
from limbeck.distill.rollout import check_rollout
from limbeck.distill.sources import Opened, Stored
from limbeck.distill.starting import Start, check_adapters, open_config, start
from limbeck.distill.teachers.needs import Needs
from limbeck.distill.teachers.online import TeacherFacts, inspect_teacher
from limbeck.distill.teachers.settings import HfTeacher
from limbeck.distill.term import Term
from limbeck.errors import UserError


@dataclass(frozen=True)
class Checked:
    """A recipe that can be trained, and what was learnt about it on the way.

    Attributes:
        recipe: the recipe.
        arguments: its training arguments.
        terms: its losses.
        evaluated: what is computed on held-out rows; empty: there are none.
        sources: opened, by their keys in the recipe.
        tokenizer: the student's.
        tokenizer_digest: of it.
        start: the student before its weights are read.
        layers: pairs of blocks whose states are compared.
        relations: pairs of blocks whose relations are compared.
        needs: what is asked of a teacher.
        teacher: what is known of one that answers while the student trains; None: the signals stand in the dataset.
        teacher_config: of the one teacher in process; None: there is none, or several.
    """

    recipe: Recipe
    arguments: Arguments
    terms: tuple[Term, ...]
    evaluated: tuple[Term, ...]
    sources: dict[str, Opened]
    tokenizer: PreTrainedTokenizerBase
    tokenizer_digest: str
    start: Start
    layers: Pairs
    relations: Pairs
    needs: Needs
    teacher: TeacherFacts | None
    teacher_config: Any

    @property
    def compares(self) -> bool:
        """Return whether a loss compares with a teacher's signal."""
        return any(term.loss.signals for term in (*self.terms, *self.evaluated))

    @property
    def widths(self) -> tuple[int, int]:
        """Return the width of the student's states and of the teacher's."""
        theirs = 0 if self.teacher_config is None else state_width(self.teacher_config)
        return state_width(self.start.config), theirs


def check(recipe: Recipe) -> Checked:
    """Check a recipe.

    Raises:
        UserError: something in it can't be; the message begins with the key.
    """
    terms = configured_terms(recipe)
    evaluates = recipe.dataset.eval_dataset is not None or recipe.evaluation.share > 0
    arguments = training_arguments(recipe, run_folder(recipe.output_path), evaluated=evaluates)
    _check_packages(recipe, arguments)
    sources = open_sources(recipe)
    if isinstance(recipe.teacher, DatasetTeacher):
        check_stored(recipe.teacher, terms, sources)
    signals = [one for one in sources.values() if isinstance(one, Stored)]
    tokenizer = load_tokenizer(recipe.tokenizer_source, recipe.model_revision)
    digest = tokenizer_digest(tokenizer)
    begun = start(recipe, tokenizer, max([len(tokenizer), *(one.vocabulary for one in signals)]))
    check_tokens(recipe, begun, digest, signals)
    check_lengths(recipe, begun, list(sources.values()))

    teacher_config = _teacher_config(recipe)
    layers, relations = check_layers(recipe, terms, begun, teacher_config)
    on_signal = [
        term for term in terms if term.loss.over != "relations" and not (layers and term.loss.over == "states")
    ]
    needs = Needs.of(
        on_signal,
        layers=[teacher for _, teacher in layers],
        relations=[teacher for _, teacher in relations],
        vocabulary=begun.vocabulary,
    )
    facts: TeacherFacts | None = None
    kind = None
    if not isinstance(recipe.teacher, DatasetTeacher):
        facts = inspect_teacher(recipe.teacher, needs)
        check_signal(terms, facts.kind, facts.temperatures, mapped=bool(layers))
        kind = facts.kind if facts.tokenizer_digest == digest else None
        on_tokens = any(term.loss.signals and term.loss.over != "ranks" for term in on_signal)
        if kind is None and (on_tokens or layers or relations):
            raise UserError(
                f"teacher: its tokenizer ({facts.tokenizer_digest[:12]}…) is not the student's ({digest[:12]}…), which "
                "only the loss 'uld' can bear. limbeck tokenizer transplant moves a student to the teacher's."
            )
    elif signals:
        kind = signals[0].kind
        check_signal(terms, kind, signals[0].temperatures, mapped=False)
    if recipe.rollout is not None:
        if facts is None:
            raise UserError(
                "rollout: what the student writes has to be scored by a teacher that is asked (teacher.kind)."
            )
        check_rollout(recipe.rollout, terms)
    if not layers:
        check_widths(terms, begun, teacher_config, signals)
    evaluated = evaluated_terms(recipe, terms, kind) if evaluates else ()
    return Checked(
        recipe, arguments, terms, evaluated, sources, tokenizer, digest, begun, layers, relations, needs, facts,
        teacher_config,
    )  # fmt: skip


def _check_packages(recipe: Recipe, arguments: Arguments) -> None:
    """Refuse what needs a package that is not installed."""
    check_adapters(recipe.lora)
    if recipe.lora is not None and (arguments.values.fsdp or arguments.values.deepspeed):
        raise UserError("lora: adapters can't be added to weights that FSDP or DeepSpeed divide. Train on whole ones.")
    optim = str(recipe.training_args.get("optim", ""))
    if recipe.optimizer is None and ("8bit" in optim or "paged" in optim) and not _installed("bitsandbytes"):
        raise UserError(f"training_args.optim: {optim} needs the package bitsandbytes, which is not installed here.")
    here = get_available_reporting_integrations()
    for tracker in arguments.values.report_to or ():
        if tracker not in here:
            raise UserError(f"training_args.report_to: {tracker} is not installed here. Install it, or say 'none'.")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _teacher_config(recipe: Recipe) -> Any:
    """Return the configuration of the one teacher in process; None where there is none, or several."""
    teacher = recipe.teacher
    if not isinstance(teacher, HfTeacher):
        return None
    return open_config(
        teacher.path, "teacher.path", revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
    )
