"""Importing the package changes nothing in the program that imports it, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

STATE = """
import jax, os, sys, logging, warnings
from absl import flags

def state():
    settings = {name: jax.config._read(name) for name in jax.config.values}
    return settings, dict(os.environ), sorted(flags.FLAGS), logging.getLogger().level, list(warnings.filters)

BACKENDS = "import jax._src.xla_bridge as bridge; backends = list(bridge._backends)"
before = state()
"""
CHECK = """
exec(BACKENDS)
assert not backends, f"a backend was started: {backends}"
heavy = [name for name in ("tensorflow", "torch", "sklearn", "matplotlib.pyplot", "pooch") if name in sys.modules]
assert not heavy, f"imported: {heavy}"
after = state()
for was, now in zip(before, after):
    assert was == now, (was, now)
"""
EVERYTHING = "\nimport alexnet_jax.cli, alexnet_jax.training.loop, alexnet_jax.training.flags, alexnet_jax.figures\n"


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_import_changes_nothing():
    # Flax brings absl's logging flags with it, whoever imports it; what counts is what we add.
    done = run(STATE + "from flax import nnx\nbefore = state()\nimport alexnet_jax\n" + CHECK)
    assert done.returncode == 0, done.stderr


def test_importing_the_training_side_starts_nothing_either():
    theirs = "import chex, grain, optax, orbax.checkpoint; from ml_collections import config_flags\n"
    code = STATE + theirs + "before = state()\n" + EVERYTHING + CHECK
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("mischief", "words"),
    [
        ("import jax.numpy as jnp; jnp.zeros(1)", "a backend was started"),
        ("sys.modules['tensorflow'] = sys", "imported: ['tensorflow']"),
        ("jax.config.update('jax_enable_x64', True)", "jax_enable_x64"),
        ("jax.config.update('jax_default_matmul_precision', 'float32')", "jax_default_matmul_precision"),
        ("flags.DEFINE_string('config', None, 'mischief')", "config"),
        ("os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'", "XLA_PYTHON_CLIENT_PREALLOCATE"),
    ],
)
def test_the_check_can_fail(mischief, words):
    done = run(STATE + mischief + CHECK)
    assert done.returncode != 0
    assert words in done.stderr
