"""The benchmark for GPUs, at sizes that a CPU can bear: its arguments, and that every row of it runs."""

import pytest

from benchmarks.executor_gpu import Options, main, parse


def test_arguments_have_the_sizes_of_the_goals_as_defaults() -> None:
    assert parse([]) == Options(8192, 128_256, 4096, 128, "bfloat16", "cuda", 5)
    assert parse(["--width", "8", "--device", "cpu"]) == Options(width=8, device="cpu")


def test_every_row_runs_at_a_small_size(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--positions", "40", "--vocabulary", "300", "--width", "8", "--entries", "9", "--runs", "1"]
    main([*sizes, "--device", "cpu", "--dtype", "float32"])
    shown = capsys.readouterr().out
    for name in ("dense JSD", "dense KL, JSD and cross-entropy", "sparse KL", "cross-entropy"):
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert 0 < float(line.split()[-1]) < 30
    assert "sparse KL against cross-entropy" in shown


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is here"):
        main([])
