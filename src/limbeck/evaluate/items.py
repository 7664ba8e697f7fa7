"""Items, responses, grades: what is asked, what comes back, and what it is worth."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from limbeck.evaluate.answers import Answer
from limbeck.sandbox.choice import open_sandbox
from limbeck.sandbox.contract import Sandbox


@dataclass(frozen=True)
class Item:
    """One question with its gold answer.

    Attributes:
        prompt: what the model is asked, without any chat template.
        answer: the typed gold answer.
        operands: what makes this item this item, in canonical order (so that `3 + 4` and `4 + 3` are one): the key by
            which items are held out. Empty: the prompt itself.
        skeleton: the template that the item was made from, by name; an axis' skeletons are counted and reported.
        turns: what the user says after the reply to `prompt`, one entry a further turn; the last reply is graded.
    """

    prompt: str
    answer: Answer
    operands: str = ""
    skeleton: str = ""
    turns: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return what identifies the item's content."""
        return self.operands or self.prompt


@dataclass(frozen=True)
class Response:
    """What a model wrote to an item.

    Attributes:
        text: its last reply, without the thinking.
        thinking: what stood in thinking blocks of the last reply.
        tokens: written in all replies together, thinking included.
        finished: whether the model ended the last reply itself; False where the limit on tokens did.
        replies: all replies in order, the last of them `text`; empty where there was one turn.
        fault: why there is no response, where there is none: nobody's credit, and told apart from a bad answer.
    """

    text: str
    thinking: str = ""
    tokens: int = 0
    finished: bool = True
    replies: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Grade:
    """What a response is worth, in [0, 1], what was read as its answer, and why."""

    score: float
    answer: str | None
    reason: str


@dataclass(frozen=True)
class Workbench:
    """What graders may use besides item and response.

    Attributes:
        unsafe_local: run programs with this user's rights where no sandbox works. The arena never sets it.
    """

    unsafe_local: bool = False
    given: Sandbox | None = field(default=None, repr=False)

    @cached_property
    def sandbox(self) -> Sandbox:
        """Return the sandbox for programs that a model wrote, opened when it is first needed.

        Raises:
            UserError: no sandbox works here.
        """
        return self.given or open_sandbox(self.unsafe_local)


Grader: TypeAlias = Callable[[Item, Response, Workbench], Grade]
