"""The pocket world's procedurally generated exercises, in seventeen families.

Everything is written so that a model of a few million parameters can learn it: letters and digits stand apart, so
that each is one token; numbers are short; the question says all that is needed.
"""

from limbeck.pocket.exercises import arithmetic, facts, functions, lists
from limbeck.pocket.exercises.registry import Family, all_families, held_out

__all__ = ["Family", "all_families", "arithmetic", "facts", "functions", "held_out", "lists"]
