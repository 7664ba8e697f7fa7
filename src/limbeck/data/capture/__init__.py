"""Capturing what a teacher says about a text: the recipe, and the run that follows it."""

from limbeck.data.capture.recipe import CaptureRecipe, GenerateSettings, read_codec
from limbeck.data.capture.run import capture

__all__ = ["CaptureRecipe", "GenerateSettings", "capture", "read_codec"]
