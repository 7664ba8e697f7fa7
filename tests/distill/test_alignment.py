"""Losses on inner layers against the plain formulas in float64, by way of autograd."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.distill.alignment import Alignment, split_terms
from limbeck.distill.layers import AttentionRelationSettings
from limbeck.distill.losses import get_loss
from limbeck.distill.losses.attention_relation import Sight, regroup
from limbeck.distill.taps import Seen
from limbeck.distill.term import Term
from limbeck.distill.view import Relations, TeacherView
from limbeck.errors import LimbeckError
from limbeck.signals.loader import SignalBatch
from tests.distill.test_attention_relation import plain as plain_relation

B, T, OURS, THEIRS = 4, 9, 6, 10
PAIRS = ((0, 1), (1, 3), (1, 5))
WEIGHTS = {"hs_mse": 0.7, "hs_cosine": 1.3, "attention_relation": 0.4}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def terms(*names: str) -> list[Term]:
    return [Term.of(get_loss(name), WEIGHTS[name]) for name in names or WEIGHTS]


def batch() -> SignalBatch:
    attended = torch.ones(B, T, dtype=torch.bool)
    attended[0, 6:] = attended[3, 4:] = False
    counted = attended.clone()
    counted[:, :2] = False
    documents = torch.zeros(B, T, dtype=torch.int64)
    documents[1, 4:] = 1
    ids = torch.zeros(B, T, dtype=torch.int64)
    return SignalBatch(ids, attended, counted, ids, counted, None, documents.masked_fill(~attended, -1))


def part_of(whole: SignalBatch, rows: slice) -> SignalBatch:
    kept: dict[str, Any] = {name: x[rows] for name, x in vars(whole).items() if isinstance(x, Tensor)}
    return SignalBatch(**kept, signal=None)


def relations(heads: int, groups: int, width: int, seed: int) -> Relations:
    return Relations(
        draw(B, heads, T, width, seed=seed),
        draw(B, groups, T, width, seed=seed + 1),
        draw(B, groups, T, width, seed=seed + 2),
    )


def student() -> Seen:
    return Seen({s: draw(B, T, OURS, seed=s) for s in (0, 1)}, {1: relations(4, 2, 6, 20)})


def teacher(width: int = THEIRS) -> TeacherView:
    return TeacherView({t: draw(B, T, width, seed=10 + t) for t in (1, 3, 5)}, {4: relations(8, 4, 8, 40)})


def alignment(*names: str, **settings: Any) -> Alignment:
    return Alignment(terms(*names), PAIRS, (OURS, THEIRS), relations=((1, 4),), seed=3, **settings)


def leaves(seen: Seen) -> list[Tensor]:
    return [*seen.layers.values(), *(x for part in seen.relations.values() for x in vars(part).values())]


def learnable(seen: Seen) -> Seen:
    for leaf in leaves(seen):
        leaf.requires_grad_()
    return seen


def cut(seen: Seen, rows: slice) -> Seen:
    """Some rows of what was seen, in its graph."""
    return Seen(
        {index: state[rows] for index, state in seen.layers.items()},
        {index: Relations(*(x[rows] for x in vars(part).values())) for index, part in seen.relations.items()},
    )


def plain(module: Alignment, seen: Seen, view: TeacherView, over: SignalBatch) -> dict[str, Tensor]:
    """Each term, summed over counted positions, a mean over pairs."""
    sums: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in WEIGHTS}
    for s, t in PAIRS:
        for b, position in over.counted.nonzero().tolist():
            ours, theirs = seen.layers[s][b, position].double(), view.layers[t][b, position].double()
            ours = module.projections[f"{s}_to_{t}"].weight.double() @ ours
            sums["hs_mse"] = sums["hs_mse"] + ((ours - theirs) ** 2).mean() / len(PAIRS)
            cosine = ours @ theirs / (ours.norm() * theirs.norm())
            sums["hs_cosine"] = sums["hs_cosine"] + (1 - cosine) / len(PAIRS)
    sight = Sight(over.counted, over.attention_mask, over.documents)
    for name, heads in (("queries", 4), ("keys", 2), ("values", 2)):
        ours, theirs = (regroup(getattr(side, name), heads) for side in (seen.relations[1], view.relations[4]))
        sums["attention_relation"] = sums["attention_relation"] + plain_relation(ours, theirs, sight)
    return sums


def test_values_and_gradients_are_those_of_the_formulas() -> None:
    module, seen, view, over = alignment(), learnable(student()), teacher(), batch()
    total, means = module(seen, view, over, 17.0)
    total.backward()
    wanted = [leaf.grad for leaf in leaves(seen)] + [weight.grad for weight in module.parameters()]

    exact, other = copy.deepcopy(module).double(), learnable(student())
    expected = plain(exact, other, view, over)
    (sum(WEIGHTS[name] * value for name, value in expected.items()) / 17).backward()
    for name, value in expected.items():
        assert means[name].item() == pytest.approx(value.item() / 17, rel=1e-5)
        assert not means[name].requires_grad
    assert total.item() == pytest.approx(sum(WEIGHTS[name] * mean.item() for name, mean in means.items()), rel=1e-6)
    correct = [leaf.grad for leaf in leaves(other)] + [weight.grad for weight in exact.parameters()]
    for mine, his in zip(wanted, correct, strict=True):
        assert mine is not None and his is not None
        assert his.norm() > 0
        assert (mine - his).norm() <= 1e-5 * his.norm()


def test_splitting_a_batch_gives_the_same_gradient() -> None:
    whole, halves = learnable(student()), learnable(student())
    module, again = alignment(), alignment()
    module(whole, teacher(), batch(), 31)[0].backward()
    view = teacher()
    for rows in (slice(0, 1), slice(1, 4)):
        theirs = cut(Seen(dict(view.layers), dict(view.relations)), rows)
        shown = TeacherView(theirs.layers, theirs.relations)
        again(cut(halves, rows), shown, part_of(batch(), rows), 31)[0].backward()
    for mine, his in zip([*leaves(whole), *module.parameters()], [*leaves(halves), *again.parameters()], strict=True):
        assert mine.grad is not None and his.grad is not None
        assert (mine.grad - his.grad).norm() <= 1e-6 * mine.grad.norm()


def test_what_stands_at_positions_that_do_not_count_reaches_nothing() -> None:
    over = batch()
    clean, spoilt, view, spoilt_view = learnable(student()), student(), teacher(), teacher()
    for state in (*spoilt.layers.values(), *spoilt_view.layers.values()):
        state[~over.counted] = math.nan
    for part in (*spoilt.relations.values(), *spoilt_view.relations.values()):
        for x in vars(part).values():
            x.transpose(1, 2)[~over.attention_mask] = math.nan
    module, again = alignment(), alignment()
    expected = module(clean, view, over, 5)[0]
    found = again(learnable(spoilt), spoilt_view, over, 5)[0]
    assert found.item() == expected.item()
    expected.backward()
    found.backward()
    for mine, his in zip([*leaves(clean), *module.parameters()], [*leaves(spoilt), *again.parameters()], strict=True):
        assert mine.grad is not None and his.grad is not None
        assert torch.equal(mine.grad, his.grad)


def test_a_batch_without_a_counted_position_gives_zero_gradients() -> None:
    empty = batch()
    empty.counted[:] = False
    module, seen = alignment(), learnable(student())
    total, means = module(seen, teacher(), empty, 9)
    total.backward()
    assert total.item() == 0
    assert all(mean.item() == 0 for mean in means.values())
    for leaf in (*leaves(seen), *module.parameters()):
        assert leaf.grad is not None and leaf.grad.abs().sum() == 0


def test_of_states_nothing_is_kept_for_the_backward_pass_but_themselves() -> None:
    seen, view = learnable(student()), teacher()
    there = {state.data_ptr() for state in (*seen.layers.values(), *view.layers.values())}
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        alignment("hs_mse", "hs_cosine")(seen, view, batch(), 1)
    assert there <= {x.data_ptr() for x in kept}
    assert sum(x.numel() for x in kept if x.data_ptr() not in there) < 10


def test_the_teacher_learns_nothing() -> None:
    view = teacher()
    for leaf in leaves(Seen(dict(view.layers), dict(view.relations))):
        leaf.requires_grad_()
    alignment()(learnable(student()), view, batch(), 1)[0].backward()
    assert all(leaf.grad is None for leaf in leaves(Seen(dict(view.layers), dict(view.relations))))


def test_projections_are_where_they_are_needed() -> None:
    assert [tuple(weight.shape) for weight in alignment("hs_mse").parameters()] == [(THEIRS, OURS)] * 3
    assert list(alignment("attention_relation").parameters()) == []
    equal = Alignment(terms("hs_mse"), PAIRS, (OURS, OURS))
    assert list(equal.parameters()) == []
    forced = Alignment(terms("hs_mse"), PAIRS, (OURS, OURS), force_projection=True)
    seen, view = student(), teacher(OURS)
    assert len(list(forced.parameters())) == 3
    assert forced(seen, view, batch(), 3)[0].item() == pytest.approx(equal(seen, view, batch(), 3)[0].item(), rel=1e-6)


def test_projections_begin_as_maps_that_keep_lengths_and_are_drawn_from_the_seed() -> None:
    first, second, other = alignment(), alignment(), Alignment(terms("hs_mse"), PAIRS, (OURS, THEIRS), seed=4)
    states = draw(5, OURS, seed=1)
    for name, projection in first.projections.items():
        torch.testing.assert_close(projection(states).norm(dim=-1), states.norm(dim=-1))
        assert torch.equal(projection.weight, second.projections[name].weight)
        assert not torch.equal(projection.weight, other.projections[name].weight)
    assert not torch.equal(first.projections["1_to_3"].weight, first.projections["1_to_5"].weight)


def test_only_what_a_term_needs_is_looked_at() -> None:
    both = alignment()
    assert (both.student_layers, both.teacher_layers) == ((0, 1), (1, 3, 5))
    assert (both.student_relations, both.teacher_relations) == ((1,), (4,))
    states, related = alignment("hs_cosine"), alignment("attention_relation")
    assert (states.student_relations, states.teacher_relations) == ((), ())
    assert (related.student_layers, related.teacher_layers) == ((), ())


def test_the_relations_that_are_compared_can_be_chosen() -> None:
    def value(**settings: Any) -> float:
        module = alignment("attention_relation", settings=AttentionRelationSettings(**settings))
        return module(student(), teacher(), batch(), 1)[1]["attention_relation"].item()

    parts = [value(of=(part,)) for part in ("queries", "keys", "values")]
    assert value() == pytest.approx(sum(parts), rel=1e-6)
    assert value(of=("keys", "values")) == pytest.approx(parts[1] + parts[2], rel=1e-6)
    assert len({value(relation_heads=heads) for heads in (1, 2, 4)}) == 3


def test_relations_of_several_pairs_are_a_mean() -> None:
    seen = Seen({}, {0: relations(4, 2, 6, 60), 1: relations(4, 2, 6, 20)})

    def value(*pairs: tuple[int, int]) -> float:
        module = Alignment(terms("attention_relation"), relations=pairs)
        return module(seen, teacher(), batch(), 1)[1]["attention_relation"].item()

    assert value((0, 4), (1, 4)) == pytest.approx((value((0, 4)) + value((1, 4))) / 2, rel=1e-6)


def test_a_view_that_lacks_a_block_is_told() -> None:
    view = teacher()
    with pytest.raises(LimbeckError, match="lacks block 5"):
        alignment("hs_mse")(student(), TeacherView({1: view.layers[1], 3: view.layers[3]}), batch(), 1)
    with pytest.raises(LimbeckError, match="lacks block 4"):
        alignment("attention_relation")(student(), TeacherView(), batch(), 1)


def test_losses_on_states_belong_to_alignment_only_where_layers_are_mapped() -> None:
    every = [*terms(), Term.of(get_loss("kl"))]
    outside, inside = split_terms(every, mapped=True)
    assert ([term.name for term in outside], [term.name for term in inside]) == (["kl"], list(WEIGHTS))
    outside, inside = split_terms(every, mapped=False)
    assert [term.name for term in outside] == ["hs_mse", "hs_cosine", "kl"]
    assert [term.name for term in inside] == ["attention_relation"]
