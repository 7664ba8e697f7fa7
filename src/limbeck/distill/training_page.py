"""`training.html`: what happened in a run, on one page that asks nothing of any other machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from limbeck.pages.plots import Series, curves
from limbeck.pages.report import Fact, Report

NOT_LOSSES = frozenset({"step", "epoch", "loss", "grad_norm", "learning_rate", "num_input_tokens_seen"})
FIGURES = ("tokens_per_second", "signal_bytes_per_second", "memory_gb", "gpu_memory_gb")

Entries = Sequence[Mapping[str, float]]


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a run.

    Args:
        path: where it goes.
        result: what `training.json` holds: `recipe`, `history`, `evaluations`, `figures`, `teacher`, `environment`.
    """
    recipe, history, evaluations = result["recipe"], result["history"], result["evaluations"]
    figures, environment = result["figures"], result["environment"]
    report = Report(
        f"Training {Path(recipe['output_path']).name}",
        f"{recipe['project_name']}: {_started_from(recipe['model'])}, {figures['steps']:,} steps",
        footer=f"limbeck {environment['limbeck']} train, on {environment['processes']} x {environment['device']}",
    )
    report.facts(_facts(result))
    names = [name for name in _names(history) if name not in (*NOT_LOSSES, *FIGURES)]
    losses = [name for name in names if not name.startswith("ternary_")]
    if history:
        report.section("Losses", "Each loss is a mean over the tokens that counted. Minimised is their weighted sum.")
        report.figure(_curves(history, ["loss"], "weighted sum of the losses"), "The loss that is minimised.")
        for name in losses:
            report.figure(_curves(history, [name], name), f"`{name}` on the training rows.")
    if evaluations:
        report.section("Held-out rows", "Means over all tokens of rows that are not trained on.")
        for name in (name for name in _names(evaluations) if name.startswith("eval_")):
            if name not in ("eval_loss", "eval_tokens"):
                report.figure(_curves(evaluations, [name], name), f"`{name.removeprefix('eval_')}` on held-out rows.")
    if history and len(losses) < len(names):
        _ternary_layers(report, history)
    if history:
        report.section("Speed and memory")
        for names, label, caption in (
            (["tokens_per_second"], "tokens/s", "Tokens trained a second, over all processes, padding not counted."),
            (["signal_bytes_per_second"], "bytes/s", "Bytes of stored signals read a second."),
            (["memory_gb", "gpu_memory_gb"], "GB", "Memory of one process, and the most that its GPU held."),
            (["learning_rate"], "learning rate", "The schedule of the learning rate."),
            (["grad_norm"], "norm", "Norm of the gradient, before it was clipped."),
        ):
            if there := [name for name in names if name in _names(history)]:
                report.figure(_curves(history, there, label), caption)
    report.section("How it was made")
    if result["teacher"] is not None:
        report.table(["teacher", ""], [[str(key), str(value)] for key, value in _flat(result["teacher"]).items()])
    report.table(["environment", ""], [[str(key), str(value)] for key, value in environment.items()])
    report.code(yaml.safe_dump(_without_nothing(recipe), sort_keys=False, allow_unicode=True))
    report.save(path)


def _started_from(model: Any) -> str:
    """Return what training started from, in words."""
    if isinstance(model, str):
        return model
    return f"{model['preset']}, untrained" if "preset" in model else f"{model['from_dense']}, made ternary"


def _ternary_layers(report: Report, history: Entries) -> None:
    """Add the section on the health of ternary layers."""
    fallen = max(int(entry.get("ternary_fallen", 0)) for entry in history)
    told = "Means over all layers, at each logged step."
    if fallen:
        told += f" The scale of {fallen} layers fell tenfold: weight decay or the learning rate is too high."
    report.section("Ternary layers", told)
    for names, label, caption in (
        (["minus", "zero", "plus"], "share", "Shares of the codes -1, 0 and 1."),
        (["flips"], "share", "Codes that changed since the last log."),
        (["update"], "update / gamma", "Root mean square of what the weights changed by since the last log."),
        (["least_scale"], "gamma", "The least scale of any layer."),
        (["largest_input"], "input", "The largest input of any layer, in absolute value."),
        (["strength"], "strength", "How much of the rounding was applied: 0 is a dense student, 1 a ternary one."),
    ):
        report.figure(_curves(history, [f"ternary_{name}" for name in names], label), caption)


def _facts(result: Mapping[str, Any]) -> dict[str, Fact]:
    history, evaluations, figures = result["history"], result["evaluations"], result["figures"]
    facts = {}
    if history:
        facts["Loss"] = Fact(f"{history[-1]['loss']:.4f}", f"{history[0]['loss']:.4f} at step {history[0]['step']}")
    for name, label in (("eval_kl", "Held-out KL"), ("eval_loss", "Held-out loss")):
        if evaluations and name in evaluations[-1]:
            first = evaluations[0]
            facts[label] = Fact(f"{evaluations[-1][name]:.4f}", f"{first[name]:.4f} at step {first['step']}")
            break
    speeds = [entry["tokens_per_second"] for entry in history if "tokens_per_second" in entry]
    if speeds:
        facts["Tokens a second"] = Fact(f"{sorted(speeds)[len(speeds) // 2]:,.0f}", "median of what was logged")
    facts["Steps"] = Fact(f"{figures['steps']:,}", f"in {_duration(figures['seconds'])}")
    trained = figures["trained_parameters"]
    facts["Parameters"] = Fact(f"{figures['parameters']:,}", f"{trained:,} trained")
    return facts


def _curves(entries: Entries, names: Sequence[str], label: str) -> str:
    series = []
    for name in names:
        there = [entry for entry in entries if name in entry]
        series.append(Series(name, [entry["step"] for entry in there], [entry[name] for entry in there]))
    return curves(series, "step", label)


def _names(entries: Entries) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        members = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(members, dict):
            flat |= _flat({str(name): member for name, member in members.items()}, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _without_nothing(value: Any) -> Any:
    """Return a recipe without the keys that are not set."""
    if isinstance(value, dict):
        kept = {key: _without_nothing(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item != {} and item != []}
    return [_without_nothing(item) for item in value] if isinstance(value, list | tuple) else value
