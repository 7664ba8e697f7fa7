"""Engine `transformers` behind the scorers' door: what `score_rows` says, under the settings' names."""

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ValidationError

from limbeck.engines.registry import engine_names, opens, parse_engine
from limbeck.engines.scorer import EngineSettings, ServerEngine, TransformersEngine, open_scorer, vocabulary_of
from limbeck.engines.scoring import score_rows
from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.hidden_head import HEAD, HiddenSpec
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import SampledSignal
from tests.engines.tiny import new_model, save, tokenizer_of

ROWS = [(torch.arange(20, 20 + length), torch.ones(length, dtype=torch.bool)) for length in (5, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"))


def test_it_says_what_scoring_says(folder: Path) -> None:
    scorer = open_scorer(str(folder), None, TransformersEngine(batch_tokens=16), tokenizer_of())
    assert scorer.vocabulary == 300 == vocabulary_of(str(folder), None, tokenizer_of())
    assert scorer.description["dtype"] == "float32"
    expected = score_rows(new_model(), ROWS, TopkSpec(), batch_tokens=16)
    for one, other in zip(scorer.score(ROWS, TopkSpec()), expected, strict=True):
        assert torch.equal(one.mask, other.mask)
        torch.testing.assert_close(one.logprobs[one.mask], other.logprobs[one.mask], atol=2e-5, rtol=0)
    scorer.close()


def test_what_is_drawn_depends_on_the_rows_number_and_the_seed(folder: Path) -> None:
    scorer = open_scorer(str(folder), None, TransformersEngine(), tokenizer_of())

    def drawn(first_sample: int, seed: int) -> torch.Tensor:
        [signal] = scorer.score(ROWS[1:], SampledSpec(), first_sample=first_sample, seed=seed)
        assert isinstance(signal, SampledSignal)
        return signal.ids[signal.mask]

    assert torch.equal(drawn(3, 1), drawn(3, 1))
    assert not torch.equal(drawn(3, 1), drawn(4, 1))
    assert not torch.equal(drawn(3, 1), drawn(3, 2))
    scorer.close()


def test_the_head_of_hidden_states_is_written_beside_them(folder: Path, tmp_path: Path) -> None:
    scorer = open_scorer(str(folder), None, TransformersEngine(), tokenizer_of())
    complete = scorer.complete(HiddenSpec())
    assert isinstance(complete, HiddenSpec)
    assert complete.head_sha256
    scorer.write_references(tmp_path, complete)
    assert (tmp_path / HEAD).exists()
    scorer.close()


def test_a_tokenizer_that_is_too_large_is_refused(folder: Path) -> None:
    greek = tokenizer_of(vocabulary=320, text="alpha beta gamma delta epsilon zeta eta theta iota kappa lambda omicron")
    assert len(greek) > 300
    with pytest.raises(UserError, match=f"has {len(greek)} entries, but the model's vocabulary only 300"):
        vocabulary_of(str(folder), None, greek)


def test_recipes_tell_engines_apart_by_their_name() -> None:
    class Recipe(BaseModel):
        engine: EngineSettings = TransformersEngine()

    served = Recipe.model_validate({"engine": {"engine": "server", "base_url": "http://x/v1", "model": "m"}})
    assert isinstance(served.engine, ServerEngine)
    with pytest.raises(ValidationError):
        Recipe.model_validate({"engine": {"engine": "server", "base_url": "x", "model": "m"}})


def test_a_package_adds_its_own_engine() -> None:
    class Own(Settings):
        engine: str = "test-own"

    @opens("scorer", "test-own", Own)
    def open_own(*_: object) -> str:
        return "opened"

    assert "test-own" in engine_names()
    assert open_scorer("m", None, parse_engine({"engine": "test-own"}), tokenizer_of()) == "opened"
    from limbeck.engines.completions import open_generator

    with pytest.raises(
        UserError, match=r"engine 'test-own' is no generator. These are: packed, server, transformers, vllm"
    ):
        open_generator("m", None, Own(), tokenizer_of())
    with pytest.raises(ValueError, match="registered twice"):
        opens("scorer", "test-own", Own)(open_own)
