"""Settings of codecs `distillkit` and `distillkit_legacy`, with the names and defaults of DistillKit's own files.

`read_config` takes those files as they are: settings at the top level, or under `logprob_compressor` or
`legacy_logit_compression`. Keys that DistillKit would ignore without a word are errors here.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.errors import UserError
from limbeck.settings import Settings, validate_settings
from limbeck.signals.codecs.bit_packing import bits_for

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
Term = int | Literal["sqrt", "exp"]

LARGEST = 1 << 21  # beyond it DistillKit's own width, taken from a float32 logarithm, can be a bit short
SECTIONS = ("logprob_compressor", "legacy_logit_compression")


class ResidualBin(Settings):
    """A run of the tail's residuals that share a scale.

    Attributes:
        scale_dtype: of the scale.
        element_bits: of each residual.
        num_elements: how many residuals.
    """

    scale_dtype: Dtype
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(gt=0)


class DistillkitSpec(Settings):
    """Settings of codec `distillkit`: what DistillKit calls `logprob_compressor`.

    Attributes:
        d: size of the vocabulary; it sets the width of an id.
        k: entries of a position.
        exact_k: how many of them, the most probable, are stored as numbers.
        exact_dtype: of these.
        polynomial_terms: the functions of rank that the others are fitted with: i stands for `t ** i`.
        term_dtype: of the fit's coefficients; the fit is evaluated in it, too.
        residual_bins: what the fit misses, quantised; consecutive runs, from the tail's first entry on.
        delta_encoding: store differences of neighbouring log-probabilities.
        error_diffusion: add what rounding one number lost to the next number.
        normalize_t: t runs evenly from 0 to 1, rather than 0, 1, 2, ... (recommended with high powers).
    """

    codec: Literal["distillkit"] = "distillkit"
    version: Literal[1] = 1
    d: int = Field(ge=2, le=LARGEST)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    exact_dtype: Dtype = "float32"
    polynomial_terms: tuple[Term, ...] | None = None
    term_dtype: Dtype = "float32"
    residual_bins: tuple[ResidualBin, ...]
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _check(self) -> "DistillkitSpec":
        covered = sum(part.num_elements for part in self.residual_bins)
        if self.k > self.d:
            raise ValueError(f"k = {self.k} entries out of a vocabulary of d = {self.d}")
        if self.exact_k > self.k:
            raise ValueError(f"exact_k = {self.exact_k} is more than k = {self.k}")
        if covered > self.tail:
            raise ValueError(f"residual_bins cover {covered} entries, but k - exact_k = {self.tail}")
        if self.tail and not self.terms and not covered:
            raise ValueError("exact_k is less than k, but there are neither polynomial_terms nor residual_bins")
        if self.tail > covered and not self.terms and not self.delta_encoding:
            raise ValueError(f"{self.tail - covered} entries have neither a polynomial term nor a residual")
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        """Return the fit's terms; none where there is nothing to fit."""
        return self.polynomial_terms or () if self.tail else ()

    @property
    def tail(self) -> int:
        """Return how many entries are not stored as numbers."""
        return self.k - self.exact_k

    @property
    def id_bits(self) -> int:
        """Return the bits of an id."""
        return bits_for(self.d)


class DistillkitLegacySpec(Settings):
    """Settings of codec `distillkit_legacy`: what DistillKit calls `legacy_logit_compression`.

    Attributes:
        vocab_size: size of the vocabulary; it sets the width of an id.
        k: entries of a position.
        exact_k: how many of them, the most probable, are stored as float16.
        polynomial_degree: the greatest power of the fit.
        with_sqrt_term: whether it has a square root, too.
        term_dtype: of the fit's coefficients.
        invert_polynomial: powers of 1 / rank rather than of the rank.
    """

    codec: Literal["distillkit_legacy"] = "distillkit_legacy"
    version: Literal[1] = 1
    vocab_size: int = Field(ge=2, le=LARGEST)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    polynomial_degree: int = Field(ge=0)
    with_sqrt_term: bool = False
    term_dtype: Dtype = "float32"
    invert_polynomial: bool = True

    @model_validator(mode="after")
    def _check(self) -> "DistillkitLegacySpec":
        if self.k > self.vocab_size:
            raise ValueError(f"k = {self.k} entries out of a vocabulary of vocab_size = {self.vocab_size}")
        if self.exact_k > self.k:
            raise ValueError(f"exact_k = {self.exact_k} is more than k = {self.k}")
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        """Return the fit's terms, in the order of their coefficients."""
        sign = -1 if self.invert_polynomial else 1
        powers = tuple(sign * power for power in range(self.polynomial_degree + 1))
        return (*powers, "sqrt") if self.with_sqrt_term else powers

    @property
    def tail(self) -> int:
        """Return how many entries are not stored as numbers."""
        return self.k - self.exact_k

    @property
    def id_bits(self) -> int:
        """Return the bits of an id."""
        return bits_for(self.vocab_size)


def read_config(data: dict[str, Any], source: str = "compression config") -> DistillkitSpec | DistillkitLegacySpec:
    """Return the codec that a DistillKit file of settings describes.

    Args:
        data: the file's keys: the settings themselves, or a section that holds them.
        source: what messages call it.

    Raises:
        UserError: a key is unknown or missing, a value is out of range, or both sections are there.
    """
    sections = [name for name in SECTIONS if data.get(name) is not None]
    if len(sections) == 2:
        raise UserError(f"{source}: holds both {SECTIONS[0]} and {SECTIONS[1]}. Keep the one that the data are in.")
    legacy = SECTIONS[1] in sections or (not sections and ("polynomial_degree" in data or "vocab_size" in data))
    if sections:
        source, inner = f"{source}: {sections[0]}", data[sections[0]]
        if not isinstance(inner, dict):
            raise UserError(f"{source} is a value, not a section.")
        data = inner
    if legacy:
        return validate_settings(data, DistillkitLegacySpec, source)
    return validate_settings(data, DistillkitSpec, source)
