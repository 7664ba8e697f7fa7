"""Kernels that are kept on disk: found again, and never run once anything that went into them has changed."""

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

NAME = "kept_kernels"
IMPORT = "from limbeck.signals.codecs.compiling import compiled\n"
FILES = {
    "__init__.py": "",
    "sizes.py": "STEP = 1\n",
    "inner.py": f"{IMPORT}from {NAME}.sizes import STEP\n\n@compiled()\ndef inner(x):\n    return x + STEP\n",
    "outer.py": f"{IMPORT}from {NAME}.inner import inner\n\n@compiled()\ndef outer(x):\n    return 100 + inner(x)\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / NAME
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    yield folder
    forget()


def forget() -> None:
    """Drop the package, as the end of a process does."""
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]
    invalidate_caches()


def run() -> tuple[int, int]:
    """Import the package anew; return what it computes, and how often it was compiled for that."""
    forget()
    outer: Any = import_module(f"{NAME}.outer").outer
    return outer(5), sum(outer.stats.cache_misses.values())


def test_a_kernel_that_was_compiled_before_is_found_again(package: Path) -> None:
    assert run() == (106, 1)
    assert run() == (106, 0)


def test_a_constant_that_changed_in_another_module_is_seen(package: Path) -> None:
    run()
    (package / "sizes.py").write_text("STEP = 2\n")
    assert run() == (107, 1)


def test_a_kernel_that_changed_in_another_module_is_seen(package: Path) -> None:
    run()
    (package / "inner.py").write_text(FILES["inner.py"].replace("x + STEP", "x * STEP"))
    assert run() == (105, 1)


def test_an_array_that_changed_is_seen(package: Path) -> None:
    (package / "sizes.py").write_text("import numpy as np\nSTEPS = np.array([3, 4])\n")
    (package / "inner.py").write_text(FILES["inner.py"].replace("STEP", "STEPS").replace("+ STEPS", "+ STEPS[1]"))
    assert run()[0] == 109
    (package / "sizes.py").write_text("import numpy as np\nSTEPS = np.array([3, 7])\n")
    assert run()[0] == 112


def test_what_a_kernel_further_down_has_imported_is_seen(package: Path) -> None:
    below = "from kept_kernels.sizes import STEP\n\n@compiled()\ndef inner(x):\n    return below(x)\n\n"
    (package / "inner.py").write_text(IMPORT + below + "@compiled()\ndef below(x):\n    return x + STEP\n")
    assert run()[0] == 106
    (package / "sizes.py").write_text("STEP = 4\n")
    assert run()[0] == 109


def test_a_module_imported_whole_is_refused(package: Path) -> None:
    text = FILES["inner.py"].replace("from kept_kernels.sizes import STEP", "from kept_kernels import sizes")
    (package / "inner.py").write_text(text.replace("+ STEP", "+ sizes.STEP"))
    with pytest.raises(TypeError, match=r"kept_kernels\.inner has imported kept_kernels\.sizes"):
        run()
