"""`limbeck capture`: what a teacher says about a text, as a dataset of signals."""

from pathlib import Path
from typing import Annotated, Any

import typer

PLACES = {
    "model": "model",
    "revision": "revision",
    "tokenizer": "tokenizer",
    "output": "output",
    "seed": "seed",
    "macrobatch_size": "samples_per_shard",
    "processes": "processes",
    "token_budget": "token_budget",
    "cluster": "cluster",
    "dataset": "dataset.path",
    "dataset_configuration": "dataset.configuration",
    "split": "dataset.split",
    "samples": "dataset.samples",
    "sequence_length": "dataset.sequence_length",
    "apply_chat_template": "dataset.chat_template",
    "engine": "engine.engine",
    "device": "engine.device",
    "dtype": "engine.dtype",
    "batch_tokens": "engine.batch_tokens",
    "base_url": "engine.base_url",
    "max_workers": "engine.concurrency",
    "max_model_len": "engine.max_model_len",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "pipeline_parallel_size": "engine.pipeline_parallel_size",
    "enable_expert_parallel": "engine.enable_expert_parallel",
    "quantization": "engine.quantization",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "trust_remote_code": "engine.trust_remote_code",
}  # where in the recipe each option goes


def capture(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file; options change what it says.")] = None,
    model: Annotated[str | None, typer.Option(help="The teacher: a folder, a repository, or `pocket`.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The text: a file, a folder, or a Hugging Face dataset.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder for the dataset of signals.")] = None,
    compression_config: Annotated[Path | None, typer.Option(help="YAML with the codec's settings.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the teacher's repository.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where it does not lie with the model.")] = None,
    dataset_configuration: Annotated[str | None, typer.Option(help="Of a Hugging Face dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hugging Face dataset.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Take this many, after shuffling by the seed.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    apply_chat_template: Annotated[
        bool | None, typer.Option("--apply-chat-template/--no-apply-chat-template", help="Use the teacher's template.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", "--max-seq-len", min=2, help="Longest row, in tokens.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="transformers, vllm or server.")] = None,
    device: Annotated[str | None, typer.Option(help="Where a transformers teacher runs: cpu, cuda, cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the teacher's weights.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=64, help="Tokens that the teacher reads at a time.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server.")] = None,
    max_workers: Annotated[int | None, typer.Option(min=1, help="Requests to a server at a time.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="vLLM: the longest context.")] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(min=1, help="vLLM: devices that share each layer.")
    ] = None,
    pipeline_parallel_size: Annotated[int | None, typer.Option(min=1, help="vLLM: devices in a row.")] = None,
    enable_expert_parallel: Annotated[bool | None, typer.Option(help="vLLM: spread experts over devices.")] = None,
    quantization: Annotated[str | None, typer.Option(help="vLLM: of the weights.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="vLLM: share of the device's memory.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="vLLM: run Python code from the teacher's repository.")
    ] = None,
    auto_vocab_size: Annotated[
        bool, typer.Option("--auto-vocab-size", help="Always so: the vocabulary's size is the teacher's own.")
    ] = True,
    macrobatch_size: Annotated[int | None, typer.Option(min=1, help="Rows in a shard.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes (or actors) with a teacher each.")] = None,
    cluster: Annotated[str | None, typer.Option(help="local, or ray.")] = None,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Stop cleanly after about this many tokens.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe: a.b=c.")] = None,
) -> None:
    """Capture a teacher's next-token distributions; stopped, the same command goes on at the first missing shard."""
    given = {name: value for name, value in locals().items() if name in PLACES and value is not None}
    from limbeck.settings import read_yaml, validate_settings, with_overrides

    data: dict[str, Any] = read_yaml(recipe) if recipe else {}
    for name, value in given.items():
        *sections, key = PLACES[name].split(".")
        node = data
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    if "engine" in data:
        data["engine"].setdefault("engine", "transformers")
    if samples is not None:
        data["dataset"].setdefault("seed", seed if seed is not None else 42)
    from limbeck.data.capture import CaptureRecipe, read_codec
    from limbeck.data.capture import capture as run
    from limbeck.pocket.places import resolve

    if compression_config is not None:
        data["codec"] = read_codec(compression_config).model_dump(mode="json")
    if "model" in data:
        data["name"], data["model"] = data.get("name", data["model"]), resolve(data["model"])
    if data.get("tokenizer"):
        data["tokenizer"] = resolve(data["tokenizer"])
    source = str(recipe) if recipe else "limbeck capture"
    typer.echo(run(validate_settings(with_overrides(data, settings or []), CaptureRecipe, source)))
