"""Who the teacher of a capture is, before it is loaded: tokenizer, vocabulary, and its name in the manifest."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from limbeck.data.capture.recipe import CaptureRecipe
from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.scorer import ServerEngine, vocabulary_of
from limbeck.errors import UserError
from limbeck.files import digest_of, sha256_file
from limbeck.signals.manifest import TeacherRef

SERVED = "as served"


def tokenizer_for(recipe: CaptureRecipe) -> PreTrainedTokenizerBase:
    """Return the teacher's tokenizer.

    Raises:
        UserError: there is none.
    """
    if recipe.tokenizer is not None:
        return load_tokenizer(recipe.tokenizer)
    return load_tokenizer(recipe.model, recipe.revision)


def reference_of(recipe: CaptureRecipe) -> TeacherRef:
    """Return what the manifest calls the teacher; a local folder's revision is the digest of its weights.

    Raises:
        UserError: a repository is named without a revision.
    """
    name = recipe.name or recipe.model
    if recipe.revision is not None:
        return TeacherRef(repo=name, revision=recipe.revision)
    if isinstance(recipe.engine, ServerEngine):
        return TeacherRef(repo=name, revision=SERVED)
    folder = Path(recipe.model)
    if not folder.is_dir():
        raise UserError(f"{recipe.model}: a repository changes; name the revision to capture (--revision).")
    return TeacherRef(repo=name, revision=weights_digest(folder))


def vocabulary_for(recipe: CaptureRecipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the size of the teacher's distributions, which may be padded beyond the tokenizer's entries.

    Raises:
        UserError: there is no configuration to read it from, or it is smaller than the tokenizer.
    """
    if isinstance(recipe.engine, ServerEngine):
        if recipe.engine.vocabulary is not None:
            return recipe.engine.vocabulary
        return vocabulary_of(recipe.tokenizer or recipe.model, recipe.revision, tokenizer)
    return vocabulary_of(recipe.model, recipe.revision, tokenizer)


def weights_digest(folder: Path) -> str:
    """Return the digest that stands for a local teacher's revision: of its weight files' names and SHA-256."""
    return digest_of({path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))})
