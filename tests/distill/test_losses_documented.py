"""docs/losses.md tells of every loss, and of each what the registry says."""

import re
from pathlib import Path

import pytest

from limbeck.distill.losses import Loss, all_losses

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"
ROW = re.compile(r"\| `(\w+)` \|")
COLUMNS = ("name", "formula", "source", "signals", "times T²", "parameters")


def rows() -> dict[str, dict[str, str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if ROW.match(line)]
    named = [dict(zip(COLUMNS, row, strict=True)) for row in cells]
    assert len({row["name"] for row in named}) == len(named), "a loss stands there twice"
    return {row["name"].strip("`"): row for row in named}


def described(loss: Loss) -> tuple[str, str, str]:
    """What the page has to say of signals, temperature and parameters."""
    without_signal = "a teacher in process" if loss.over == "relations" else "none needed"
    parameters = ", ".join(f"`{name}` {value:g}" for name, value in loss.parameters.items())
    return ", ".join(loss.signals) or without_signal, "yes" if loss.scales_with_temperature else "no", parameters


def ours() -> list[Loss]:
    return [loss for loss in all_losses() if loss.contributions.__module__.startswith("limbeck.")]


def test_every_loss_is_documented_and_no_other() -> None:
    assert sorted(rows()) == [loss.name for loss in ours()]


@pytest.mark.parametrize("loss", ours(), ids=lambda loss: loss.name)
def test_the_page_says_what_the_registry_says(loss: Loss) -> None:
    row = rows()[loss.name]
    assert (row["signals"], row["times T²"], row["parameters"]) == described(loss)
    assert row["formula"]
    assert row["source"]
