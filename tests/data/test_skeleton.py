"""Skeletons: what is known of a template from one conversation holds for another, or is not used."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import chat
from limbeck.data.chat import Conversation, written_by_template
from limbeck.data.encoding import Written
from limbeck.data.skeleton import skeleton_of
from tests.data.strangers import CHATML, chatml, llama
from tests.data.test_chat import conversations, spelled
from tests.engines.tiny import tokenizer_of

FORGETFUL = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if '</think>' in message.content and not loop.last %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}[end]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""What was thought in earlier turns is left out; all else is written as it is."""
EMPTY_THOUGHT = CHATML.replace(
    "\n{{ message.content | trim }}",
    "\n{% if loop.last and message.role == 'assistant' %}<none>{% endif %}{{ message.content | trim }}",
)
"""The last answer is written in another way than it will be when it is not the last one any more."""
KINDS = {"ours": None, "chatml": CHATML, "llama": None, "forgetful": FORGETFUL, "empty thought": EMPTY_THOUGHT}
contents = spelled | st.sampled_from(["", " ", "a\n", "<think>x</think>y", "said 1.", "[end]"])


def tokenizer_named(name: str) -> Any:
    return {"ours": tokenizer_of, "llama": llama}.get(name, chatml)()


def outcome(tokenizer: Any, messages: list[dict[str, str]], trained: tuple[str, ...]) -> list[Written] | str:
    try:
        return list(written_by_template(tokenizer, Conversation(tuple(messages)), trained))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_with_a_skeleton_and_without_it_the_same_is_trained(name: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_named(name)
    messages = data.draw(conversations(contents))
    trained = data.draw(st.sampled_from([("assistant",), ("assistant", "user"), ("tool", "system", "assistant")]))
    with pytest.MonkeyPatch.context() as patch:
        if KINDS[name]:
            patch.setattr(tokenizer, "chat_template", KINDS[name])
        with_skeleton = outcome(tokenizer, messages, trained)
        patch.setattr(chat, "_skeleton_of", lambda *_: None)
        assert with_skeleton == outcome(tokenizer, messages, trained)


def test_conversations_of_the_same_roles_are_rendered_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, renderings = tokenizer_of(), []
    render = type(tokenizer).apply_chat_template

    def counted(self: Any, messages: Any, **options: Any) -> Any:
        renderings.append(messages)
        return render(self, messages, **options)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", counted)
    talk = [{"role": role, "content": "a"} for role in ("user", "assistant") * 5]
    outcome(tokenizer, talk, ("assistant",))
    renderings.clear()
    for number in range(7):
        outcome(tokenizer, [{**message, "content": f"{number} {message['role']}"} for message in talk], ("assistant",))
    assert len(renderings) == 7


@pytest.mark.parametrize(
    ("whole", "contents"),
    [
        ("<u>one</u><a>two</a>two", ["one", "two"]),  # which of them is it
        ("<a>two</a><u>one</u>", ["one", "two"]),  # not in order
        ("<u>one</u>", ["one", "two"]),  # left out
    ],
)
def test_no_skeleton_where_contents_are_not_found_once_and_in_order(whole: str, contents: list[str]) -> None:
    assert skeleton_of(whole, contents, [(0, 0)], [(3, 6)]) is None


def test_no_skeleton_where_a_border_is_within_a_content() -> None:
    assert skeleton_of("<u>one</u>", ["one"], [(0, 0)], [(4, 10)]) is None
    found = skeleton_of("<u>one</u>", ["one"], [(0, 0)], [(3, 10)])
    assert found is not None
    assert found.stretches(["other"], "<u>other</u>") == [(3, 12)]
    assert found.stretches(["other "], "<u>other</u>") is None
