"""An inspection on the terminal: standard output, for it is the result that was asked for."""

from rich.console import Console
from rich.table import Table

from limbeck.signals.inspection import Inspection
from limbeck.signals.inspection_page import named_parts

QUANTILES = (0.05, 0.5, 0.95)


def print_inspection(found: Inspection, console: Console | None = None) -> None:
    """Print an inspection as tables."""
    console = console or Console(highlight=False)
    manifest = found.manifest
    settings = ", ".join(f"{key} {value}" for key, value in manifest.codec.items() if key != "codec")
    state = "complete" if manifest.complete else f"not finished, {found.rows:,} of {manifest.samples:,} rows are there"
    facts = Table(title=found.where, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in {
        "teacher": f"{manifest.teacher.repo} at {manifest.teacher.revision}",
        "tokenizer": manifest.tokenizer_digest,
        "source text": manifest.text_digest,
        "codec": f"{manifest.codec['codec']} ({settings})",
        "vocabulary": f"{manifest.vocabulary:,}",
        "rows": f"{found.rows:,} in {len(manifest.shards):,} shards; {state}",
        "tokens": f"{found.tokens:,}, the longest row {found.longest:,}",
        "documents": "numbered" if manifest.documents else "each row is one",
        "said": f"{found.said:,} of {found.tokens_seen:,} positions in {found.rows_seen:,} rows",
    }.items():
        facts.add_row(name, value)
    console.print(facts)
    parts = Table(box=None, padding=(0, 2, 0, 0), title="bytes", title_justify="left")
    for head in ("part", "a token", "share"):
        parts.add_column(head, justify="left" if head == "part" else "right")
    for name, size in {**found.parts, "all": found.bytes}.items():
        parts.add_row(name, f"{size / max(found.tokens, 1):.2f}", f"{size / max(found.bytes, 1):.1%}")
    console.print()
    console.print(parts)
    if found.beside:
        console.print(f"beside the shards, once: {found.beside:,} bytes")
    said = Table(box=None, padding=(0, 2, 0, 0), title="positions", title_justify="left")
    for head in ("", *(f"{point:.0%}" for point in QUANTILES), "mean"):
        said.add_column(head, justify="right" if head else "left")
    for name, values in named_parts(found).items():
        said.add_row(
            name, *(f"{float(values.quantile(point)):.3g}" for point in QUANTILES), f"{float(values.mean()):.3g}"
        )
    console.print()
    console.print(said)
