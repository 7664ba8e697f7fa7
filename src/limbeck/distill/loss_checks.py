"""A recipe's losses as terms, and whether what a teacher gives can feed them."""

from collections.abc import Sequence
from typing import Any

from limbeck.distill.layers import AttentionRelationSettings, Pairs, resolve_layers, resolve_relations, state_width
from limbeck.distill.losses import get_loss
from limbeck.distill.recipe import Recipe
from limbeck.distill.sources import Stored
from limbeck.distill.starting import Start
from limbeck.distill.term import Term
from limbeck.errors import UserError


def configured_terms(recipe: Recipe) -> tuple[Term, ...]:
    """Return the recipe's losses.

    Raises:
        UserError: there is no such loss or parameter, or a value that can't be.
    """
    terms: list[Term] = []
    for index, settings in enumerate(recipe.loss_functions):
        key = f"loss_functions.{index}"
        temperature = 1.0 if settings.temperature is None else settings.temperature
        try:
            loss = get_loss(settings.function)
        except UserError as error:
            raise UserError(f"{key}.function: {error}") from error
        if not 0 < temperature < float("inf"):
            raise UserError(f"{key}.temperature: {temperature:g} is no temperature; it has to be positive.")
        try:
            term = Term.of(
                loss, settings.weight, temperature, missing=settings.missing_probability_handling,
                parameters=settings.given,
            )  # fmt: skip
        except UserError as error:
            named = next((name for name in settings.given if name in str(error)), "function")
            raise UserError(f"{key}.{named}: {error}") from error
        if any(term.name == other.name for other in terms):
            raise UserError(
                f"{key}.function: {term.name!r} stands there already; each loss can stand in a recipe once."
            )
        terms.append(term)
    return tuple(terms)


def evaluated_terms(recipe: Recipe, terms: Sequence[Term], kind: str | None) -> tuple[Term, ...]:
    """Return what is computed on held-out rows; the first counts as the loss of an evaluation.

    Args:
        recipe: the recipe.
        terms: its losses.
        kind: of the teacher's signal; None: there is none that can be compared token by token.

    Raises:
        UserError: the recipe names a loss that doesn't exist, or that this signal can't feed.
    """
    own = {term.name: term.loss for term in terms if term.loss.over not in ("relations", "states", "ranks")}
    if recipe.evaluation.losses is None:
        losses = [own.get(name) or get_loss(name) for name in dict.fromkeys(["kl", "cross_entropy", *own])]
        fed = [loss for loss in losses if not loss.signals or kind in loss.signals]
        return tuple(Term(loss, 0.0 if index else 1.0) for index, loss in enumerate(fed))
    named = []
    for index, name in enumerate(recipe.evaluation.losses):
        try:
            loss = own.get(name) or get_loss(name)
            if loss.over == "relations" or (recipe.layer_mapping is not None and loss.over == "states"):
                raise UserError(f"{name!r} compares inner layers, which are looked at in training only.")
            named.append(Term(loss, 0.0 if index else 1.0))
            named[-1].check(kind or "text")
        except UserError as error:
            raise UserError(f"evaluation.losses.{index}: {error}") from error
    return tuple(named)


def check_signal(terms: Sequence[Term], kind: str, captured: tuple[float, ...], *, mapped: bool) -> None:
    """Refuse losses that a teacher's signal can't feed.

    Args:
        terms: the recipe's.
        kind: of the signal.
        captured: the temperatures whose normaliser it holds.
        mapped: whether losses on states compare mapped layers, and not the signal.

    Raises:
        UserError: the key of the loss, or of its temperature, is named.
    """
    for index, term in enumerate(terms):
        if term.loss.over == "relations" or (mapped and term.loss.over == "states"):
            continue
        try:
            term.check(kind, captured)
        except UserError as error:
            name = "temperature" if str(error).startswith("temperature") else "function"
            raise UserError(f"loss_functions.{index}.{name}: {str(error).removeprefix('temperature ')}") from error


def check_layers(recipe: Recipe, terms: Sequence[Term], begun: Start, teacher_config: Any) -> tuple[Pairs, Pairs]:
    """Return the pairs of blocks whose states, and whose relations, losses compare.

    Args:
        recipe: the recipe.
        terms: its losses.
        begun: its student.
        teacher_config: of the one teacher in process; None: there is none.

    Raises:
        UserError: no loss or no teacher goes with a mapping, or a model has no such block.
    """
    on_states = any(term.loss.over == "states" for term in terms)
    on_relations = any(term.loss.over == "relations" for term in terms)
    if recipe.layer_mapping is not None and not on_states:
        raise UserError("layer_mapping: no loss compares layers. Add hs_mse or hs_cosine, or leave the mapping out.")
    if recipe.attention_relation is not None and not on_relations:
        raise UserError("attention_relation: no loss of this name is in loss_functions. Add it, or leave this out.")
    if (recipe.layer_mapping is not None or on_relations) and teacher_config is None:
        key = "layer_mapping" if recipe.layer_mapping is not None else "loss_functions"
        raise UserError(f"{key}: inner layers are seen of one teacher in process only (teacher.kind: hf).")
    layers: Pairs = ()
    relations: Pairs = ()
    if recipe.layer_mapping is not None:
        layers = resolve_layers(recipe.layer_mapping, begun.config, teacher_config)
    if on_relations:
        where = recipe.attention_relation or AttentionRelationSettings()
        relations = resolve_relations(where, begun.config, teacher_config)
    return layers, relations


def check_widths(terms: Sequence[Term], begun: Start, teacher_config: Any, signals: Sequence[Stored]) -> None:
    """Refuse losses on final states of different widths."""
    own = state_width(begun.config)
    theirs = {state_width(teacher_config)} if teacher_config is not None else {one.width for one in signals}
    other = next((width for width in theirs if width not in (None, own)), None)
    for index, term in enumerate(terms):
        if term.loss.over == "states" and other is not None:
            raise UserError(
                f"loss_functions.{index}.function: {term.name!r} compares the student's states, {own} wide, with the "
                f"teacher's, {other} wide. A layer_mapping learns a projection between them."
            )
