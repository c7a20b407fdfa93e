"""Fixtures of the networks' tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quick(quick_compilation):
    """All of them compile quickly."""
