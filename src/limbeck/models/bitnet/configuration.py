"""The shape of a BitNet student: every field changes the graph, or is refused.

Names are those of `transformers`. Three profiles set the fields that make a student loadable elsewhere; see `presets`.
"""

from typing import Any

from transformers import PreTrainedConfig

from limbeck.errors import UserError

ACTIVATIONS = ("silu", "gelu", "relu2")
SCALES = ("tensor", "row")
ACTIVATION_BITS = (8, 16)


class LimbeckBitNetConfig(PreTrainedConfig):
    """Configuration of a decoder whose linear layers are ternary, or dense in its twin.

    Attributes:
        vocab_size: V, rows of the embedding.
        hidden_size: D.
        intermediate_size: width of the MLP.
        num_hidden_layers: blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key-value heads; divides the query heads.
        head_dim: width of a head, even; None: D over the query heads.
        max_position_embeddings: longest input, in tokens.
        rope_parameters: `rope_theta` and `rope_type` with its own parameters, as in `transformers`.
        hidden_act: `silu`, `gelu` or `relu2` (squared ReLU).
        gated_mlp: `down(act(gate(x)) * up(x))`; False: `down(act(up(x)))`.
        sub_norms: an RMSNorm before the attention's and the MLP's output product (SubLN, arXiv:2212.04356).
        qk_norm: an RMSNorm over each head's queries and keys, before positions are applied.
        attn_logit_softcapping: c: attention scores become `c * tanh(score / c)`; None: as they are.
        final_logit_softcapping: the same for the logits.
        tie_word_embeddings: the output head is the embedding.
        ternary: False makes the dense twin: the same shape with ordinary linear layers.
        weight_scale: one scale a `tensor`, or one a `row` of outputs.
        activation_bits: inputs of ternary layers are rounded to so many bits a number, with one scale a token; 16
            leaves them as they are.
        rms_norm_eps: of every norm.
        initializer_range: standard deviation of new weights.
        attention_dropout: in training.

    Raises:
        UserError: a field has no meaning, or does not go with another.
    """

    model_type = "limbeck_bitnet"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    default_theta = 10000.0

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int = 4
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_parameters: dict[str, Any] | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True
    sub_norms: bool = True
    qk_norm: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    ternary: bool = True
    weight_scale: str = "tensor"
    activation_bits: int = 8
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_dropout: float | int = 0.0
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"num_attention_heads: {self.num_attention_heads} heads don't divide a hidden size of "
                    f"{self.hidden_size}. Give head_dim, or change one of them."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self._check()

    @property
    def width_of_head(self) -> int:
        """The width of a head, given or not."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def _check(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but has to be at least 1.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads: {self.num_key_value_heads} does not divide {self.num_attention_heads} query "
                "heads."
            )
        if self.head_dim is not None and self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim}, but rotary positions turn pairs: make it even.")
        _one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        _one_of("weight_scale", self.weight_scale, SCALES)
        _one_of("activation_bits", self.activation_bits, ACTIVATION_BITS)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            cap = getattr(self, name)
            if cap is not None and not cap > 0:
                raise UserError(f"{name} is {cap:g}, but a cap has to be positive; null leaves it out.")
        if not self.ternary and (self.weight_scale != "tensor" or self.activation_bits != 8):
            raise UserError("weight_scale and activation_bits say nothing of a dense student: leave them out.")


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise UserError(f"{name}: {value!r} is none of {', '.join(map(str, known))}.")
