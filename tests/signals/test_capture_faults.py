"""Killed captures, full disks, two writers, folders that hold something else."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import LimbeckError, UserError
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.manifest import MANIFEST, TeacherRef
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import header_of, make_rows

ROOT = Path(__file__).parents[2]

CAPTURE = """
import os, signal, sys
from pathlib import Path
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import header_of, make_rows

rename = Path.replace

def capture(folder, countdown):
    def dying_rename(self, target):
        nonlocal countdown
        countdown -= 1
        if countdown == 0 and int(folder.name) % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = rename(self, target)
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.replace = dying_rename
    with DatasetWriter(folder, header_of(samples=8, samples_per_shard=3)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples))
        writer.finish()

capture(Path(sys.argv[1]) / "0", 0)  # never killed: imports and compiles once for all
for countdown in range(1, 10):
    child = os.fork()
    if child == 0:
        capture(Path(sys.argv[1]) / str(countdown), countdown)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

HOLD = """
import sys
from pathlib import Path
from limbeck.signals.lock import FolderLock

lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def small_capture(folder: Path) -> None:
    with DatasetWriter(folder, header_of(samples=8, samples_per_shard=3)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples))
        writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_anywhere_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """A capture of three shards renames eight files: manifest, three times shard and manifest, manifest.

    Capture n is killed at its n-th rename, before it if n is odd, after it if n is even; the ninth lives.
    """
    small_capture(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CAPTURE, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["-9"] * 8 + ["0"]
    assert contents(tmp_path / "9") == expected
    for folder in (tmp_path / str(countdown) for countdown in range(1, 9)):
        left = contents(folder)
        assert left != expected
        published = {name for name in left if name.endswith(".parquet")}
        written = []
        with DatasetWriter(folder, header_of(samples=8, samples_per_shard=3)) as writer:
            for samples in writer.missing_ranges():
                written.append(writer.write_shard(samples, make_rows(samples)).name)
            writer.finish()
        assert contents(folder) == expected
        # at most the one shard that was renamed but not yet listed is written a second time
        assert len(published & set(written)) <= 1


def test_a_finished_dataset_is_left_as_it_is(tmp_path: Path) -> None:
    small_capture(tmp_path / "d")
    before = contents(tmp_path / "d")
    with DatasetWriter(tmp_path / "d", header_of(samples=8, samples_per_shard=3)) as writer:
        assert writer.missing_ranges() == []
        writer.finish()
    assert contents(tmp_path / "d") == before


def test_a_shard_deleted_or_cut_by_hand_is_written_anew(tmp_path: Path) -> None:
    small_capture(tmp_path / "d")
    before = contents(tmp_path / "d")
    names = sorted(name for name in before if name.endswith(".parquet"))
    (tmp_path / "d" / names[1]).unlink()
    (tmp_path / "d" / names[2]).write_bytes(before[names[2]][:-1])
    with DatasetWriter(tmp_path / "d", header_of(samples=8, samples_per_shard=3)) as writer:
        assert writer.missing_ranges() == [range(3, 6), range(6, 8)]
        with pytest.raises(LimbeckError, match="2 shards are missing"):
            writer.finish()
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples))
        writer.finish()
    assert contents(tmp_path / "d") == before


def test_an_unfinished_dataset_opens_only_on_request(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", header_of()) as writer:
        writer.write_shard(range(5, 10), make_rows(range(5, 10)))
    with pytest.raises(UserError, match=r"has not finished .5 of 23 samples"):
        SignalDataset.open(tmp_path / "d")
    dataset = SignalDataset.open(tmp_path / "d", incomplete=True)
    assert [int(row.input_ids[0]) for row in dataset] == [5, 6, 7, 8, 9]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(table: object, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "d"
    with DatasetWriter(folder, header_of()) as writer:
        writer.write_shard(range(5), make_rows(range(5)))
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", fill_up)
            with pytest.raises(LimbeckError, match=r"0000000005-0000000010.parquet: no space left on the disk"):
                writer.write_shard(range(5, 10), make_rows(range(5, 10)))
        assert sorted(contents(folder)) == [".lock", "0000000000-0000000005.parquet", MANIFEST]
        assert writer.missing_ranges()[0] == range(5, 10)


def test_a_file_size_limit_of_the_process_is_named_too(tmp_path: Path) -> None:
    """The error comes from the system, not from a stand-in."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DatasetWriter(tmp_path / "d", header_of(samples=8, samples_per_shard=3)) as writer:
        writer.write_shard(range(3), make_rows(range(3)))
        rows = make_rows(range(3, 6))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(LimbeckError, match=r"0000000003-0000000006.parquet: larger than a file may be here"):
                writer.write_shard(range(3, 6), rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(contents(tmp_path / "d")) == ["0000000000-0000000003.parquet", MANIFEST]
    dataset = SignalDataset.open(tmp_path / "d", incomplete=True)
    assert [int(row.input_ids[0]) for row in dataset] == [0, 1, 2]
    with DatasetWriter(tmp_path / "d", header_of(samples=8, samples_per_shard=3)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples))
        writer.finish()
    small_capture(tmp_path / "whole")
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_a_manifest_that_does_not_fit_on_the_disk_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "d"
    with DatasetWriter(folder, header_of(samples=8, samples_per_shard=3)) as writer:
        writer.write_shard(range(3), make_rows(range(3)))
        before = (folder / MANIFEST).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fill_up)
            with pytest.raises(LimbeckError, match=rf"{MANIFEST}: no space left on the disk"):
                writer.write_shard(range(3, 6), make_rows(range(3, 6)))
    assert (folder / MANIFEST).read_bytes() == before
    assert len(SignalDataset.open(folder, incomplete=True)) == 3


def test_a_codec_that_fails_stops_the_capture_with_its_error_and_keeps_the_rest(tmp_path: Path) -> None:
    rows = make_rows(range(8))
    rows[4].signal.logprobs[2, 0] = float("nan")  # type: ignore[union-attr]
    with (
        pytest.raises(LimbeckError, match="row 1, position 2"),
        DatasetWriter(tmp_path / "d", header_of(samples=8, samples_per_shard=3)) as writer,
    ):
        for samples in writer.missing_ranges():
            writer.write_shard(samples, rows[samples.start : samples.stop])
    assert sorted(contents(tmp_path / "d")) == ["0000000000-0000000003.parquet", MANIFEST]
    assert len(SignalDataset.open(tmp_path / "d", incomplete=True)) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_arrow_reports_a_full_disk_as_the_error_that_is_understood(tmp_path: Path) -> None:
    """Through a link, because arrow removes what it could not write."""
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        pq.write_table(pa.table({"x": list(range(100_000))}), tmp_path / "full")
    assert caught.value.errno == errno.ENOSPC


def test_two_processes_cannot_write_one_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"another process \({other.pid}\) is writing here"):
            small_capture(folder)
        other.kill()
    with DatasetWriter(folder, header_of()), pytest.raises(UserError, match="another process"):
        DatasetWriter(folder, header_of())
    assert sorted(contents(folder)) == [MANIFEST]


def test_another_capture_in_the_folder_is_named_on_both_sides(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", header_of()) as writer:
        writer.write_shard(range(5), make_rows(range(5)))
    other = header_of(teacher=TeacherRef(repo="org/other", revision="1"))
    with pytest.raises(UserError, match=r"another capture: its teacher.repo is org/teacher, this one's is org/other"):
        DatasetWriter(tmp_path / "d", other)
    with pytest.raises(UserError, match="its samples is 23, this one's is 24"):
        DatasetWriter(tmp_path / "d", header_of(samples=24))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty .it holds thesis.tex"):
        DatasetWriter(tmp_path / "e", header_of())
    assert sorted(contents(tmp_path / "e")) == ["thesis.tex"]


def test_a_capture_that_came_to_nothing_makes_room_for_another(tmp_path: Path) -> None:
    DatasetWriter(tmp_path / "d", header_of()).close()
    other = header_of(teacher=TeacherRef(repo="org/other", revision="1"))
    with DatasetWriter(tmp_path / "d", other) as writer:
        assert len(writer.missing_ranges()) == len(other.ranges())
        writer.write_shard(range(5), make_rows(range(5)))
    assert SignalDataset.open(tmp_path / "d", incomplete=True).manifest.teacher.repo == "org/other"
    with pytest.raises(UserError, match="another capture"):
        DatasetWriter(tmp_path / "d", header_of())


def test_a_shard_that_no_manifest_lists_is_not_written_over_by_another_capture(tmp_path: Path) -> None:
    DatasetWriter(tmp_path / "d", header_of()).close()
    before = (tmp_path / "d" / MANIFEST).read_bytes()
    (tmp_path / "d" / "0000000000-0000000005.parquet").write_bytes(b"a shard of a capture that was killed just here")
    with pytest.raises(UserError, match="another capture"):
        DatasetWriter(tmp_path / "d", header_of(teacher=TeacherRef(repo="org/other", revision="1")))
    assert (tmp_path / "d" / MANIFEST).read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        DatasetWriter(tmp_path / "file" / "d", header_of())
    shutil.rmtree(tmp_path / "file", ignore_errors=True)
