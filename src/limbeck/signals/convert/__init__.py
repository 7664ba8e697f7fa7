"""Conversion: between codecs, and to and from the formats in which other programs keep what a teacher said.

`recoding` goes from one codec to another, `importing` and `exporting` from and to foreign formats, of which each has a
file: `distillkit_tables`, `axolotl`, `megatron`. `docs/signals-commands.md` specifies the files that are exchanged.
"""
