"""`limbeck evaluate-infill MODEL`: how well it fills in the middle."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate_infill(
    model: Annotated[str, typer.Argument(help="The model's folder (packed students too), or `pocket`.")],
    dataset: Annotated[
        str | None,
        typer.Option(help="Documents: a file, a folder, a glob. Default: the pocket world's held-out files."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for infill.json, with every answer.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change what is asked, such as spans=500 or longest=100.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps; packed students: cpu, cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of a packed student.")] = None,
) -> None:
    """Measure exact match, edit similarity and stop rate on spans cut out of documents, with 95 % intervals."""
    from dataclasses import asdict

    from limbeck.data.tokenizer import load_tokenizer
    from limbeck.evaluate.infill import InfillSettings, draw_spans, infill, summarise
    from limbeck.files import write_json
    from limbeck.models.local import check_folder, open_local
    from limbeck.pocket.measure import shown
    from limbeck.pocket.places import resolve
    from limbeck.progress import say
    from limbeck.settings import validate_settings, with_overrides

    asked = validate_settings(with_overrides({}, settings or []), InfillSettings, "--set")
    folder = check_folder(resolve(model))
    tokenizer = load_tokenizer(folder)
    spans = draw_spans(_documents(dataset), asked)
    found = infill(open_local(folder, tokenizer, device=device, threads=threads), tokenizer, spans, asked)
    summary = summarise(found)
    say(f"{summary.spans} spans of {summary.documents} documents, with 95 % intervals")
    say(f"exact match      {shown(summary.exact_match, 3)}")
    say(f"edit similarity  {shown(summary.edit_similarity, 3)}")
    say(f"stop rate        {shown(summary.stop_rate, 3)}")
    if out is not None:
        answers = [{**asdict(one), "exact": one.exact, "similarity": one.similarity} for one in found]
        write_json(out / "infill.json", {"settings": asked.model_dump(), **asdict(summary), "answers": answers})
        typer.echo(out / "infill.json")


def _documents(dataset: str | None) -> list[tuple[str, str]]:
    """Return names and texts of documents."""
    from limbeck.data.documents import read_documents
    from limbeck.pocket.corpus import load_corpus

    if dataset is None:
        return [(document.path, document.text) for document in load_corpus().documents["held_out"]]
    return list(read_documents(dataset))
