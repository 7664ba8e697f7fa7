"""The page of an inspection: facts, where the bytes go, and how much of the distributions is there, as plots."""

import torch
from torch import Tensor

from limbeck.pages.cells import Cell, Key
from limbeck.pages.plots import Bars, Series, bars_with_intervals, curves
from limbeck.pages.report import Fact, Report
from limbeck.signals.inspection import Inspection

POINTS = 200
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def page_of(found: Inspection) -> Report:
    """Return the page; `save` writes it."""
    manifest = found.manifest
    report = Report(
        "Dataset of signals",
        f"{found.where}: what {manifest.teacher.repo} says about the next token",
        f"Made by `limbeck signals inspect {found.where} --html`.",
    )
    complete = Fact("yes", f"{found.rows:,} rows", tone="good")
    if not manifest.complete:
        complete = Fact("no", f"{found.rows:,} of {manifest.samples:,} rows", tone="warn")
    report.facts(
        {
            "Codec": Fact(str(manifest.codec["codec"]), f"kind {manifest.kind}, version {manifest.codec['version']}"),
            "Tokens": Fact(found.tokens, f"the longest row has {found.longest:,}"),
            "Bytes a token": Fact(f"{found.bytes / max(found.tokens, 1):.1f}", f"{found.bytes:,} bytes in all"),
            "Complete": complete,
        }
    )
    report.section("What it is")
    settings = ", ".join(f"{key} {value}" for key, value in manifest.codec.items() if key not in ("codec", "version"))
    report.table(
        ["", "value"],
        [
            ["Teacher", manifest.teacher.repo],
            ["Revision", Key(manifest.teacher.revision)],
            ["Tokenizer", Key(manifest.tokenizer_digest)],
            ["Source text", Key(manifest.text_digest)],
            ["Vocabulary", f"{manifest.vocabulary:,}"],
            ["Settings of the codec", settings or "none"],
            ["Document numbers", "yes" if manifest.documents else "no"],
            ["Shards", f"{len(manifest.shards):,} of {len(manifest.ranges()):,}"],
        ],
    )
    report.section("Where the bytes go")
    shares = [size / max(found.tokens, 1) for size in found.parts.values()]
    report.figure(
        bars_with_intervals(
            list(found.parts), [Bars("shards", shares, shares, shares)], "bytes a token", percent=False
        ),
        "Bytes of each part of the shards, by token.",
    )
    if found.beside:
        report.text(f"Beside the shards, once for the whole dataset: {found.beside:,} bytes.")
    report.section(
        "What it says",
        f"Of {found.rows_seen:,} rows, evenly spread over the dataset: {found.tokens_seen:,} tokens, of which "
        f"{found.trained_seen:,} are trained; {found.said:,} positions say something.",
    )
    _plots(report, found)
    return report


def _plots(report: Report, found: Inspection) -> None:
    said = found.distributions
    if len(said.captured) and found.manifest.kind in ("topk", "sampled"):
        report.figure(
            curves([_ranked("", said.captured)], "share of positions, the least first", "captured mass"),
            "The mass of the tokens whose probabilities are stored, position by position, sorted.",
        )
    if len(said.entropy_low):
        low, high = said.entropy_low, said.entropy_high
        series = [_ranked("entropy", low)]
        if not torch.equal(low, high):
            series = [_ranked("at least: the tail is one token", low), _ranked("at most: the tail is even", high)]
        report.figure(
            curves(series, "share of positions, the least first", "entropy in nats"),
            "The entropy of the teacher's distributions, position by position, sorted.",
        )
    if len(said.entries) and found.manifest.kind in ("topk", "sampled"):
        report.figure(
            curves([_ranked("", said.entries)], "share of positions, the least first", "entries", log_y=True),
            "How many tokens are stored at a position, sorted.",
        )
    if len(said.surprise):
        report.figure(
            curves([_ranked("", said.surprise)], "share of positions, the least first", "nats"),
            "How little the teacher expected the token that follows: minus its log-probability, sorted.",
        )
    rows: list[list[Cell]] = [
        [name, *(float(part.quantile(point)) for point in QUANTILES), float(part.mean())]
        for name, part in named_parts(found).items()
    ]
    if rows:
        heads = ["", "least", *(f"{point:.0%}" for point in QUANTILES[1:-1]), "most", "mean"]
        report.table(heads, rows, "Over positions. In between: the value that this share of positions doesn't exceed.")


def named_parts(found: Inspection) -> dict[str, Tensor]:
    """Return what is known of each position, by the name that readers see."""
    said = found.distributions
    parts = {
        "captured mass": said.captured,
        "entropy, at least": said.entropy_low,
        "entropy, at most": said.entropy_high,
        "entries": said.entries,
        "surprise": said.surprise,
    }
    # a quantile of more values than torch takes at once would be refused
    return {name: _thinned(part) for name, part in parts.items() if len(part)}


def _thinned(values: Tensor, most: int = 1 << 20) -> Tensor:
    return values.double()[:: -(-len(values) // most)]


def _ranked(name: str, values: Tensor) -> Series:
    """Return a curve of the sorted values over the share of positions."""
    shares = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    return Series(name, shares.tolist(), torch.quantile(_thinned(values), shares).tolist())
