"""Saves checkpoints until it is killed; the trees that the tests of checkpoints share.

    python tests/checkpoint_writer.py SIZE

imports once, and for each line on stdin (a folder) forks a process that goes on from the
newest checkpoint there, saving one after the other, and prints "pid <number>" and then
"saving <step>" before each.
"""

from __future__ import annotations

import gc
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.checkpoint import Checkpoints


def tree(step: int = 0, size: int = 24):
    """Arrays of the dtypes and containers that a run has, all of them other for each step."""
    draw = np.random.default_rng(step)
    kernel = jnp.asarray(draw.normal(size=size).reshape(2, 3, -1), jnp.float32)
    return {
        "state": {
            "step": jnp.int32(step),
            "params": {"conv1": {"kernel": kernel, "bias": jnp.full(4, step, jnp.float32)}},
            "opt_state": (optax.EmptyState(), optax.TraceState({"conv1": -kernel})),
            "half": jnp.asarray([1.0078125, -3e38, step], jnp.bfloat16),
            "mask": jnp.asarray([True, False, step % 2 == 0]),
        },
        "bytes": jnp.asarray([0, 255, step % 256], jnp.uint8),
    }


def assert_same(found, expected):
    """The same structure, dtypes, shapes and bytes."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def metadata(step: int):
    """Metadata that belongs to a step."""
    return {"words": f"step {step}"}


def tell(line: str) -> None:
    """One write, so that a kill leaves a whole line or none; `print` makes two where Python is unbuffered."""
    os.write(1, f"{line}\n".encode())


def write(folder: pathlib.Path, size: int) -> None:
    """Goes on from the newest checkpoint, for ever."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.newest(tree(size=size), tell=print)
    step = 0 if found is None else found.step
    while True:
        step += 1
        tell(f"saving {step}")
        checkpoints.save(step, tree(step, size), metadata(step), score=1 / step if step % 3 == 0 else None)


def main() -> None:
    """A fork for each line."""
    size = int(sys.argv[1])
    gc.disable()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write(pathlib.Path(line.strip()), size)
        tell(f"pid {child}")
        os.waitpid(child, 0)
        tell("gone")


if __name__ == "__main__":
    main()
