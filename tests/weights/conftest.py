"""Fixtures of the tests of weights."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quick(quick_compilation):
    """All of them compile quickly."""
