"""Text that comes in pieces is the completion's text; nothing comes out that a later token takes back."""

from hypothesis import given
from hypothesis import strategies as st

from limbeck.engines.streaming import TextStream
from limbeck.engines.writing import TextStopper
from tests.engines.tiny import tokenizer_of

TOKENIZER = tokenizer_of()
EOS = TOKENIZER.eos_token_id
ENDS = frozenset({EOS})
stops = st.lists(st.text("ab\n é", min_size=1, max_size=4), max_size=2).map(tuple)


@given(text=st.text(st.sampled_from("ab\n é漢🙂"), max_size=30), stop=stops, ended=st.booleans())
def test_pieces_are_the_text(text: str, stop: tuple[str, ...], ended: bool) -> None:
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([EOS] if ended else [])]
    stopper = TextStopper(TOKENIZER, ENDS, stop, 1)
    stream, written, shown = TextStream(TOKENIZER, ENDS, stop), [], ""
    for token in ids:
        written.append(token)
        shown += stream.push(token)
        if stopper.see(0, written, len(written)):
            break
    whole = stopper.text_of(written)
    assert whole.startswith(shown)
    assert shown + stream.rest(whole) == whole


def test_what_is_certain_comes_at_once() -> None:
    stream = TextStream(TOKENIZER, ENDS, ("\n\n",))
    pieces = [stream.push(token) for token in TOKENIZER("a\nb é", add_special_tokens=False)["input_ids"]]
    assert pieces[0] == "a"
    assert "".join(pieces) == "a\nb é"
