"""Training recipes: what `limbeck train RECIPE.yaml` reads. Each section has a file; none of them loads torch."""

from limbeck.distill.recipe.data import DatasetSettings, DataSource
from limbeck.distill.recipe.losses import LossSettings
from limbeck.distill.recipe.model import DenseModel, PresetModel, QuantisationSettings
from limbeck.distill.recipe.run import EvaluationSettings, LoraSettings, OptimizerSettings, Recipe
from limbeck.distill.recipe.teacher import DatasetTeacher

__all__ = [
    "DataSource", "DatasetSettings", "DatasetTeacher", "DenseModel", "EvaluationSettings", "LoraSettings",
    "LossSettings", "OptimizerSettings", "PresetModel", "QuantisationSettings", "Recipe",
]  # fmt: skip
