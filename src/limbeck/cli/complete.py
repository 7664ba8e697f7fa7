"""`limbeck complete MODEL --prefix TEXT --suffix TEXT`: what belongs between two texts."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def complete(
    model: Annotated[str, typer.Argument(help="The model's folder (packed students too), or `pocket`.")],
    prefix: Annotated[str | None, typer.Option(help="The text before the gap.")] = None,
    suffix: Annotated[str | None, typer.Option(help="The text behind it.")] = None,
    prefix_file: Annotated[str | None, typer.Option(help="The file that holds it; `-`: standard input.")] = None,
    suffix_file: Annotated[str | None, typer.Option(help="The file that holds it; `-`: standard input.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest completion. Default: 128, or what the context leaves.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most probable token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the fewest tokens of this mass.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends it; may be repeated.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Print the texts around it too.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps; packed students: cpu, cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of a packed student.")] = None,
) -> None:
    """Fill in the middle: write what belongs between a prefix and a suffix, as it is written."""
    from limbeck.data.fim import infill_prompt
    from limbeck.data.tokenizer import load_tokenizer
    from limbeck.engines.completions import Sampling
    from limbeck.engines.streaming import TextStream
    from limbeck.engines.writing import room_for
    from limbeck.models.local import check_folder, open_local
    from limbeck.pocket.places import resolve
    from limbeck.progress import say
    from limbeck.settings import validate_settings

    before, after = _sides(prefix, suffix, prefix_file, suffix_file)
    folder = check_folder(resolve(model))
    tokenizer = load_tokenizer(folder)
    prompt = infill_prompt(tokenizer, before, after)
    generator = open_local(folder, tokenizer, device=device, threads=threads)
    asked = {
        "max_tokens": room_for(len(prompt), generator.context, max_tokens, 128), "temperature": temperature,
        "top_p": top_p, "seed": seed, "stop": tuple(stop or ()),
    }  # fmt: skip
    sampling = validate_settings(asked, Sampling, "limbeck complete")
    stream = TextStream(tokenizer, generator.ends, sampling.stop)
    _show(before if whole else "")
    [completion] = generator.generate([prompt], sampling, on_token=lambda _, __, token: _show(stream.push(token)))
    _show(stream.rest(completion.text) + (after if whole else ""))
    _show("\n")
    if completion.finish_reason == "length":
        say(f"(cut at {sampling.max_tokens} tokens)")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _sides(prefix: str | None, suffix: str | None, prefix_file: str | None, suffix_file: str | None) -> tuple[str, str]:
    """Return the texts before and behind the gap."""
    from limbeck.errors import UserError

    if prefix_file == suffix_file == "-":
        raise UserError("--prefix-file and --suffix-file: only one of them can be standard input.")
    if all(side is None for side in (prefix, suffix, prefix_file, suffix_file)):
        raise UserError("there is nothing around the gap. Give --prefix, --suffix, or both.")
    return _side("prefix", prefix, prefix_file), _side("suffix", suffix, suffix_file)


def _side(name: str, text: str | None, file: str | None) -> str:
    from limbeck.errors import UserError

    if text is not None and file is not None:
        raise UserError(f"--{name} and --{name}-file say the same thing. Leave one of them out.")
    if file is None:
        return text or ""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file (--{name}-file).") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({' '.join(str(error).split())}).") from error
