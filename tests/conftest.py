"""Settings of every test: implicit rank promotion is an error, compiled code is kept between tests."""

from __future__ import annotations

import os

# Before JAX starts: several devices for the tests that map over them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs the test in 64-bit JAX."""
    with jax.enable_x64(True):
        yield
