"""Which engine a teacher runs on: the settings that recipes name under `engine`, told apart by that key.

Nothing heavy is imported here, so that a recipe can be checked without loading an engine.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from limbeck.settings import Settings


class TransformersEngine(Settings):
    """The `transformers` library in this process.

    Attributes:
        device: any that torch knows, such as `cpu`, `cuda`, `cuda:1`.
        dtype: of the weights; `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        batch_tokens: tokens read at a time, padding included.
    """

    engine: Literal["transformers"] = "transformers"
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = Field(default=8192, ge=1)


class VllmEngine(Settings):
    """vLLM in this process (extra `vllm`). Names and meanings are those of vLLM's own engine arguments.

    Attributes:
        dtype: of the weights; `auto` is the checkpoint's own.
        quantization: a method that vLLM knows, for weights that are quantised; None: as the checkpoint says.
        gpu_memory_utilization: share of each GPU's memory that vLLM takes.
        max_model_len: longest sequence, in tokens; None: the model's own.
        trust_remote_code: run Python code from the teacher's repository. Off unless you have read that code.
        seed: of vLLM itself; every completion has a seed of its own besides.
    """

    engine: Literal["vllm"]
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    enable_expert_parallel: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: int | None = Field(default=None, ge=1)
    enforce_eager: bool = False
    trust_remote_code: bool = False
    seed: int = 0


class ServerEngine(Settings):
    """A server that speaks OpenAI's protocol over HTTP.

    Attributes:
        base_url: up to and with the version, such as `http://127.0.0.1:8000/v1`.
        model: the id by which the server knows the teacher.
        reported_model: the id that answers must carry; `model` when absent.
        protocol: `vllm` sends token ids and asks for `prompt_logprobs`, which vLLM's server has; `openai` keeps to
            what OpenAI's protocol describes (`echo` with `logprobs`, `top_logprobs`) and aligns answers by bytes.
        mode: `prompt` scores given rows; `generated` takes the log-probabilities that come with generated tokens.
        top: entries asked for at each position; by default as many as the codec keeps, and 20 in mode `generated`
            (where `sampling.top_logprobs` goes before it). vLLM's server allows 20 unless it was started with
            `--max-logprobs`.
        vocabulary: size of the teacher's distributions; by default what the teacher's config.json says.
        api_key_env: the environment variable that holds the key; no key is sent where it is absent.
        concurrency: requests under way at once.
        attempts: how often a request is sent before it counts as failed.
        timeout_s: longest time one attempt may take, in seconds.
        longest_wait_s: longest `Retry-After` that is waited for, in seconds.
        budget_tokens: tokens, of prompts and answers together, after which nothing more is asked.
    """

    engine: Literal["server"]
    base_url: str = Field(pattern=r"^https?://[^\s?#]+$")
    model: str = Field(min_length=1)
    reported_model: str | None = None
    protocol: Literal["vllm", "openai"] = "vllm"
    mode: Literal["prompt", "generated"] = "prompt"
    top: int | None = Field(default=None, ge=1)
    vocabulary: int | None = Field(default=None, ge=2)
    api_key_env: str | None = None
    concurrency: int = Field(default=8, ge=1, le=4096)
    attempts: int = Field(default=6, ge=1)
    timeout_s: float = Field(default=300.0, gt=0)
    longest_wait_s: float = Field(default=300.0, ge=0)
    budget_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "ServerEngine":
        if self.mode == "generated" and self.protocol == "openai" and (self.top or 0) > 20:
            raise ValueError("top: OpenAI's protocol returns at most 20 log-probabilities of a generated token")
        return self

    @property
    def answering_model(self) -> str:
        """Return the model id that every answer must carry."""
        return self.reported_model or self.model


EngineSettings: TypeAlias = Annotated[TransformersEngine | VllmEngine | ServerEngine, Field(discriminator="engine")]
