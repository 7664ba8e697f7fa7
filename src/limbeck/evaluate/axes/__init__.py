"""Skill axes: procedurally generated questions whose answers can be checked."""

from limbeck.evaluate.axes.generation import ItemSet, generate
from limbeck.evaluate.axes.registry import Axis, Item, Scale, all_axes, axis, get_axis

__all__ = ["Axis", "Item", "ItemSet", "Scale", "all_axes", "axis", "generate", "get_axis"]
