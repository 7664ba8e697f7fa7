"""Datasets on remote stores: the same bytes, the same guarantees, one writer; a bounded cache that is not believed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals import store_lock
from limbeck.signals.cache import FileCache, default_cache
from limbeck.signals.codecs.hidden_head import HEAD, hidden_spec, write_head
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.loader import SignalLoader
from limbeck.signals.lock import LOCK
from limbeck.signals.manifest import MANIFEST, load_manifest
from limbeck.signals.storage import LocalFolder, open_storage
from limbeck.signals.store_lock import StoreLock
from limbeck.signals.types import HiddenSignal
from limbeck.signals.writer import DatasetWriter, publish_shard
from tests.signals.making import header_of, make_rows
from tests.signals.test_dataset import hidden_rows, write

ROOT = Path(__file__).parents[2]
URL = "memory://bucket/captured"


class Shelf(LocalFileSystem):
    """A folder of this machine in the part of a store that other processes reach."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("shelf://")))


fsspec.register_implementation("shelf", Shelf, clobber=True)

CAPTURE = """
import os, signal, sys
from limbeck.signals.remote import RemoteFolder
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import header_of, make_rows
import tests.signals.test_storage

put = RemoteFolder._put

def capture(url, countdown):
    def dying_put(self, what, name):
        nonlocal countdown
        countdown -= 1  # 0 before the first put: never killed
        if countdown == 0 and int(url[-1]) % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, what, name)
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    RemoteFolder._put = dying_put
    with DatasetWriter(url, header_of(samples=8, samples_per_shard=3)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples))
        writer.finish()

capture("shelf://" + sys.argv[1] + "/warm0", 0)  # never killed: imports and compiles once for all
for countdown in range(1, 11):
    child = os.fork()
    if child == 0:
        capture("shelf://" + sys.argv[1] + "/" + str(countdown - 1), countdown)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


def objects() -> dict[str, bytes]:
    return {name.rsplit("/", 1)[1]: bytes(file.getbuffer()) for name, file in MemoryFileSystem.store.items()}


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "signals").glob("??/*"))


@pytest.mark.parametrize("as_path", [False, True])
def test_a_remote_dataset_has_the_bytes_of_a_local_one(tmp_path: Path, as_path: bool) -> None:
    local = write(tmp_path / "d")
    write(Path(URL) if as_path else URL)
    assert objects() == {path.name: path.read_bytes() for path in local.iterdir()}
    here, there = SignalDataset.open(local), SignalDataset.open(URL)
    assert there.digest == here.digest
    assert not cached(tmp_path)
    for mine, theirs in zip(here, there, strict=True):
        assert torch.equal(mine.input_ids, theirs.input_ids)
        assert torch.equal(mine.signal.logprobs, theirs.signal.logprobs)  # type: ignore[union-attr]
    assert [path.name for path in cached(tmp_path)] == sorted(record.sha256 for record in there.manifest.shards)
    file_url = SignalDataset.open(f"file://{local}")
    assert isinstance(file_url.storage, LocalFolder)
    assert len(file_url) == len(here)


def test_once_read_it_is_read_from_the_cache(tmp_path: Path) -> None:
    write(URL)
    SignalDataset.open(URL).rows(range(23))
    manifest = bytes(MemoryFileSystem.store[f"/bucket/captured/{MANIFEST}"].getbuffer())
    MemoryFileSystem.store.clear()
    MemoryFileSystem().pipe_file(f"/bucket/captured/{MANIFEST}", manifest)
    dataset = SignalDataset.open(URL)
    assert [int(row.input_ids[0]) for row in dataset] == list(range(23))
    with pytest.raises(IntegrityError, match=f"{URL}/0000000000-0000000005.parquet: this file is missing"):
        dataset.verify()  # looks at the store, not at the cache


def test_a_damaged_copy_is_fetched_again_and_a_damaged_original_is_refused(tmp_path: Path) -> None:
    write(URL)
    SignalDataset.open(URL).rows(range(5))
    (copy,) = cached(tmp_path)
    whole = copy.read_bytes()
    for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        copy.write_bytes(damaged)
        assert SignalDataset.open(URL).row(4).input_ids[0] == 4
        assert copy.read_bytes() == whole
    copy.unlink()
    name = "/bucket/captured/0000000000-0000000005.parquet"
    MemoryFileSystem().pipe_file(name, whole[:-9] + b"!" + whole[-8:])
    for read in (lambda dataset: dataset.row(0), lambda dataset: dataset.verify()):
        with pytest.raises(IntegrityError, match=r"memory://.*0000000005.parquet: its bytes are not those"):
            read(SignalDataset.open(URL))
    assert not cached(tmp_path)
    assert SignalDataset.open(URL).row(5).input_ids[0] == 5


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "c", limit=250)
    contents = {name: bytes([number]) * 100 for number, name in enumerate("abc")}

    def take(name: str) -> bytes:
        digest = sha256(contents[name]).hexdigest()
        with cache.open(digest, name, lambda path: path.write_bytes(contents[name]), verify=True) as file:
            for age, path in enumerate(sorted(cache.folder.glob("??/*"), key=lambda path: path.stat().st_mtime_ns)):
                os.utime(path, ns=(age, age))  # tells apart what was used within one tick of the clock
            return file.read()

    def there() -> set[int]:
        return {path.read_bytes()[0] for path in cache.folder.glob("??/*")}

    assert take("a") == contents["a"]
    assert take("b") == contents["b"]
    assert take("a") == contents["a"]
    assert there() == {0, 1}
    assert take("c") == contents["c"]
    assert there() == {0, 2}
    with pytest.raises(IntegrityError, match="b: its bytes are not those"):
        cache.open("0" * 64, "b", lambda path: path.write_bytes(b"x"), verify=True)
    assert FileCache(tmp_path / "small", limit=1).open(
        sha256(b"xyz").hexdigest(), "x", lambda path: path.write_bytes(b"xyz"), verify=True
    ).read() == b"xyz"  # fmt: skip


def test_the_environment_sets_the_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_CACHE_GB", "1.5")
    assert default_cache() == FileCache(tmp_path / "cache" / "signals", 1_500_000_000)
    monkeypatch.setenv("LIMBECK_CACHE_GB", "much")
    with pytest.raises(UserError, match="LIMBECK_CACHE_GB=much"):
        default_cache()


def test_killed_anywhere_a_remote_capture_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Nine puts: lock, manifest, three times shard and manifest, manifest. The dead writer's lock is taken over."""
    expected = {path.name: path.read_bytes() for path in write(tmp_path / "w", small()).iterdir()}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CAPTURE, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["-9"] * 9 + ["0"]
    for number in range(9):
        folder = tmp_path / str(number)
        left = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        assert left != expected
        listed = len(json.loads(left[MANIFEST])["shards"]) if MANIFEST in left else 0
        with DatasetWriter(f"shelf://{folder}", small()) as writer:
            assert len(writer.missing_ranges()) == 3 - listed
            for samples in writer.missing_ranges():
                writer.write_shard(samples, make_rows(samples))
            writer.finish()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def small() -> Any:
    return header_of(samples=8, samples_per_shard=3)


def test_one_writer_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with DatasetWriter(URL, small()) as writer:
        with pytest.raises(UserError, match=rf"another process \(.*process {os.getpid()}\) is writing here"):
            DatasetWriter(URL, small())
        later = time.time() + store_lock.LIFETIME + 1
        monkeypatch.setattr(store_lock.time, "time", lambda: later)
        with DatasetWriter(URL, small()):  # the first has not renewed its lock: it has expired
            with pytest.raises(LimbeckError, match="this process no longer holds the lock"):
                writer.write_shard(range(3), make_rows(range(3)))
            with pytest.raises(LimbeckError, match="no longer holds"):
                writer.finish()
            writer.close()
            assert LOCK in objects()  # it is the second one's now
    assert sorted(objects()) == [MANIFEST]


def test_a_lock_is_renewed_while_its_holder_lives() -> None:
    folder: Any = open_storage(URL)
    lock = StoreLock(folder)
    before = json.loads(folder.read(LOCK))["expires"]
    while json.loads(folder.read(LOCK))["expires"] == before:
        lock.renew()
    lock.check()
    lock.release()
    lock.renew()
    assert objects() == {}
    lock.release()


def test_a_stranger_file_called_lock_is_named() -> None:
    MemoryFileSystem().pipe_file(f"/bucket/captured/{LOCK}", b"[]")
    with pytest.raises(UserError, match=f"{URL}/{LOCK}: not a lock of ours"):
        DatasetWriter(URL, small())


def test_a_store_that_cannot_create_exclusively_still_keeps_the_second_writer_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = MemoryFileSystem.pipe_file

    def careless(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        pipe(self, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", careless)
    with DatasetWriter(URL, small()) as writer:
        with pytest.raises(UserError, match="is writing here"):
            DatasetWriter(URL, small())
        pipe(MemoryFileSystem(), f"/bucket/captured/{LOCK}", holder("someone else"))  # the race that no look prevents
        with pytest.raises(LimbeckError, match=r"no longer holds the lock \(elsewhere, process 1 does\)"):
            writer.write_shard(range(3), make_rows(range(3)))


def holder(token: str) -> bytes:
    record = {
        "token": token, "host": "elsewhere", "machine": "another", "pid": 1, "started": 0, "expires": time.time() + 99
    }  # fmt: skip
    return json.dumps(record).encode()


def test_files_beside_the_manifest_come_along(tmp_path: Path) -> None:
    head = hidden_rows([0])[0].signal.head  # type: ignore[union-attr]
    spec = hidden_spec(head)
    header = header_of(samples=7, samples_per_shard=4, codec=spec)
    for _ in range(2):  # the second time after a kill, so to say
        with DatasetWriter(URL, header) as writer:
            writer.write_beside(lambda folder: write_head(folder, head, spec))
            with pytest.raises(UserError, match="no local folder"):
                _ = writer.folder
    with DatasetWriter(URL, header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, hidden_rows(samples))
        assert [file.name for file in writer.finish().files] == [HEAD]
    dataset = SignalDataset.open(URL)
    batch = SignalLoader(dataset, 7, shuffle=False).batch(0, 0)
    assert isinstance(batch.signal, HiddenSignal)
    assert torch.equal(batch.signal.head.weight, head.weight)
    assert batch.signal.hidden[:, 0, 0].tolist() == list(range(7))
    whole = objects()[HEAD]
    MemoryFileSystem().pipe_file(f"/bucket/captured/{HEAD}", whole[:-1] + b"?")
    with pytest.raises(IntegrityError, match=f"{URL}/{HEAD}"):
        SignalDataset.open(URL).verify()
    for copy in cached(tmp_path):
        copy.unlink()
    with pytest.raises(IntegrityError, match=f"{URL}/{HEAD}"):
        SignalDataset.open(URL)


@pytest.mark.parametrize("folder", ["local", URL])
def test_other_processes_publish_shards_that_the_writer_adopts(tmp_path: Path, folder: str) -> None:
    location = tmp_path / "d" if folder == "local" else URL
    with DatasetWriter(location, small()) as writer:
        first, second, third = writer.missing_ranges()
        records = [publish_shard(location, small(), samples, make_rows(samples)) for samples in (third, first)]
        for record in records:
            writer.adopt(record)
        assert writer.missing_ranges() == [second]
        with pytest.raises(LimbeckError, match="no shard of this capture"):
            writer.adopt(records[0].model_copy(update={"bytes": 7}))
        writer.write_shard(second, make_rows(second))
        writer.finish()
    assert load_manifest(location) == load_manifest(write(tmp_path / "alone", small()))


def test_a_failing_store_is_one_line_and_what_was_captured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with DatasetWriter(URL, small()) as writer:
        writer.write_shard(range(3), make_rows(range(3)))

        def refuse(self: Any, *args: Any, **options: Any) -> None:
            raise OSError("SlowDown: reduce your request rate")

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "put_file", refuse)
            with pytest.raises(LimbeckError, match=rf"{URL}/0000000003-0000000006.parquet: the store failed .SlowDown"):
                writer.write_shard(range(3, 6), make_rows(range(3, 6)))
        assert writer.missing_ranges()[0] == range(3, 6)
    with pytest.raises(UserError, match="has not finished"):
        SignalDataset.open(URL)
    assert len(SignalDataset.open(URL, incomplete=True)) == 3

    def deny(self: Any, *args: Any, **options: Any) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", deny)
    with pytest.raises(UserError, match=f"{URL}/{MANIFEST}: access denied"):
        SignalDataset.open(URL)


def test_a_store_without_credentials_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")

    def refuse(self: Any, *args: Any, **options: Any) -> None:
        raise exceptions.NoCredentialsError

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(UserError, match=f"{MANIFEST}: access denied .Unable to locate credentials"):
        SignalDataset.open(URL)


def test_a_store_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")

    def refuse(self: Any, *args: Any, **options: Any) -> None:
        raise exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9/\n")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(LimbeckError, match=f"{MANIFEST}: the store failed .Could not connect.* run again") as failed:
        SignalDataset.open(URL)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s4://bucket/x", "no store is called 's4'. Did you mean"),
        ("s3://bucket/x", "s3:// needs a package that is not installed"),
        ("memory://nothing/here", "no manifest.json here"),
    ],
)
def test_urls_that_lead_nowhere(url: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(UserError, match=complaint):
        SignalDataset.open(url)


def test_two_workers_read_a_remote_dataset(tmp_path: Path) -> None:
    write(f"shelf://{tmp_path}/d")
    loader = SignalLoader(SignalDataset.open(f"shelf://{tmp_path}/d"), 4, seed=3)
    samples = [sample for batch in loader.batches(0, workers=2) for sample in batch.samples]
    assert sorted(samples) == list(range(23))


def test_on_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a server of this process; skipped, with a message, where `s3fs` and `moto` are not installed."""
    pytest.importorskip("s3fs")
    servers = pytest.importorskip("moto.server")
    server = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    try:
        url = "s3://bucket/captured"
        with pytest.raises(UserError, match="there is no 'bucket' there"):
            write(url)
        pytest.importorskip("boto3").client("s3").create_bucket(Bucket="bucket")
        with DatasetWriter(url, header_of()) as writer:
            with pytest.raises(UserError, match="is writing here"):
                DatasetWriter(url, header_of())
            writer.write_shard(range(5, 10), make_rows(range(5, 10)))
        write(url)
        local = write(tmp_path / "d")
        assert {path.name for path in local.iterdir()} == set(writer.storage.names())
        assert all(writer.storage.read(path.name) == path.read_bytes() for path in local.iterdir())
        dataset = SignalDataset.open(url)
        dataset.verify()
        assert [int(row.input_ids[0]) for row in dataset] == list(range(23))
    finally:
        server.stop()
