"""Exact top-1 and top-5 error: every example once, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.data.loader import Batch


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the label, int32 (N,); 0 is a correct answer.

    Counts the classes with a strictly greater score and those equal with a lower
    index, so that a constant output never scores well. A score that is not a number
    counts as greater.

    Args:
      logits: (N, C).
      labels: (N,), integer.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1])[None] < labels[:, None]
    return jnp.sum(~(logits <= own) | ((logits == own) & before), axis=-1, dtype=jnp.int32)


def sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the images that the mask lets through, scalars: count, loss, top1_wrong, top5_wrong.

    The loss is the softmax cross-entropy, in float32 at least.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    rank = label_rank(logits, labels)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "count": jnp.sum(mask, dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask, loss, 0)),
        "top1_wrong": jnp.sum(mask & (rank >= 1), dtype=jnp.int32),
        "top5_wrong": jnp.sum(mask & (rank >= 5), dtype=jnp.int32),
    }


def errors(totals: Iterable[dict[str, Any]], num_classes: int) -> dict[str, Any]:
    """Mean loss and errors in percent from the sums of batches.

    With five classes or fewer every label is among the top five: that error is None.
    """
    each = list(totals)
    names = ("count", "loss", "top1_wrong", "top5_wrong")
    count, loss, top1, top5 = (np.sum([np.float64(batch[name]) for batch in each]) for name in names)
    return {
        "loss": float(loss / count),
        "top1_error": float(100 * top1 / count),
        "top5_error": float(100 * top5 / count) if num_classes > 5 else None,
    }


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    batches: Iterable[Batch],
    num_classes: int,
) -> dict[str, Any]:
    """Mean loss, top-1 and top-5 error in percent over all batches.

    Args:
      step: (images, labels, mask) -> `sums`.
      batches: of one split, each example once.
      num_classes: see `errors`.
    """
    return errors(jax.device_get([step(*batch) for batch in batches]), num_classes)
