"""The student that training starts from: one that exists, an untrained BitNet student, or one made of a dense model.

model: students/initial                                          a folder or repository
model: {preset: bitnet-100m, tokenizer: students/tokenizer}      untrained, with the tokenizer's vocabulary
model: {from_dense: Qwen/Qwen3-0.6B}                             its linear layers ternary, its weights kept
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from limbeck.settings import Settings


class _Changes(Settings):
    """What any BitNet student may have otherwise than where it comes from; what isn't given stays as it is there.

    Attributes:
        ternary: false makes the dense twin.
        sub_norms: a norm before the output products of attention and MLP.
        weight_scale: one scale a tensor, or one a row.
        activation_bits: of the inputs of ternary layers; 16 leaves them as they are.
        attention_dropout: in training.
        max_position_embeddings: longest input, in tokens.
    """

    ternary: bool = True
    sub_norms: bool = True
    weight_scale: Literal["tensor", "row"] = "tensor"
    activation_bits: Literal[8, 16] = 8
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    max_position_embeddings: int = Field(2048, gt=0)

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not given: it is not the default that counts, but what the preset says."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}

    def changes(self) -> dict[str, Any]:
        """Return what was given, by the names of `LimbeckBitNetConfig`."""
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name not in ("preset", "tokenizer", "from_dense")
        }


class PresetModel(_Changes):
    """An untrained student: the shape of a preset, a tokenizer's vocabulary, weights by `training_args.seed`.

    Attributes:
        preset: one of `limbeck models list`.
        tokenizer: folder or repository; `model_revision` is of it.
        hidden_size: D.
        intermediate_size: width of the MLP.
        num_hidden_layers: blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key-value heads.
        head_dim: width of a head.
        rope_parameters: of positions, as in `transformers`.
        hidden_act: of the MLP.
        gated_mlp: whether the MLP has a gate.
        qk_norm: norms over each head's queries and keys.
        attn_logit_softcapping: cap of attention's scores.
        final_logit_softcapping: cap of the logits.
        tie_word_embeddings: the head is the embedding.
        rms_norm_eps: of every norm.
        initializer_range: standard deviation of new weights.
    """

    preset: str
    tokenizer: str
    hidden_size: int = Field(768, gt=0)
    intermediate_size: int = Field(2048, gt=0)
    num_hidden_layers: int = Field(12, gt=0)
    num_attention_heads: int = Field(12, gt=0)
    num_key_value_heads: int = Field(4, gt=0)
    head_dim: int | None = Field(None, gt=0)
    rope_parameters: dict[str, Any] | None = None
    hidden_act: Literal["silu", "gelu", "relu2"] = "silu"
    gated_mlp: bool = True
    qk_norm: bool = False
    attn_logit_softcapping: float | None = Field(None, gt=0)
    final_logit_softcapping: float | None = Field(None, gt=0)
    tie_word_embeddings: bool = True
    rms_norm_eps: float = Field(1e-5, gt=0)
    initializer_range: float = Field(0.02, gt=0)


class DenseModel(_Changes):
    """A ternary student with the weights of a dense checkpoint, which gives its tokenizer, too.

    Attributes:
        from_dense: folder or repository of a decoder of the Llama or Qwen3 kind; `model_revision` is of it.
    """

    from_dense: str


def _kind(given: Any) -> str:
    if isinstance(given, DenseModel) or (isinstance(given, dict) and "from_dense" in given):
        return "converted"
    return "untrained" if isinstance(given, PresetModel | dict) else "name"


ModelSettings = Annotated[
    Annotated[str, Tag("name")] | Annotated[PresetModel, Tag("untrained")] | Annotated[DenseModel, Tag("converted")],
    Discriminator(_kind),
]


class QuantisationSettings(Settings):
    """How a ternary student's rounding sets in: from none at the first step, linearly to all of it.

    Attributes:
        ramp_steps: the first step with all of it.
        ramp: the same as a share of the run's steps.
    """

    ramp_steps: int | None = Field(None, ge=0)
    ramp: float | None = Field(None, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> "QuantisationSettings":
        if (self.ramp_steps is None) == (self.ramp is None):
            raise ValueError("name one of ramp_steps and ramp")
        return self
