"""Compare a student with its teacher: divergences, skill axes, statistics. See `docs/evaluate.md`."""
