"""The house itself: what `limbeck --help` may import, and what the tree must not hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "limbeck").rglob("*.py"))


@pytest.mark.parametrize("command", [["--help"], ["capture", "--help"], ["signals", "--help"], ["pocket", "card"]])
def test_what_only_prints_imports_nothing_heavy(command: list[str]) -> None:
    """A command line that answers at once: torch and its friends are imported inside commands only."""
    code = (
        "import sys; from limbeck.cli.main import app; from typer.testing import CliRunner; "
        f"result = CliRunner().invoke(app, {command}); assert result.exit_code == 0, result.output; "
        "print(sorted({'torch', 'transformers', 'numpy', 'sqlalchemy', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_read_in_one_sitting() -> None:
    long = {path.name: lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.read_text().strip() and not path.read_text().lstrip().startswith('"""')
    ]
    assert silent == []


def test_every_room_has_a_page() -> None:
    rooms = {path.parent.name for path in SOURCES if path.parent.parent == ROOT / "src" / "limbeck"}
    assert sorted(room for room in rooms if not (ROOT / "docs" / f"{room}.md").exists()) == []
