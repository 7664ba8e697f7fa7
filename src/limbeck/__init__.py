"""Limbeck distils language models, measures what the copies are worth, and crowns the best."""

__version__ = "0.1.0"
