"""Replays: identical where nothing was touched; otherwise the first thing that differs is named."""

import copy
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from limbeck.arena.local import LocalArena
from limbeck.arena.replay import export_round, first_difference, round_bundle, verify_bundle
from limbeck.errors import IntegrityError, UserError
from tests.arena.world import FakeEvaluator, arena_with, make_model


@pytest.fixture
def arena(tmp_path: Path, teacher: Path) -> LocalArena:
    models = {
        name: make_model(tmp_path / name, teacher, kl=kl, seed=int(kl * 10)) for name, kl in (("a", 0.5), ("b", 0.4))
    }
    arena = arena_with(tmp_path / "arena", teacher, models)
    assert arena.run_round(FakeEvaluator()) is not None
    return arena


def tamper(arena: LocalArena, sql: str) -> None:
    with sqlite3.connect(arena.store.path) as connection:
        assert connection.execute(sql).rowcount > 0


def test_an_untouched_round_is_identical(arena: LocalArena, tmp_path: Path) -> None:
    number = arena.last_round()
    assert number is not None
    replay = arena.verify(number)
    assert (replay.identical, replay.difference) == (True, "")
    export_round(arena.store, number, tmp_path / "round.json")
    assert verify_bundle(json.loads((tmp_path / "round.json").read_text())) == replay


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("UPDATE evidence SET kl = kl * 0.5 WHERE prompt = 3", "the evidence of"),
        ("UPDATE evidence SET tokens = 8 WHERE prompt = 0", "the evidence of"),
        ("UPDATE prompts SET digest = replace(digest, substr(digest, 1, 1), 'z') WHERE prompt = 0", "the prompts"),
        ("UPDATE verdicts SET body = replace(body, 'crowned', 'lost')", "the verdict"),
        ("UPDATE participants SET role = 'king' WHERE rowid = 1", "plan"),
        ("UPDATE rounds SET block_hash = replace(block_hash, '0x', '0y')", "the block's hash is not the chain's"),
    ],
)
def test_what_was_altered_is_named(arena: LocalArena, sql: str, named: str) -> None:
    number = arena.last_round()
    assert number is not None
    tamper(arena, sql)
    replay = arena.verify(number)
    assert not replay.identical
    assert named in replay.difference


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("UPDATE events SET body = replace(body, '\"round\"', '\"ring\"') WHERE number = 5", "event 5 was altered"),
        ("UPDATE events SET previous = hash WHERE number = 4", "event 4 was altered"),
        ("DELETE FROM events WHERE number = 3", "event 3 is missing"),
        ("UPDATE events SET body = 'no JSON' WHERE number = 2", "event 2 was altered"),
    ],
)
def test_the_event_log_names_the_first_broken_event(arena: LocalArena, sql: str, named: str) -> None:
    tamper(arena, sql)
    with pytest.raises(IntegrityError, match=named):
        arena.store.verify_events()


def test_an_altered_configuration_is_found(arena: LocalArena) -> None:
    tamper(arena, "UPDATE configs SET body = replace(body, '0.01', '0.02')")
    with pytest.raises(IntegrityError, match="configuration 1 was altered"):
        arena.verify(arena.last_round())  # type: ignore[arg-type]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        return [found for key in value for found in leaves(value[key], (*path, key))]
    if isinstance(value, list) and value:
        return [found for index in range(len(value)) for found in leaves(value[index], (*path, index))]
    return [path]


def test_no_value_that_the_verdict_rests_on_can_be_altered_in_a_bundle(arena: LocalArena) -> None:
    """Every leaf of configuration, prompts, evidence, verdict and events, one after the other."""
    bundle = round_bundle(arena.store, arena.last_round())  # type: ignore[arg-type]
    tried = 0
    for path in leaves(bundle):
        if path[0] in ("format", "round", "evaluator", "admissions", "verdict_digest"):
            continue
        altered = copy.deepcopy(bundle)
        node = altered
        for key in path[:-1]:
            node = node[key]
        old = node[path[-1]]
        node[path[-1]] = old + 1 if isinstance(old, int | float) and not isinstance(old, bool) else f"{old}?"
        tried += 1
        try:
            replay = verify_bundle(altered)
        except UserError:
            continue
        assert not replay.identical, path
        assert replay.difference, path
    assert tried > 100


def test_rounds_that_are_not_there(arena: LocalArena) -> None:
    with pytest.raises(UserError, match="no such round"):
        arena.verify(99)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not a round bundle"):
        verify_bundle({"format": "other"})
    with pytest.raises(UserError, match="not a whole round bundle"):
        verify_bundle({"format": "limbeck-round-1"})


def test_first_difference_names_the_path() -> None:
    assert (
        first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "v")
        == "v.a[1].b is 2 in the record and 3 in the replay"
    )
    assert first_difference({"a": 1}, {"a": 1.0}, "v")
    assert first_difference({"a": 1}, {}, "v") == "v.a is only in the record"
    assert first_difference([1, None], [1, None], "v") == ""
