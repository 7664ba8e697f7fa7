"""The ground floor: seeds, files and settings."""

import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from limbeck.errors import LimbeckError, UserError
from limbeck.files import canonical_json, digest_of, publish, read_json, write_json
from limbeck.seeds import derive_seed
from limbeck.settings import Settings, load_settings, with_overrides

labels = st.lists(st.one_of(st.integers(), st.text(max_size=8)), max_size=4)


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed("0xabc", "prompts", 3) == 14072530014829627880


@given(first=labels, second=labels)
def test_different_labels_give_different_seeds(first: list[str | int], second: list[str | int]) -> None:
    same = [(type(x), x) for x in first] == [(type(x), x) for x in second]
    assert (derive_seed("root", *first) == derive_seed("root", *second)) is same


def test_labels_do_not_run_together() -> None:
    assert derive_seed("r", "ab", "c") != derive_seed("r", "a", "bc")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "file", 1)
    with pytest.raises(RuntimeError), publish(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(tmp_path / "file") == 1


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(LimbeckError, match=r"file: no space left on the disk; .* Free space in"),
        publish(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_has_no_words_for_are_refused_with_their_place(tmp_path: Path, number: float) -> None:
    with pytest.raises(LimbeckError, match=r"file: the value\['losses'\]\[1\]\['kl'\] is no finite number"):
        write_json(tmp_path / "file", {"a": 1, "losses": [{"kl": 0.5}, {"kl": number}]})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text(f'{{"kl": {"NaN" if number != number else "Infinity"}}}')
    with pytest.raises(UserError, match=r"file: not valid JSON \(it holds (NaN|Infinity)\)"):
        read_json(tmp_path / "file")


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=8))
def test_all_other_numbers_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "file"
    write_json(path, value)
    assert read_json(path) == value


def test_a_folder_in_the_way_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="Choose another output folder"), publish(tmp_path / "taken" / "file"):
        pytest.fail("the block must not run")


def test_a_digest_names_a_value_and_not_its_spelling() -> None:
    assert digest_of({"a": 1, "b": [2.5]}) == digest_of({"b": [2.5], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


class Inner(Settings):
    learning_rate: float = Field(1.0, gt=0)


class Outer(Settings):
    name: str = "x"
    training: Inner = Inner()


def load(tmp_path: Path, text: str, *overrides: str) -> Outer:
    (tmp_path / "file.yaml").write_text(text)
    return load_settings(tmp_path / "file.yaml", Outer, overrides)


def test_an_override_changes_one_value(tmp_path: Path) -> None:
    assert load(tmp_path, "name: a", "training.learning_rate=0.5") == Outer(name="a", training=Inner(learning_rate=0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: a", "unknown key 'nmae'. Did you mean 'name'"),
        ("training: {learning_rte: 1}", "unknown key 'training.learning_rte'. Did you mean 'learning_rate'"),
        ("training: {learning_rate: -1}", "training.learning_rate: input should be greater than 0"),
        ("- a", "expected keys and values at the top level, found list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "file.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        load_settings(tmp_path / "absent.yaml", Outer)


def test_an_override_leaves_the_original_alone() -> None:
    data = {"a": {"b": 1}}
    assert with_overrides(data, ["a.b=2", "a.c=[1, 2]"]) == {"a": {"b": 2, "c": [1, 2]}}
    assert data == {"a": {"b": 1}}


@pytest.mark.parametrize("override", ["novalue", "=1"])
def test_an_override_without_a_value_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="expected key=value"):
        with_overrides({}, [override])


@pytest.mark.parametrize(
    ("override", "found"),
    [("losses.0.weight=2", {"losses": [{"weight": 2}, {"weight": 1}]}), ("losses.1=3", {"losses": [{"weight": 1}, 3]})],
)
def test_an_override_reaches_into_a_list(override: str, found: dict[str, Any]) -> None:
    assert with_overrides({"losses": [{"weight": 1}, {"weight": 1}]}, [override]) == found


@pytest.mark.parametrize("override", ["losses.2.weight=2", "losses.first.weight=2", "losses.-1=3"])
def test_an_override_of_no_place_in_a_list_says_how_many_there_are(override: str) -> None:
    with pytest.raises(UserError, match="is no place in a list of 2"):
        with_overrides({"losses": [{"weight": 1}, {"weight": 1}]}, [override])
