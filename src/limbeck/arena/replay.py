"""Verdicts made again: from a store, or from a round bundle that needs nothing else.

A bundle is one JSON object: configuration, prompts, evidence, admission results, verdict, and the round's events. What
is checked, in this order: each event has its hash; prompts, evidence and verdict are what the events say was recorded;
the plan's king and challengers are the evidence's; and `decide` gives the stored verdict again, byte for byte.

A bundle proves that the verdict follows from the evidence. That the evidence is true is another matter: it takes the
models and the evaluator to measure it again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.arena.chain.interface import Chain
from limbeck.arena.config import ArenaConfig
from limbeck.arena.decision import Role, RoundEvidence, decide
from limbeck.arena.identity import BlockNumber
from limbeck.arena.store import RoundState, Store
from limbeck.arena.store.events import event_hash
from limbeck.errors import IntegrityError, UserError
from limbeck.files import digest_of, write_json
from limbeck.settings import validate_settings

FORMAT = "limbeck-round-1"


@dataclass(frozen=True)
class Replay:
    """What came of making a verdict again; `difference` names the first thing that is not as recorded."""

    round_id: int
    identical: bool
    difference: str
    digest: str
    words: str


def verify_round(store: Store, number: BlockNumber, chain: Chain | None = None) -> Replay:
    """Recompute a round's verdict from the store; with a chain, also hold its block hash to the chain's.

    Raises:
        UserError: there is no such round, or it is not decided yet.
        IntegrityError: the event log was altered, naming the event.
        ChainError: the chain doesn't know the block.
    """
    store.verify_events()
    bundle = round_bundle(store, number)
    if chain is not None and chain.block_hash(number) != bundle["evidence"]["block_hash"]:
        return Replay(number, False, "the block's hash is not the chain's", bundle["verdict_digest"], "")
    return verify_bundle(bundle)


def round_bundle(store: Store, number: BlockNumber) -> dict[str, Any]:
    """Return everything that a round's verdict rests on, as JSON.

    Raises:
        UserError: there is no such round, or it is not decided yet.
    """
    row = store.rounds.get(number)
    if row is None:
        known = ", ".join(str(entry.id) for entry in store.rounds.all()[-10:]) or "none"
        raise UserError(f"round {number}: no such round. Rounds: {known}.")
    verdict = store.rounds.verdict_text(number)
    if verdict is None or row.state in (RoundState.PLANNED, RoundState.MEASURING):
        raise UserError(f"round {number}: not decided yet. Finish it: limbeck validate.")
    participants = store.rounds.participants(number)
    config = store.config_version(row.config)
    return {
        "format": FORMAT,
        "round": number,
        "config": config.model_dump(mode="json"),
        "evaluator": row.evaluator,
        "prompts": [prompt.model_dump(mode="json") for prompt in store.rounds.prompts(number)],
        "evidence": store.rounds.evidence(number).model_dump(mode="json"),
        "admissions": {
            str(entry.commitment): [
                {"name": result.name, "status": result.status, "why": result.why}
                for result in store.commitments.admission(entry.commitment)
            ]
            for entry in participants
        },
        "verdict": json.loads(verdict),
        "verdict_digest": digest_of(json.loads(verdict)),
        "events": [
            {
                "number": event.number,
                "kind": event.kind,
                "body": event.body,
                "previous": event.previous,
                "hash": event.hash,
            }
            for event in store.events()
            if _concerns(
                event.kind, event.body, number, config.digest, {str(entry.commitment) for entry in participants}
            )
        ],
    }


def export_round(store: Store, number: BlockNumber, target: Path) -> None:
    """Write a round's bundle to a file; otherwise as `round_bundle`."""
    write_json(target, round_bundle(store, number))


def verify_bundle(bundle: Mapping[str, Any]) -> Replay:
    """Recompute a verdict with nothing but a bundle.

    Raises:
        UserError: it is no round bundle.
    """
    if bundle.get("format") != FORMAT:
        raise UserError(f"not a round bundle of format {FORMAT}.")
    try:
        number, recorded, events = int(bundle["round"]), dict(bundle["verdict"]), list(bundle["events"])
        config = validate_settings(bundle["config"], ArenaConfig, "bundle: config")
        evidence = validate_settings(bundle["evidence"], RoundEvidence, "bundle: evidence")
        difference = _broken_record(bundle, events, config, evidence)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a whole round bundle ({type(error).__name__}: {error}).") from error
    except IntegrityError as error:
        return Replay(number, False, str(error), "", "")
    verdict = decide(evidence, config.policy)
    difference = difference or first_difference(recorded, verdict.model_dump(mode="json"), "verdict")
    return Replay(number, not difference, difference, digest_of(recorded), verdict.words)


def first_difference(recorded: Any, again: Any, path: str) -> str:
    """Return where two JSON values differ first, in words; empty where they don't."""
    if isinstance(recorded, dict) and isinstance(again, dict):
        for key in sorted({*recorded, *again}):
            if key not in recorded or key not in again:
                return f"{path}.{key} is only in {'the record' if key in recorded else 'the replay'}"
            if found := first_difference(recorded[key], again[key], f"{path}.{key}"):
                return found
        return ""
    if isinstance(recorded, list) and isinstance(again, list):
        if len(recorded) != len(again):
            return f"{path} has {len(recorded)} entries in the record and {len(again)} in the replay"
        pairs = enumerate(zip(recorded, again, strict=True))
        return next((found for i, (a, b) in pairs if (found := first_difference(a, b, f"{path}[{i}]"))), "")
    same = type(recorded) is type(again) and recorded == again
    return "" if same else f"{path} is {recorded!r} in the record and {again!r} in the replay"


def _broken_record(
    bundle: Mapping[str, Any], events: list[dict[str, Any]], config: ArenaConfig, evidence: RoundEvidence
) -> str:
    """Return the first part of the bundle that is not what the events say, in words; empty where all is."""
    for event in events:
        if event_hash(event["number"], event["kind"], event["body"], event["previous"]) != event["hash"]:
            return f"event {event['number']} was altered: its contents do not have its hash"
    bodies = [(event["kind"], event["body"]) for event in events]
    plan = next((body for kind, body in bodies if kind == "round planned"), None)
    if plan is None:
        return "no event tells of the plan"
    king = evidence.king.commitment if evidence.king else None
    challengers = sorted(entry.commitment for entry in evidence.candidates if entry.role is Role.CHALLENGER)
    planned = {"block_hash": plan["block_hash"], "king": plan["king"], "challengers": sorted(plan["challengers"])}
    actual = {"block_hash": evidence.block_hash, "king": king, "challengers": challengers}
    if found := first_difference(planned, actual, "plan"):
        return found
    digests = {
        ("configuration", None): config.digest,
        ("prompts", None): digest_of(bundle["prompts"]),
        ("verdict", None): digest_of(bundle["verdict"]),
    } | {("evidence", entry.commitment): digest_of(entry.model_dump(mode="json")) for entry in evidence.candidates}
    told = {(kind, body.get("commitment")): body["digest"] for kind, body in bodies if "digest" in body}
    for (kind, commitment), digest in digests.items():
        if told.get((kind, commitment)) != digest:
            what = f"the {kind} of {commitment}" if commitment else f"the {kind}"
            return f"{what} is not what the event log says was recorded"
    if sorted(evidence.prompts) != [prompt["index"] for prompt in bundle["prompts"]]:
        return "the evidence is not about the round's prompts"
    return ""


def _concerns(kind: str, body: Mapping[str, Any], number: int, config: str, commitments: set[str]) -> bool:
    if kind == "configuration":
        return bool(body["digest"] == config)
    if kind == "admission":
        return body["commitment"] in commitments
    return body.get("round") == number
