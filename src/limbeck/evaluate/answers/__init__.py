"""Typed answers, written on one declared last line: `Answer: …`.

An answer is a value of a type, not a pattern to be found anywhere in a text. Each type knows how the value is written
and how what a model wrote is read back; what can't be read is no answer.
"""

from limbeck.evaluate.answers.declared import ANSWER_MARK, Answer, declared_answer, unwrapped
from limbeck.evaluate.answers.numbers import Integer
from limbeck.evaluate.answers.words import Words

__all__ = ["ANSWER_MARK", "Answer", "Integer", "Words", "declared_answer", "unwrapped"]
