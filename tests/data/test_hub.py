"""Text and datasets on the Hub, through `datasets` and `huggingface_hub` themselves, against a server on loopback.

Both take the Hub's address from the environment when they are first imported, so all commands run in one process of
their own, one after another; the tests look at what came of them.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.data import hugging_face
from limbeck.data.shapes import Columns
from limbeck.errors import LimbeckError
from limbeck.files import sha256_file
from limbeck.signals.dataset import SignalDataset
from tests.data.hub import Hub, Repository, serve_hub
from tests.engines.tiny import save, tokenizer_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hub")]  # one world for all
ROOT = Path(__file__).parents[2]
README = b"""---
configs:
- config_name: one
  data_files:
  - {split: train, path: one/train-*.jsonl}
  - {split: test, path: one/test.jsonl}
- config_name: two
  data_files: two.jsonl
---
"""
DRIVER = """
import contextlib, io, json, sys
from limbeck.cli.main import run
from limbeck.data import hugging_face

for order in json.load(sys.stdin):
    hugging_face.LARGE = order["large"]
    sys.argv = ["limbeck", *order["command"]]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([order["name"], code, said.getvalue()]), flush=True)
"""


def lines(tag: str, count: int, key: str = "text") -> bytes:
    return "".join(json.dumps({key: f"{tag} {number} word"}) + "\n" for number in range(count)).encode()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and all that it printed."""

    code: int
    said: str


@dataclass(frozen=True)
class World:
    """The hub, the folder of outputs, and what came of each command."""

    hub: Hub
    folder: Path
    ended: dict[str, Ended]

    def texts(self, name: str) -> list[str]:
        assert self.ended[name].code == 0, self.ended[name].said
        rows = SignalDataset.open(self.folder / name)
        return [str(tokenizer_of().decode(row.input_ids)).removesuffix("<|endoftext|>") for row in rows]


def repositories() -> dict[str, Repository]:
    return {
        "own/text": Repository(
            {
                "README.md": README, "one/train-0.jsonl": lines("a", 5), "one/train-1.jsonl": lines("b", 5),
                "one/test.jsonl": lines("t", 3), "two.jsonl": lines("two", 2, key="body"),
            }
        ),
        "own/shaky": Repository({"train.jsonl": lines("s", 2)}),
        "own/gated": Repository({"train.jsonl": lines("g", 2)}, gated=True),
        "own/many": Repository({f"train-{file:02}.jsonl": lines(f"f{file}", 12) for file in range(20)}),
        "own/out": Repository({"README.md": b"# captured\n"}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hub")
    teacher = str(save(folder / "teacher"))
    (folder / "local.jsonl").write_bytes(lines("a", 5) + lines("b", 5))
    orders: list[dict[str, Any]] = []

    def capture(name: str, dataset: str, *options: str, output: str = "", large: int = 10**9) -> None:
        places = ["--model", teacher, "--dataset", dataset, "--output", output or str(folder / name)]
        orders.append({"name": name, "command": ["capture", *places, *options], "large": large})

    one = ("--dataset-configuration", "one")
    few = ("--samples", "2", "--seed", "3")
    capture("whole", "own/text", *one)
    capture("local", str(folder / "local.jsonl"))
    capture("test", "own/text", *one, "--split", "test")
    capture("named", "own/text", "--dataset-configuration", "two", "--set", "dataset.columns.text=body")
    capture("shaky", "own/shaky")
    capture("streamed", "own/many", *few, "--set", "dataset.streaming=true")
    capture("streamed again", "own/many", *few, "--set", "dataset.streaming=true")
    capture("other seed", "own/many", "--samples", "2", "--seed", "4", "--set", "dataset.streaming=true")
    capture("first", "own/many", "--set", "dataset.samples=3", "--set", "dataset.streaming=true")
    capture("large", "own/many", *few, large=1000)
    capture("nobody", "own/nothing")
    capture("which configuration", "own/text")
    capture("no split", "own/text", *one, "--split", "dev")
    capture("no split streamed", "own/many", "--split", "dev", *few, "--set", "dataset.streaming=true")
    capture("no column", "own/text", *one, "--set", "dataset.columns.text=body")
    capture(
        "no column streamed", "own/many", *few, "--set", "dataset.streaming=true", "--set", "dataset.columns.text=body"
    )
    capture("no revision", "own/text", *one, "--set", "dataset.revision=abc")
    capture("gated", "own/gated")
    capture("gated streamed", "own/gated", *few, "--set", "dataset.streaming=true")
    stored = "hf://datasets/own/out/signals"
    capture("stored", str(folder / "local.jsonl"), "--macrobatch-size", "4", output=stored)
    orders.append({"name": "verify", "command": ["signals", "verify", stored], "large": 0})
    capture("stored again", str(folder / "local.jsonl"), "--macrobatch-size", "5", output=stored)
    capture("nowhere", str(folder / "local.jsonl"), output="hf://datasets/own/nothing/signals")
    capture("not mine", str(folder / "local.jsonl"), output="hf://datasets/own/gated/signals")
    with serve_hub() as hub:
        hub.repositories |= repositories()
        hub.failures += [("own/shaky", 503, 1), ("blobs/own/shaky", 500, 2)]
        ran = subprocess.run(
            [sys.executable, "-c", DRIVER], input=json.dumps(orders), capture_output=True, text=True, timeout=300,
            env={**hub.environment(folder / "cache"), "LIMBECK_CACHE": str(folder / "limbeck")}, cwd=ROOT, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        ended = {name: Ended(code, said) for name, code, said in map(json.loads, ran.stdout.splitlines())}
        assert len(ended) == len(orders)
        assert all(hub.token not in said for said in (ran.stderr, *(end.said for end in ended.values())))
        yield World(hub, folder, ended)


def test_a_dataset_of_the_hub_is_captured_as_its_files_would_be(world: World) -> None:
    assert world.texts("whole") == [f"{tag} {number} word" for tag in "ab" for number in range(5)]
    shards = [
        [sha256_file(path) for path in sorted((world.folder / name).glob("*.parquet"))] for name in ("whole", "local")
    ]
    assert shards[0] == shards[1]


def test_split_configuration_and_column_are_what_was_asked_for(world: World) -> None:
    assert world.texts("test") == [f"t {number} word" for number in range(3)]
    assert world.texts("named") == [f"two {number} word" for number in range(2)]


def test_a_hub_that_fails_for_a_while_is_asked_again(world: World) -> None:
    assert world.texts("shaky") == ["s 0 word", "s 1 word"]
    assert all(left == 0 for _, _, left in world.hub.failures)


def test_what_is_streamed_depends_on_the_seed_alone_and_leaves_most_of_the_dataset_where_it_is(world: World) -> None:
    texts = world.texts("streamed")
    assert len(set(texts)) == 2
    assert world.texts("streamed again") == texts
    assert world.texts("other seed") != texts
    assert world.texts("large") == texts
    assert "streamed 20 records" in world.ended["large"].said
    assert world.texts("first") == ["f0 0 word", "f0 1 word", "f0 2 word"]
    sent = {name for name in world.hub.sent if name.startswith("train-")}
    assert 2 <= len(sent) < 12


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nobody", "own/nothing: no such file, and no dataset .* doesn't exist on the Hub or cannot be accessed"),
        ("which configuration", r"own/text: .* Config name is missing.* \['one', 'two'\]"),
        ("no split", r"own/text: .*split 'dev'.*Should be one of \['train', 'test'\]"),
        ("no split streamed", r"own/many: .*split 'dev'.*\['train'\]"),
        ("no column", r"own/text: there is no column 'body' \(columns.text\)"),
        ("no column streamed", r"own/many: there is no column 'body' \(columns.text\)"),
        ("no revision", "own/text: .*Revision 'abc' doesn't exist"),
        ("gated", "own/gated: .*gated dataset .* HF_TOKEN"),
        ("gated streamed", "own/gated: .*gated dataset .* HF_TOKEN"),
        ("stored again", "own/out/signals: holds another capture"),
        ("nowhere", "own/nothing/signals: there is no 'datasets/own/nothing' there"),
        ("not mine", "own/gated/signals/.lock: access denied .*Check the credentials"),
    ],
)
def test_what_the_hub_refuses_is_one_line(world: World, name: str, complaint: str) -> None:
    end = world.ended[name]
    assert end.code == 2
    last = end.said.strip().splitlines()[-1]
    assert last.startswith("limbeck: ")
    assert re.search(complaint, last)


def test_a_capture_lies_on_the_hub_with_the_bytes_of_a_local_one(world: World) -> None:
    assert world.ended["stored"].code == 0, world.ended["stored"].said
    assert "3 shards" in world.ended["verify"].said
    stored = world.hub.repositories["own/out"].files
    assert sorted(stored) == [
        "README.md", "signals/0000000000-0000000004.parquet", "signals/0000000004-0000000008.parquet",
        "signals/0000000008-0000000010.parquet", "signals/manifest.json",
    ]  # fmt: skip


class RefusedError(OSError):
    """What the Hub's client raises, as far as we look at it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"Server error '{status}'\nFor more information check: somewhere")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(("status", "asked"), [(502, hugging_face.ATTEMPTS), (418, 1)])
def test_a_hub_that_goes_on_failing_is_one_line(status: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    calls: list[str] = []

    def load(name: str, *_: Any, **__: Any) -> Any:
        calls.append(name)
        raise RefusedError(status)

    monkeypatch.setattr(hugging_face.time, "sleep", waits.append)
    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(LimbeckError, match=f"own/text: .*Server error '{status}' For more") as refused:
        hugging_face.hub_records(hugging_face.HubSource(name="own/text"), Columns(), answered=True)
    assert refused.value.exit_code == (1 if status == 502 else 2)
    assert len(calls) == asked
    assert len(waits) == asked - 1
    assert waits == sorted(waits)
