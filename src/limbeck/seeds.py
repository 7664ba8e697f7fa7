"""Where all randomness comes from.

A seed is derived by SHA-256 from a root (a block hash, or a run's seed) and labels that say what it is for. Two
different label sequences never collide by concatenation, and neighbouring roots share nothing: the opposite of
`seed + index`.
"""

import hashlib
from random import Random


def derive_seed(root: str | int, *labels: str | int) -> int:
    """Return a 64-bit seed for the purpose named by `labels` under `root`.

    The digest is SHA-256 over the parts, each preceded by its length in bytes (8 bytes, big-endian) and by one byte
    that tells integers from strings; the seed is its first 8 bytes, big-endian.
    """
    digest = hashlib.sha256()
    for part in (root, *labels):
        data = str(part).encode()
        digest.update((b"i" if isinstance(part, int) else b"s") + len(data).to_bytes(8, "big") + data)
    return int.from_bytes(digest.digest()[:8], "big")


def derive_random(root: str | int, *labels: str | int) -> Random:
    """Return a generator seeded by `derive_seed(root, *labels)`."""
    return Random(derive_seed(root, *labels))
