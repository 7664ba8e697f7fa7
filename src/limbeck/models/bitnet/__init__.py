"""The BitNet family of students: importing this package makes `transformers`' Auto classes know it."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from limbeck.models.bitnet.configuration import LimbeckBitNetConfig
from limbeck.models.bitnet.modelling import LimbeckBitNetForCausalLM, LimbeckBitNetModel

__all__ = ["LimbeckBitNetConfig", "LimbeckBitNetForCausalLM", "LimbeckBitNetModel"]

AutoConfig.register(LimbeckBitNetConfig.model_type, LimbeckBitNetConfig, exist_ok=True)
AutoModel.register(LimbeckBitNetConfig, LimbeckBitNetModel, exist_ok=True)
AutoModelForCausalLM.register(LimbeckBitNetConfig, LimbeckBitNetForCausalLM, exist_ok=True)
