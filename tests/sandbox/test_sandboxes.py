"""What every sandbox does, the unsafe one included: calls functions, limits what they use, and tells the truth."""

import shutil

import pytest

from limbeck.errors import LimbeckError, UserError
from limbeck.sandbox import bubblewrap
from limbeck.sandbox.bubblewrap import BubblewrapSandbox, why_unavailable
from limbeck.sandbox.choice import available, open_sandbox
from limbeck.sandbox.contract import Call, Limits, Outcome, Sandbox
from limbeck.sandbox.local import UnsafeLocal

needs_bubblewrap = pytest.mark.skipif(why_unavailable() is not None, reason=f"{why_unavailable()}")


@pytest.fixture(scope="module", params=[pytest.param(BubblewrapSandbox, marks=needs_bubblewrap), UnsafeLocal])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return request.param()


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def test_calls_are_answered_in_order_within_one_process(sandbox: Sandbox) -> None:
    program = "seen = []\ndef add(a, b):\n    seen.append(a)\n    return a + b\ndef history():\n    return seen\n"
    calls = [Call("add", [1, 2]), Call("add", ["a", "b"]), Call("add", [[1], [2.5]]), Call("history")]
    assert [outcome.value for outcome in sandbox.run(program, calls)] == [3, "ab", [1, 2.5], [1, "a", [1]]]


def test_the_standard_library_is_there(sandbox: Sandbox) -> None:
    program = (
        "import collections, ctypes, decimal, hashlib, itertools, json, math, re, sqlite3, zlib\n"
        "def f(text):\n    return hashlib.sha256(text.encode()).hexdigest()[:6]\n"
    )
    assert sandbox.run(program, [Call("f", ["x"])]) == [Outcome("returned", "2d7116")]


def test_an_exception_ends_only_its_own_call(sandbox: Sandbox) -> None:
    program = "import sys\ndef f(x):\n    return sys.exit(3) if x == 1 else 10 // x\n"
    outcomes = sandbox.run(program, [Call("f", [0]), Call("f", [1]), Call("f", [5]), Call("g")])
    assert statuses(outcomes) == ["raised", "raised", "returned", "raised"]
    assert outcomes[0].detail.startswith("ZeroDivisionError")
    assert outcomes[3].detail == "KeyError: 'g'"


@pytest.mark.parametrize("program", ["def f(:", "1 / 0", "raise SystemExit", "import limbeck.errors", "\x00"])
def test_a_program_that_does_not_load_fails_every_call(sandbox: Sandbox, program: str) -> None:
    assert statuses(sandbox.run(program, [Call("f"), Call("f")])) == ["raised", "raised"]


@pytest.mark.parametrize(
    "value",
    [
        "(1, 2)",
        "{1}",
        "{1: 2}",
        "b''",
        "object()",
        "float('nan')",
        "[[1e999]]",
        "Liar()",
        "Int(5)",
        "Str('a')",
        "[Int(1)]",
    ],
)
def test_a_value_that_is_not_plain_is_no_answer(sandbox: Sandbox, value: str) -> None:
    program = (
        "class Liar:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
        "class Int(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
        f"class Str(str):\n    pass\ndef f():\n    return {value}\n"
    )
    (outcome,) = sandbox.run(program, [Call("f")])
    assert outcome.status == "not_plain"
    assert not outcome.matches(outcome.value)


@pytest.mark.parametrize("value", ["10 ** 5000", "deep"])
def test_a_value_too_big_to_read_is_no_answer(sandbox: Sandbox, value: str) -> None:
    program = f"deep = []\nfor _ in range(100_000):\n    deep = [deep]\ndef f():\n    return {value}\n"
    outcomes = sandbox.run(program, [Call("f"), Call("f")])
    assert "returned" not in statuses(outcomes)


def test_an_endless_call_is_stopped_and_earlier_answers_stand(sandbox: Sandbox) -> None:
    program = "def f(x):\n    while x:\n        pass\n    return 7\n"
    outcomes = sandbox.run(program, [Call("f", [0]), Call("f", [1]), Call("f", [0])], Limits(wall_seconds=1.0))
    assert statuses(outcomes) == ["returned", "timed_out", "not_run"]


def test_processor_time_is_limited(sandbox: Sandbox) -> None:
    outcomes = sandbox.run("def f():\n    while True:\n        pass\n", [Call("f")], Limits(cpu_seconds=1))
    assert statuses(outcomes) == ["crashed"]


def test_a_memory_hog_is_refused_the_memory(sandbox: Sandbox) -> None:
    program = "def f():\n    return len(bytearray(2 << 30))\ndef g():\n    return 1\n"
    outcomes = sandbox.run(program, [Call("f"), Call("g")])
    assert outcomes[0].detail == "MemoryError: "
    assert outcomes[1] == Outcome("returned", 1)


def test_a_flood_of_answers_is_cut_off(sandbox: Sandbox) -> None:
    outcomes = sandbox.run("def f():\n    return 'x' * (4 << 20)\n", [Call("f"), Call("f")])
    assert statuses(outcomes) == ["output_limit", "not_run"]


def test_a_flood_of_text_costs_the_program_only_its_own_time(sandbox: Sandbox) -> None:
    program = (
        "import sys\ndef f():\n    for _ in range(200):\n"
        "        print('x' * 65536)\n        print('x' * 65536, file=sys.stderr)\n    return 1\n"
    )
    assert sandbox.run(program, [Call("f")]) == [Outcome("returned", 1)]


def test_a_big_file_is_not_written(sandbox: Sandbox) -> None:
    program = "def f():\n    with open('big', 'wb') as file:\n        file.write(bytes(64 << 20))\n    return 1\n"
    assert statuses(sandbox.run(program, [Call("f")])) != ["returned"]


def test_nothing_is_left_for_the_next_program(sandbox: Sandbox) -> None:
    write = "def f():\n    open('left', 'w').close()\n    return 1\n"
    assert statuses(sandbox.run(write, [Call("f")])) == ["returned"]
    read = "import os\ndef f():\n    return os.listdir('.')\n"
    assert sandbox.run(read, [Call("f")]) == [Outcome("returned", [])]


def test_the_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    program = "import os\ndef f():\n    return list(os.environ)\n"
    assert sandbox.run(program, [Call("f")]) == [Outcome("returned", [])]


@pytest.mark.parametrize("make", [pytest.param(BubblewrapSandbox, marks=needs_bubblewrap), UnsafeLocal])
def test_a_set_has_the_same_order_in_every_process(make: type) -> None:
    program = "def f():\n    return list({str(n) for n in range(50)})\n"
    first, second = make().run(program, [Call("f")])[0], make().run(program, [Call("f")])[0]
    assert first == second
    assert first.status == "returned"


def test_a_sandbox_that_does_not_start_is_not_the_program_s_fault() -> None:
    with pytest.raises(LimbeckError, match="did not start"):
        UnsafeLocal().run("def f():\n    return 1\n", [Call("f")], Limits(open_files=-7))


def test_without_a_sandbox_programs_are_refused_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None if name == "bwrap" else real(name))
    why_unavailable.cache_clear()
    try:
        with pytest.raises(UserError, match="apt install bubblewrap"):
            open_sandbox()
        assert available() == []
        assert open_sandbox(unsafe_local=True).name == "unsafe-local"
    finally:
        monkeypatch.undo()
        why_unavailable.cache_clear()


@needs_bubblewrap
def test_a_real_sandbox_is_preferred_even_where_the_unsafe_one_is_allowed() -> None:
    assert available() == ["bubblewrap"]
    assert open_sandbox(unsafe_local=True).name == "bubblewrap"
