"""Independent solvers of the exercise families: each reads the text of a prompt alone and says the answer."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise

SOLVERS: dict[str, Callable[[str], str]] = {}


def solver(function: Callable[[str], str]) -> Callable[[str], str]:
    SOLVERS[function.__name__] = function
    return function


def numbers_in(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


@solver
def addition(prompt: str) -> str:
    (a, b) = numbers_in(prompt)
    return str(len(range(a)) + b)


@solver
def subtraction(prompt: str) -> str:
    (a, b) = numbers_in(prompt)
    return str(len(range(b, a)))


@solver
def multiplication(prompt: str) -> str:
    (a, b) = numbers_in(prompt)
    return str(sum(a for _ in range(b)))


@solver
def remainder(prompt: str) -> str:
    (a, b) = numbers_in(prompt)
    while a >= b:
        a -= b
    return str(a)


@solver
def largest(prompt: str) -> str:
    return str(sorted(numbers_in(prompt))[-1])


@solver
def progression(prompt: str) -> str:
    terms = numbers_in(prompt)
    steps = {later - earlier for earlier, later in pairwise(terms)}
    (step,) = steps
    return str(terms[-1] + step)


@solver
def lookup(prompt: str) -> str:
    facts, question = prompt.split(" . ")
    table = dict(re.findall(r"(\w) = (\d+)", facts))
    return table[question.split()[0]]


@solver
def variables(prompt: str) -> str:
    facts, question = prompt.split(" . ")
    stands_for = dict(re.findall(r"(\w) = (\w+)", facts))
    name = question.split()[0]
    while name in stands_for:
        name = stands_for[name]
    return name


@solver
def two_hops(prompt: str) -> str:
    helps = dict(re.findall(r"(\w+) helps ([A-Z]\w+)", prompt))
    (asked,) = re.findall(r"(\w+) helps who helps who \?$", prompt)
    return helps[helps[asked]]


@solver
def truth(prompt: str) -> str:
    (expression,) = re.findall(r", ([\w ]+) is \?$", prompt)
    first, *rest = expression.split()
    value = {"True": 1, "False": 0}[first]
    for operator, word in zip(rest[::2], rest[1::2], strict=True):
        other = {"True": 1, "False": 0}[word]
        value = {"and": value * other, "or": value + other - value * other, "xor": (value + other) % 2}[operator]
    return ["False", "True"][value]


@solver
def reverse(prompt: str) -> str:
    letters = prompt.removeprefix("Reverse ").removesuffix(" .").split()
    return " ".join(letters[index] for index in range(len(letters) - 1, -1, -1))


@solver
def sorting(prompt: str) -> str:
    counts = Counter(numbers_in(prompt))
    return " ".join(str(digit) for digit in range(10) for _ in range(counts[digit]))


@solver
def counting(prompt: str) -> str:
    wanted, row = re.fullmatch(r"How many (\w) in ([\w ]+) \?", prompt).groups()  # type: ignore[union-attr]
    return str(Counter(row.split())[wanted])


@solver
def missing(prompt: str) -> str:
    row, kept = re.fullmatch(r"In ([\w ]+) but not in ([\w ]+) \?", prompt).groups()  # type: ignore[union-attr]
    (lost,) = (Counter(row.split()) - Counter(kept.split())).elements()
    return lost


@solver
def copy_by_key(prompt: str) -> str:
    key = prompt.split()[3]
    (row,) = re.findall(rf"^{key} : ([\w ]+)$", prompt, re.MULTILINE)
    return row


@solver
def call_function(prompt: str) -> str:
    """Run the program, as anybody would."""
    definition, call = prompt.removesuffix(" = ?").rsplit("\n", 1)
    names: dict[str, object] = {}
    exec(definition, names)
    return str(eval(call, names))


MEANINGS: tuple[tuple[str, Callable[[int, int], object]], ...] = (
    (r"@ plus #", lambda x, n: sum((x, n))),
    (r"@ minus #", lambda x, n: -(n - x)),
    (r"@ times #", lambda x, n: sum([x] * n)),
    (r"the remainder of @ by #", lambda x, n: divmod(x, n)[1]),
    (r"whether @ is more than #", lambda x, n: n < x),
    (r"whether @ is less than #", lambda x, n: n > x),
    (r"whether @ equals #", lambda x, n: not (x < n or x > n)),
    (r"the larger of @ and #", lambda x, n: sorted((x, n))[1]),
    (r"the smaller of @ and #", lambda x, n: sorted((x, n))[0]),
    (r"@ to the power #", lambda x, n: pow(x, n)),
    (r"the quotient of @ by #", lambda x, n: divmod(x, n)[0]),
    (r"@ repeated # times", lambda x, n: list(islice(iter(lambda: x, object()), n))),
)
LIST_MEANINGS: tuple[tuple[str, Callable[[list[int], int], object]], ...] = (
    (r"the first # of @", lambda x, n: list(islice(x, n))),
    (r"the last # of @", lambda x, n: list(reversed(list(islice(reversed(x), n))))),
    (r"item # of @", lambda x, n: next(islice(x, n, n + 1))),
    (r"the sum of @ and the length #", lambda x, n: sum([*x, n])),
)


def does_what_is_described(prompt: str, expression: str) -> bool:
    """Say whether a completed function returns what its docstring promises, on many arguments."""
    (argument,) = re.findall(r"^def \w\((\w)\):$", prompt, re.MULTILINE)
    (description,) = re.findall(r'"""Return (.+)\."""', prompt)
    function = eval(f"lambda {argument}: {expression}")
    cases: list[tuple[tuple[tuple[str, Callable[..., object]], ...], list[object]]] = [
        (MEANINGS, [*range(-3, 30), 100, 1000]),
        (LIST_MEANINGS, [list(range(5, 5 + length)) for length in (1000, 1005)]),
    ]
    for meanings, arguments in cases:
        for pattern, meaning in meanings:
            form = re.escape(pattern).replace("@", rf"\b{argument}\b").replace(r"\#", r"(\d+)")
            if found := re.fullmatch(form, description):
                constant = int(found.group(1))
                return all(
                    function(given) == meaning(given, constant) for given in [*arguments, *near(arguments, constant)]
                )
    raise ValueError(f"nobody knows what {description!r} means")


def near(arguments: list[object], constant: int) -> list[object]:
    """Numbers around the constant, where comparisons turn over."""
    return [constant - 1, constant, constant + 1] if isinstance(arguments[0], int) else []
