"""The log-probabilities of codec `distillkit`: from numbers to the bytes of `compressed_logprobs` and back.

For each position, without padding between fields: `exact_k` numbers; one coefficient a term; and for each residual bin
its scale and its elements, packed most significant bit first. All numbers are little-endian. The layout says what is
read; the writer is free in what it chooses, and chooses so:

- coefficients are least squares in float64;
- a bin of one bit stores signs, and the mean magnitude as its scale (two values can't do better);
- error diffusion carries the error in nats, across bins too, and under delta encoding from one exact number to the
  next, so that it is the sums that are right.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from limbeck.signals.codecs.bit_packing import Unsigned, pack_bits, packed_bytes, unpack_bits
from limbeck.signals.codecs.columns import Bytes
from limbeck.signals.codecs.distillkit_fit import DTYPES, Fit, fit_of
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec, ResidualBin

Refuse: TypeAlias = Callable[[Tensor, str], None]


def value_bytes(spec: DistillkitSpec) -> int:
    """Return the bytes of a position's `compressed_logprobs`."""
    numbers = spec.exact_k * DTYPES[spec.exact_dtype].itemsize + len(spec.terms) * DTYPES[spec.term_dtype].itemsize
    return numbers + sum(_bin_bytes(part) for part in spec.residual_bins)


def tail_fit(spec: DistillkitSpec) -> Fit:
    """Return the fit of the entries that are not stored as numbers.

    Raises:
        UserError: a term is not finite in the coefficients' dtype.
    """
    return fit_of(spec.tail, spec.terms, spec.term_dtype, unit=spec.normalize_t)


def encode_values(logprobs_NK: Tensor, spec: DistillkitSpec, refuse: Refuse) -> Bytes:
    """Return `[N, value_bytes(spec)]`.

    Where an entry beyond the first `exact_k` is absent, nothing finite can stand for it: coefficients and scales
    become NaN, and with them the whole of that position's approximated part reads as absent.

    Args:
        logprobs_NK: float64 `[N, k]`, falling, `-inf` where absent.
        spec: the layout.
        refuse: called with a `[N]` flag and a complaint about flagged positions; does nothing if none is.
    """
    numbers_NK = _differences(logprobs_NK) if spec.delta_encoding else logprobs_NK
    given_NE, tail_NJ = numbers_NK[:, : spec.exact_k], numbers_NK[:, spec.exact_k :]
    exact_NE, carry_N = _round_exact(given_NE, spec)
    refuse(
        (exact_NE.isinf() & given_NE.isfinite()).any(1),
        f"a log-probability is out of the range of exact_dtype {spec.exact_dtype}",
    )
    parts = [bytes_of(exact_NE)]

    fit = tail_fit(spec)
    coefficients_NM = fit.solve(tail_NJ)
    refuse(
        coefficients_NM.isinf().any(1)
        | ~(fit.evaluate(coefficients_NM).isfinite().all(1) | ~tail_NJ.isfinite().all(1)),
        f"the fitted polynomial is out of the range of term_dtype {spec.term_dtype}",
    )
    parts.append(bytes_of(coefficients_NM))

    residual_NJ = tail_NJ - fit.evaluate(coefficients_NM).double()
    start = 0
    for part in spec.residual_bins:
        residuals = residual_NJ[:, start : start + part.num_elements]
        start += part.num_elements
        scale_N = _scale_of(residuals, part)
        refuse(scale_N.isinf(), f"the scale of a residual bin is out of the range of scale_dtype {part.scale_dtype}")
        codes, carry_N = _quantise(residuals, scale_N.double(), part.element_bits, carry_N)
        parts += [bytes_of(scale_N[:, None]), pack_bits(codes, part.element_bits)]
    return np.concatenate(parts, axis=1)


def decode_values(data_NW: Bytes, spec: DistillkitSpec) -> Tensor:
    """Return float64 `[N, k]`: what the bytes say, whether it makes sense or not."""
    exact_bytes = spec.exact_k * DTYPES[spec.exact_dtype].itemsize
    term_bytes = len(spec.terms) * DTYPES[spec.term_dtype].itemsize
    exact_NE = numbers_in(data_NW[:, :exact_bytes], spec.exact_dtype).double()
    coefficients_NM = numbers_in(data_NW[:, exact_bytes : exact_bytes + term_bytes], spec.term_dtype)
    tail_NJ = tail_fit(spec).evaluate(coefficients_NM).double()
    at, start = exact_bytes + term_bytes, 0
    for part in spec.residual_bins:
        scale_bytes, end = DTYPES[part.scale_dtype].itemsize, at + _bin_bytes(part)
        scale_N1 = numbers_in(data_NW[:, at : at + scale_bytes], part.scale_dtype).double()
        codes = unpack_bits(data_NW[:, at + scale_bytes : end], part.num_elements, part.element_bits)
        tail_NJ[:, start : start + part.num_elements] += _levels_of(codes, part.element_bits) * scale_N1
        at, start = end, start + part.num_elements
    numbers_NK = torch.cat([exact_NE, tail_NJ], 1)
    return numbers_NK.cumsum(1) if spec.delta_encoding else numbers_NK


def _bin_bytes(part: ResidualBin) -> int:
    return DTYPES[part.scale_dtype].itemsize + packed_bytes(part.num_elements, part.element_bits)


def _differences(logprobs_NK: Tensor) -> Tensor:
    """Return the first entry, and each other less the one before; `-inf` from the first absent entry on."""
    differences = logprobs_NK.diff(dim=1)
    return torch.cat([logprobs_NK[:, :1], differences.nan_to_num(nan=float("-inf"), neginf=float("-inf"))], 1)


def _round_exact(given_NE: Tensor, spec: DistillkitSpec) -> tuple[Tensor, Tensor | None]:
    """Return the numbers in their dtype, and the error for the next one to make up for, `[N]`; None: it is let be."""
    if not spec.error_diffusion:
        return given_NE.to(DTYPES[spec.exact_dtype]), None
    carry_N = given_NE.new_zeros(len(given_NE))
    if not spec.delta_encoding:
        return given_NE.to(DTYPES[spec.exact_dtype]), carry_N
    exact_NE = torch.empty(given_NE.shape, dtype=DTYPES[spec.exact_dtype])
    for index, wanted_N in enumerate(given_NE.unbind(1)):
        wanted_N = wanted_N + carry_N
        exact_NE[:, index] = wanted_N.to(exact_NE.dtype)
        carry_N = (wanted_N - exact_NE[:, index].double()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return exact_NE, carry_N


def _scale_of(residuals_NB: Tensor, part: ResidualBin) -> Tensor:
    """Return the step of each position's bin: 1 where nothing is to be stored, NaN where entries are absent."""
    magnitude = residuals_NB.abs()
    scale_N = magnitude.mean(1) if part.element_bits == 1 else magnitude.amax(1) / 2.0 ** (part.element_bits - 1)
    scale_N = scale_N.masked_fill(~residuals_NB.isfinite().all(1), float("nan")).to(DTYPES[part.scale_dtype])
    return scale_N.masked_fill(scale_N == 0, 1.0)


def _quantise(
    residuals_NB: Tensor, scale_N: Tensor, bits: int, carry_N: Tensor | None
) -> tuple[Unsigned, Tensor | None]:
    """Return codes `[N, B]`, and the error that is carried on; None carries none."""
    if carry_N is None:
        return _codes_of(residuals_NB / scale_N[:, None], bits), None
    codes = np.zeros(residuals_NB.shape, dtype=np.uint64)
    for index, residual_N in enumerate(residuals_NB.unbind(1)):
        wanted_N = residual_N + carry_N
        codes[:, index] = _codes_of((wanted_N / scale_N)[:, None], bits)[:, 0]
        read_N = _levels_of(codes[:, index : index + 1], bits)[:, 0] * scale_N
        carry_N = (wanted_N - read_N).nan_to_num(nan=0.0)
    return codes, carry_N


def _codes_of(steps: Tensor, bits: int) -> Unsigned:
    """Return the codes of residuals that are given in steps."""
    if bits == 1:
        return (steps >= 0).numpy().astype(np.uint64)
    half = 1 << (bits - 1)
    rounded = np.rint(steps.nan_to_num(nan=0.0).numpy())
    top = rounded >= half  # the largest code itself may be no float64
    levels = np.clip(np.where(top, 0.0, rounded), -half, None).astype(np.int64)
    return np.where(top, np.uint64(2 * half - 1), levels.astype(np.uint64) + np.uint64(half))


def _levels_of(codes: Unsigned, bits: int) -> Tensor:
    """Return the multiples of the scale that codes stand for, float64."""
    if bits == 1:
        return torch.from_numpy(codes.astype(np.float64) * 2 - 1)
    return torch.from_numpy((codes - np.uint64(1 << (bits - 1))).astype(np.int64).astype(np.float64))


def bytes_of(numbers_NM: Tensor) -> Bytes:
    """Return `[N, M * itemsize]`."""
    if not numbers_NM.numel():
        rows, width = numbers_NM.shape
        return np.zeros((rows, width * numbers_NM.element_size()), dtype=np.uint8)
    return np.asarray(numbers_NM.contiguous().view(torch.uint8).numpy())


def numbers_in(data_NW: Bytes, dtype: str) -> Tensor:
    """Return `[N, W / itemsize]` numbers."""
    if not data_NW.size:
        rows, width = data_NW.shape
        return torch.zeros(rows, width // DTYPES[dtype].itemsize, dtype=DTYPES[dtype])
    return torch.from_numpy(data_NW.copy()).view(DTYPES[dtype])
