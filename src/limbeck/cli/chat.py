"""`limbeck chat MODEL`: a conversation on the terminal."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbeck.engines.writing import LocalGenerator

HELP = "/quit ends the conversation, /new begins another, /help shows this."


def chat(
    model: Annotated[str, typer.Argument(help="The model's folder (packed students too), or `pocket`.")],
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer. Default: 256, or what fits.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most probable token each time.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the fewest tokens of this mass.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of what is drawn: the same turns get the same answers.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends an answer; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps; packed students: cpu, cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of a packed student.")] = None,
) -> None:
    """Chat with a model; turns come from standard input, answers go to standard output as they are written."""
    from limbeck.data.tokenizer import load_tokenizer
    from limbeck.engines.completions import Sampling
    from limbeck.errors import UserError
    from limbeck.models.local import check_folder, open_local
    from limbeck.pocket.places import resolve
    from limbeck.progress import say
    from limbeck.settings import validate_settings

    asked = {"temperature": temperature, "top_p": top_p, "stop": tuple(stop or ())}
    sampling = validate_settings(asked, Sampling, "limbeck chat")
    folder = check_folder(resolve(model))
    tokenizer = load_tokenizer(folder)
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{folder}: its tokenizer has no chat template. `limbeck complete` needs none.")
    generator = open_local(folder, tokenizer, device=device, threads=threads)
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[dict[str, Any]] = list(opening)
    say(f"{model}: {HELP}")
    while (turn := _turn()) is not None:
        if turn == "/quit":
            break
        if turn == "/new":
            messages = list(opening)
        elif turn.startswith("/"):
            say(HELP)
        elif turn:
            messages.append({"role": "user", "content": turn})
            try:
                answer = _answer(generator, tokenizer, messages, sampling, max_tokens, seed)
            except UserError as error:  # the conversation has become too long: another may be begun
                messages.pop()
                say(f"{error} /new begins another conversation.")
                continue
            messages.append({"role": "assistant", "content": answer})


def _answer(
    generator: "LocalGenerator", tokenizer: Any, messages: list[dict[str, Any]], sampling: Any, wanted: int | None,
    seed: int,
) -> str:  # fmt: skip
    """Print the answer to a conversation as it is written, and return it; Ctrl-C ends an answer, not the program."""
    from limbeck.engines.completions import prompt_ids
    from limbeck.engines.streaming import TextStream
    from limbeck.engines.writing import room_for
    from limbeck.seeds import derive_seed

    prompt = prompt_ids(tokenizer, messages)
    changes = {
        "max_tokens": room_for(len(prompt), generator.context, wanted, 256),
        "seed": derive_seed(seed, "turn", len(messages)) >> 33,
    }
    stream, said = TextStream(tokenizer, generator.ends, sampling.stop), []

    def show(text: str) -> None:
        said.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        [completion] = generator.generate(
            [prompt], sampling.model_copy(update=changes), on_token=lambda _, __, token: show(stream.push(token))
        )
        show(stream.rest(completion.text))
    except KeyboardInterrupt:
        pass
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(said)


def _turn() -> str | None:
    """Return the next line of standard input, or None at its end; the prompt is shown on a terminal only."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None
