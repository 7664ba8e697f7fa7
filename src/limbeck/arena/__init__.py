"""Run an open competition: chain, admission, rounds, decision, store, replay. See `docs/arena.md`."""
