"""DistillKit's examples train as they are: only models, datasets and output are local, and what this machine lacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from limbeck.distill import sources
from limbeck.distill.recipe import DatasetSettings, DatasetTeacher, DataSource, Recipe
from limbeck.distill.train import TrainingResult, train
from limbeck.errors import UserError
from limbeck.pocket.world import load_teacher
from limbeck.settings import validate_settings
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec
from limbeck.signals.convert.distillkit_export import LastPosition
from limbeck.signals.convert.exporting import export
from limbeck.signals.convert.formats import WriteOptions, make_exporter
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import TeacherRef, make_header
from limbeck.signals.types import TopkSignal
from limbeck.signals.writer import DatasetWriter

QUICK_START = """
project_name: my-distillation
model: Qwen/Qwen3-8B
output_path: ./output
sequence_length: 8192
dataset:
  train_dataset: {repo_id: arcee-ai/Qwen3-235B-Logits-Packed-8192, split: train}
  prepacked: true
teacher:
  kind: dataset
  logprob_compressor:
    {d: 151936, delta_encoding: true, error_diffusion: false, exact_dtype: float32, exact_k: 32, k: 128,
     polynomial_terms: [0, 1, 2], residual_bins: [], term_dtype: float32}
loss_functions:
  - {function: cross_entropy, weight: 0.5}
  - {function: kl, weight: 0.5, temperature: 1.0, missing_probability_handling: zero, sparse_chunk_length: 1024}
training_args:
  {num_train_epochs: 1, per_device_train_batch_size: 1, gradient_accumulation_steps: 8, learning_rate: 2.0e-6,
   bf16: true, optim: adamw_torch, gradient_checkpointing: true}
"""
BASE_70B = """
project_name: llama3p3-70b-dsv3tok
model: /workspace/models/Llama-3.3-70B-DSV3Tok
model_auto_class: AutoModelForCausalLM
output_path: /workspace/models/Llama-3.3-70B-DSV3Tok-BaseDistill-T1
resize_embeddings_to_multiple_of: 64
use_flash_attention: true
sequence_length: 8192
dataset:
  train_dataset: {repo_id: arcee-ai/DeepSeek-DCLM-Logits-Packed-8192, split: train}
  seed: 9
  prepacked: true
teacher:
  kind: dataset
  legacy_logit_compression:
    {vocab_size: 129280, k: 128, exact_k: 32, polynomial_degree: 8, with_sqrt_term: false, term_dtype: float32,
     invert_polynomial: true}
loss_functions:
  - {function: cross_entropy, weight: 0.5}
  - {function: kl, weight: 0.5, temperature: 1.0, missing_probability_handling: zero, sparse_chunk_length: 1024}
training_args:
  {num_train_epochs: 1, per_device_train_batch_size: 1, gradient_accumulation_steps: 8, save_steps: 512,
   save_total_limit: 4, logging_steps: 1, learning_rate: 2.e-7, weight_decay: 0.01, warmup_ratio: 0.025,
   lr_scheduler_type: linear, bf16: true, remove_unused_columns: false, optim: paged_adamw_8bit,
   gradient_checkpointing: true, gradient_checkpointing_kwargs: {use_reentrant: false}, report_to: wandb,
   push_to_hub: true, hub_model_id: arcee-train/Llama-3.3-70B-DSV3Tok-BaseDistill-T1, hub_strategy: every_save}
"""
MULTIMODAL = """
project_name: mistral3-24b-dsv3tok
model: arcee-train/Mistral3-24B-DSV3Tok-BaseDistill-Multilingual-Slerp
model_auto_class: AutoModelForImageTextToText
output_path: /workspace/models/Mistral3-24B-DSV3Tok-MixedReasoning-V1
resize_embeddings_to_multiple_of: 64
use_flash_attention: true
frozen_modules: [vision_tower, multi_modal_projector]
sequence_length: 16384
dataset:
  train_dataset: {repo_id: arcee-ai/DeepSeek-MixedModeReasoning-Logits-Packed-16384, split: train}
  seed: 58347
  prepacked: true
loss_functions:
  - {function: cross_entropy, weight: 0.5}
  - {function: kl, weight: 0.5, temperature: 1.0, missing_probability_handling: zero, sparse_chunk_length: 1024}
functionary_packing: true
teacher:
  kind: dataset
  vocab_size: 129280
  legacy_logit_compression:
    {vocab_size: 129280, k: 32, exact_k: 32, polynomial_degree: 0, with_sqrt_term: false, term_dtype: float32,
     invert_polynomial: true}
training_args:
  {num_train_epochs: 1, per_device_train_batch_size: 1, gradient_accumulation_steps: 8, save_steps: 512,
   save_total_limit: 4, logging_steps: 1, learning_rate: 2.e-7, weight_decay: 0.05, warmup_ratio: 0.025,
   lr_scheduler_type: linear, bf16: true, remove_unused_columns: false, optim: paged_adamw_8bit,
   gradient_checkpointing: true, gradient_checkpointing_kwargs: {use_reentrant: false}, report_to: wandb,
   push_to_hub: true, hub_model_id: arcee-train/Mistral3-24B-DSV3Tok-MixedReasoning-V1, hub_strategy: every_save}
"""
ONLINE = """
project_name: distillkit-afm-online-test
trust_remote_code: true
model: arcee-ai/AFM-4.5B-Base
output_path: /workspace/models/afm-4p5b-instructdistill
use_flash_attention: true
sequence_length: 8192
dataset:
  train_dataset: {repo_id: allenai/tulu-3-sft-mixture, split: train}
  seed: 42
loss_functions:
  - {function: cross_entropy, weight: 0.25}
  - {function: kl, weight: 0.25, temperature: 2.0}
  - {function: hs_cosine, weight: 0.5}
layer_mapping: all
teacher:
  kind: hf
  path: arcee-ai/AFM-4.5B
  kwargs: {attn_implementation: flash_attention_2, torch_dtype: bfloat16}
training_args:
  {dataset_text_field: text, packing: true, num_train_epochs: 1, per_device_train_batch_size: 1,
   gradient_accumulation_steps: 8, save_steps: 200, save_total_limit: 1, logging_steps: 1, learning_rate: 1.0e-5,
   weight_decay: 0.05, warmup_ratio: 0.025, lr_scheduler_type: cosine, bf16: true, max_grad_norm: 0.5,
   optim: adamw_torch, gradient_checkpointing: true, gradient_checkpointing_kwargs: {use_reentrant: false},
   report_to: wandb, push_to_hub: false, dataset_num_proc: 96}
"""
NOT_HERE = {"optim": "adamw_torch", "report_to": "none", "push_to_hub": False}  # packages, a GPU, a network
TOKENS = 14


def distillkit_files(folder: Path, spec: DistillkitSpec | DistillkitLegacySpec, format: str, rows: int = 9) -> Path:
    """Write random signals as DistillKit's own files, packed: two documents a row."""
    vocabulary = spec.d if isinstance(spec, DistillkitSpec) else spec.vocab_size
    header = make_header(
        codec=spec, teacher=TeacherRef(repo="teacher", revision="1"), tokenizer_digest="any", vocabulary=vocabulary,
        text_digest="any", samples=rows, samples_per_shard=rows, documents=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(rows):
        ids_T = torch.randint(0, 4000, (TOKENS,), generator=generator)
        ids_TK = torch.stack([torch.randperm(4000, generator=generator)[: spec.k] for _ in range(TOKENS)])
        ids_TK[:-1, 0] = torch.where((ids_TK[:-1] == ids_T[1:, None]).any(-1), ids_TK[:-1, 0], ids_T[1:])
        logprobs_TK = (torch.randn(TOKENS, spec.k, generator=generator).sort(-1, descending=True).values).log_softmax(
            -1
        )
        nothing_T = torch.zeros(TOKENS)
        signal = TopkSignal(
            ids_TK, logprobs_TK - 0.05, nothing_T, nothing_T[:, None], (1.0,), torch.ones(TOKENS, dtype=torch.bool)
        )
        documents = torch.arange(TOKENS) * 2 // TOKENS + 1
        made.append(SignalRow(ids_T, torch.ones(TOKENS, dtype=torch.bool), signal, documents))
    with DatasetWriter(folder / "ours", header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, [made[sample] for sample in samples])
        writer.finish()
    dataset = SignalDataset.open(folder / "ours")
    last: LastPosition = "drop" if format == "distillkit-parquet" else "keep"
    export(dataset, folder / "files", make_exporter(format, dataset, WriteOptions(last_position=last)))
    return folder / "files"


def text_config(vocabulary: int, context: int, blocks: int = 1) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=blocks, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    load_teacher()[1].save_pretrained(folder)
    return folder


def trained(example: str, out: Path, model: Path, dataset: Path, **changes: Any) -> TrainingResult:
    data = yaml.safe_load(example)
    data |= {"model": str(model), "output_path": str(out), **changes}
    data["dataset"]["train_dataset"] = {"disk_path": str(dataset)}
    data["training_args"] |= NOT_HERE | {"logging_steps": 1}
    return train(validate_settings(data, Recipe, "example"))


def check_trained(result: TrainingResult, *names: str) -> None:
    assert result.history
    for entry in result.history:
        assert all(torch.tensor(entry[name]).isfinite() for name in ("loss", *names))


def test_quick_start_from_saved_arrow(tmp_path: Path) -> None:
    spec = DistillkitSpec.model_validate(yaml.safe_load(QUICK_START)["teacher"]["logprob_compressor"])
    files = distillkit_files(tmp_path, spec, "distillkit-arrow")
    model = save(LlamaForCausalLM(text_config(151936, 8192)), tmp_path / "student")
    result = trained(QUICK_START, tmp_path / "out", model, files)
    check_trained(result, "kl", "cross_entropy")
    assert len(result.history) == 2  # 9 rows, 8 a step


def test_70b_base_from_parquet_with_its_settings(tmp_path: Path) -> None:
    spec = DistillkitLegacySpec.model_validate(yaml.safe_load(BASE_70B)["teacher"]["legacy_logit_compression"])
    files = distillkit_files(tmp_path, spec, "distillkit-parquet")
    assert (files / "compression_config.yaml").exists()
    model = save(LlamaForCausalLM(text_config(129000, 8192)), tmp_path / "student")
    result = trained(BASE_70B, tmp_path / "out", model, files)
    check_trained(result, "kl", "cross_entropy")
    assert LlamaForCausalLM.from_pretrained(result.folder).config.vocab_size == 129280  # the signals' vocabulary


def test_a_repository_of_signals_is_fetched_and_its_splits_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's part is played by a folder; everything behind the download is real."""
    spec = DistillkitLegacySpec(vocab_size=5000, k=4, exact_k=4, polynomial_degree=0)
    files = distillkit_files(tmp_path / "made", spec, "distillkit-parquet", rows=3)
    part = tmp_path / "snapshot" / "data" / "train-00000-of-00001.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(next(files.glob("*.parquet")).read_bytes())
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshot"))
    settings = DatasetSettings(train_dataset=(DataSource(repo_id="owner/signals"),))
    teacher = DatasetTeacher(legacy_logit_compression=spec.model_dump(exclude={"codec", "version"}))
    found = sources.open_source(settings.train_dataset[0], "k", settings, teacher, 64)
    assert isinstance(found, sources.Stored) and (found.rows, found.longest, found.tokens) == (3, TOKENS, 3 * TOKENS)
    with pytest.raises(UserError, match=r"^k: .*no compression_config.yaml here"):
        sources.open_source(settings.train_dataset[0], "k", settings, DatasetTeacher(), 64)
    part.with_name("test-00000-of-00001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(UserError, match=r"^k: owner/signals: data holds the splits test, train side by side"):
        sources.open_source(settings.train_dataset[0], "k", settings, teacher, 64)


def test_multimodal_student_trains_its_text_path_alone(tmp_path: Path) -> None:
    spec = DistillkitLegacySpec.model_validate(yaml.safe_load(MULTIMODAL)["teacher"]["legacy_logit_compression"])
    files = distillkit_files(tmp_path, spec, "distillkit-arrow")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(vision_config=vision, text_config=text_config(129280, 16384), image_token_index=9)
    before = LlavaForConditionalGeneration(config)
    model = save(before, tmp_path / "student")
    data = yaml.safe_load(MULTIMODAL)
    result = trained(
        MULTIMODAL, tmp_path / "out", model, files, training_args=data["training_args"] | {"learning_rate": 1e-3}
    )
    check_trained(result, "kl", "cross_entropy")
    weights, after = before.state_dict(), LlavaForConditionalGeneration.from_pretrained(result.folder).state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, after[name].to(value.dtype))}
    assert changed and not any("vision_tower" in name or "multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed)


def test_online_with_hidden_states(tmp_path: Path) -> None:
    (tmp_path / "tulu").mkdir()
    lines = [
        f'{{"messages": [{{"role": "user", "content": "{n} + 1?"}}, {{"role": "assistant", "content": "{n + 1}"}}]}}'
        for n in range(12)
    ]
    (tmp_path / "tulu" / "train.jsonl").write_text("\n".join(lines))
    model = save(LlamaForCausalLM(text_config(4096, 64)), tmp_path / "student")
    teacher = save(LlamaForCausalLM(text_config(4096, 64, blocks=3)), tmp_path / "teacher")
    settings = {"kind": "hf", "path": str(teacher), "kwargs": {"torch_dtype": "bfloat16"}}
    result = trained(
        ONLINE,
        tmp_path / "out",
        model,
        tmp_path / "tulu",
        teacher=settings,
        sequence_length=64,
        trust_remote_code=False,
    )
    check_trained(result, "kl", "cross_entropy", "hs_cosine")
