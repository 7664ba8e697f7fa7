"""Codec `token`: the log-probability of the token that the text goes on with.

One column, `logprobs`: one little-endian float32 a position; NaN where the mask is False.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from limbeck.errors import LimbeckError
from limbeck.settings import Settings
from limbeck.signals.codecs.columns import Columns, fixed_column
from limbeck.signals.codecs.dense import exact_bytes
from limbeck.signals.codecs.registry import codec, positions_of
from limbeck.signals.types import TokenSignal


class TokenSpec(Settings):
    """Settings of codec `token`."""

    codec: Literal["token"] = "token"
    version: Literal[1] = 1


@codec("token", TokenSpec)
class TokenCodec:
    """Stores one number a position; see the module."""

    kind = "token"
    columns: tuple[str, ...] = ("logprobs",)

    def __init__(self, spec: TokenSpec, vocabulary: int) -> None:
        self.spec = spec
        self.vocabulary = vocabulary

    def encode(self, signal: TokenSignal, lengths: Sequence[int]) -> Columns:
        """Store each position's log-probability, exactly.

        Raises:
            LimbeckError: a NaN or a value above 0; row and position are named.
        """
        logprobs_N = signal.logprobs.detach().cpu().float()
        mask_N = signal.mask.detach().cpu()
        if logprobs_N.shape != (sum(lengths),):
            raise LimbeckError(f"codec token: expected [{sum(lengths)}], got {list(logprobs_N.shape)}.")
        wrong_N = ~(logprobs_N <= 0) & mask_N
        if wrong_N.any():
            index = int(wrong_N.nonzero()[0, 0])
            raise LimbeckError(
                f"codec token: {positions_of(lengths, index)}: a log-probability of {float(logprobs_N[index]):g}."
            )
        stored_N1 = torch.where(mask_N, logprobs_N, float("nan")).contiguous()[:, None]
        return {"logprobs": fixed_column(stored_N1.view(torch.uint8).numpy(), lengths)}

    def decode(self, columns: Columns, lengths: Sequence[int]) -> TokenSignal:
        """Return what was stored.

        Raises:
            IntegrityError: a row has another number of bytes than its positions need.
        """
        stored_N = torch.from_numpy(exact_bytes(columns, "logprobs", lengths, 4, "token")).view(torch.float32)[:, 0]
        mask_N = ~stored_N.isnan()
        return TokenSignal(torch.where(mask_N, stored_N, 0.0), mask_N)
