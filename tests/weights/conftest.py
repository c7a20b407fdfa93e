"""Fixtures of the tests of weights."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Small networks cost more to compile than to run; not beside PyTorch."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("parity") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, or the test is skipped."""
    return pytest.importorskip("torch")
