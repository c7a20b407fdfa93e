"""What can go wrong with a file of weights, in words."""

from __future__ import annotations


class WeightsError(ValueError):
    """A file of weights that can't be used; the message says why and what to do."""
