"""Whether a checkpoint's arrays are those that a run expects, and their way to the device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from alexnet_jax.checkpoint import record
from alexnet_jax.checkpoint.errors import CheckpointError


def check_fit(about: record.Record, target: Any) -> None:
    """Refuses other arrays than expected; Orbax itself would cast or fill up without a word."""
    wanted = {name: f"{leaf.dtype}{tuple(leaf.shape)}" for name, leaf in record.named(target).items()}
    found = {name: str(stamp) for name, stamp in about.arrays.items()}
    other = [
        f"{name}: {found.get(name, 'missing')}, expected {words}"
        for name, words in sorted(wanted.items())
        if found.get(name) != words
    ]
    other += [f"{name}: not expected" for name in sorted(found.keys() - wanted.keys())]
    if other:
        raise CheckpointError(
            f"checkpoint {about.step} does not fit this run, it is of another configuration ({'; '.join(other[:5])})"
        )


def placed(tree: Any, target: Any) -> Any:
    """Arrays of the host as JAX's, with the dtypes of the target.

    Raises:
      CheckpointError: JAX would change a dtype.
    """

    def place(leaf: np.ndarray, like: Any) -> jax.Array:
        there = jax.numpy.array(leaf)
        if there.dtype != like.dtype:
            raise CheckpointError(
                f"{like.dtype} arrays were saved, and JAX makes {there.dtype} of them: "
                "set jax_enable_x64 as it was when they were saved"
            )
        return there

    return jax.tree.map(place, tree, target)
