"""Exact top-1 and top-5 error: every example once, whatever the batch size.

`sums`, `errors` and `evaluate` are the training loop's; `score` evaluates trained networks, one
or an ensemble, on central or ten crops, and keeps a few numbers of each example.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alexnet_jax.data.loader import WHOLE, Batch, Share, evaluation_batches
from alexnet_jax.data.prepared import Split
from alexnet_jax.data.views import evaluation_view, ten_crops
from alexnet_jax.nn import checks
from alexnet_jax.nn.forms import jit
from alexnet_jax.trained import Structure, Trained

CROPS = ("centre", "ten")
TIES = ("index", "fractional")
BATCH_SIZES = {"centre": 128, "ten": 16}  # by crops; a batch of 16 is 160 views


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


@dataclasses.dataclass(frozen=True)
class Examples:
    """What an evaluation keeps of each example, (N,) each.

    Attributes:
      labels: int32.
      rank: int32, see `label_rank`.
      greater: int32, classes with a greater score than the label's.
      equal: int32, classes with the label's score, itself among them.
      predicted: int32, the class with the highest score, of equal ones that with the lowest index.
      loss: float32, −log of the label's probability, of the averaged one where there are several.
    """

    labels: np.ndarray
    rank: np.ndarray
    greater: np.ndarray
    equal: np.ndarray
    predicted: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """All examples of the parts, such as those of several processes."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def wrong(self, top: int, ties: str = "index") -> np.ndarray:
        """How wrong each example is at its first `top` classes, float64 (N,), from 0 to 1.

        Args:
          top: how many classes are looked at.
          ties: "index" orders equal scores by their class's index; "fractional" is the 2012
            source's credit: of the label's `equal` classes as many have room as places are left
            after those with greater scores, and the label has that share of being among them.
        """
        if checks.choice(ties, "ties", TIES) == "index":
            return (self.rank >= top).astype(np.float64)
        return 1 - np.clip((top - self.greater) / np.maximum(self.equal, 1), 0.0, 1.0)

    def errors(self, num_classes: int, ties: str = "index") -> dict[str, Any]:
        """Mean loss and errors in percent; with five classes or fewer the top-5 error is None."""
        return {
            "loss": float(np.mean(self.loss, dtype=np.float64)),
            "top1_error": float(100 * np.sum(self.wrong(1, ties)) / len(self)),
            "top5_error": float(100 * np.sum(self.wrong(5, ties)) / len(self)) if num_classes > 5 else None,
        }

    def confusion(self, num_classes: int) -> np.ndarray:
        """How often each class (row) was taken for each (column), int64 (C, C)."""
        table = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(table, (self.labels, self.predicted), 1)
        return table

    def per_class(self, classes: Sequence[str], ties: str = "index") -> list[dict[str, Any]]:
        """An object a class: label, name, images, errors in percent, and what it is mostly taken for.

        Errors of a class without images are None; so is the last where it was never mistaken.
        """
        count = len(classes)
        images = np.bincount(self.labels, minlength=count)
        wrong = [np.bincount(self.labels, self.wrong(top, ties), minlength=count) for top in (1, 5)]
        mistaken = self.confusion(count)
        np.fill_diagonal(mistaken, 0)
        rows = []
        for label, name in enumerate(classes):
            top1, top5 = (float(100 * of[label] / images[label]) if images[label] else None for of in wrong)
            other = int(mistaken[label].argmax())
            times = int(mistaken[label, other])
            rows.append(
                {
                    "label": label,
                    "class": name,
                    "images": int(images[label]),
                    "top1_error": top1,
                    "top5_error": top5 if count > 5 else None,
                    "mostly_taken_for": classes[other] if times else None,
                    "times": times,
                }
            )
        return rows


def score(
    networks: Sequence[Trained],
    split: Split,
    *,
    crops: str = "centre",
    batch_size: int | None = None,
    share: Share = WHOLE,
    device: jax.Device | None = None,
) -> Examples:
    """Evaluates a network, or several as an ensemble, on every image of a split once.

    The class scores are a network's logits where it sees one view. Where there are several
    views (ten crops, several networks) their softmaxes are averaged, each view weighing the
    same (Krizhevsky et al. 2012, sections 4.1 and 6), in logarithms, so that no probability is
    rounded to 0; the loss is −log of the averaged one, as in the 2012 source.

    Args:
      networks: with the same classes; each sees the images in its own input contract.
      split: images of the size that each network's mean image has.
      crops: "centre", or "ten" (`views.ten_crops`).
      batch_size: images at a time; None is `BATCH_SIZES`. It changes no number but by rounding.
      share: which rows of each batch this process takes; `Examples.joined` puts the results together.
      device: where to compute; None is JAX's default.

    Raises:
      ValueError: unknown crops, no network, or no images.
    """
    checks.choice(crops, "crops", CROPS)
    if not networks or not len(split):
        raise ValueError(f"nothing to evaluate: {len(networks)} networks, {len(split)} images")
    step = _scorer(tuple(network.structure for network in networks), crops)
    device = device or jnp.zeros(()).device
    weights = jax.device_put([(network.params, network.mean_image) for network in networks], device)

    def place(batch: Batch) -> Batch:
        images, labels = jax.device_put((batch.images, batch.labels), device)
        return Batch(images, labels, batch.mask)

    batches = evaluation_batches(split, batch_size or BATCH_SIZES[crops], share=share, place=place)
    with jax.default_device(device):  # whose forms the networks take
        return Examples.joined(list(_fetched(lambda batch: step(weights, batch.images, batch.labels), batches)))


def _fetched(step: Callable[[Batch], dict[str, jax.Array]], batches: Iterable[Batch]) -> Iterator[Examples]:
    """Each batch's examples on the host, while the device works on the next."""
    pending: collections.deque[tuple[dict[str, jax.Array], Batch]] = collections.deque()

    def fetch() -> Examples:
        found, batch = pending.popleft()
        mask = np.asarray(batch.mask)
        return Examples(
            labels=np.asarray(batch.labels)[mask], **{name: np.asarray(x)[mask] for name, x in found.items()}
        )

    for batch in batches:
        pending.append((step(batch), batch))
        if len(pending) > 1:
            yield fetch()
    while pending:
        yield fetch()


@functools.lru_cache(maxsize=8)
def _scorer(networks: tuple[Structure, ...], crops: str) -> Callable[..., dict[str, jax.Array]]:
    """A compiled (weights, images, labels) -> the fields of `Examples`; weights: (params, mean image) a network."""
    graphs = [network.graph() for network in networks]

    def step(weights: Any, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        views = []
        for network, graph, (params, mean_image) in zip(networks, graphs, weights, strict=True):
            contract = network.spec.input
            if crops == "ten":
                x = ten_crops(images, contract, mean_image)
            else:
                x = evaluation_view(images, contract, mean_image)[:, None]
            with network.arithmetic():
                logits = nnx.merge(graph, params)(x.reshape(-1, *x.shape[2:]))
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            views.append(logits.reshape(*x.shape[:2], -1))
        return per_example(jnp.concatenate(views, axis=1), labels)

    return jit(step)


def averaged(logits: jax.Array) -> jax.Array:
    """Class scores (N, C) from the logits (N, V, C) of V views.

    The logits of a single view; of several, the logarithms of their averaged softmaxes.
    """
    views = logits.shape[1]
    if views == 1:
        return logits[:, 0]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1) - np.log(views).astype(logits.dtype)


def per_example(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """The fields of `Examples`, without the labels, from the logits of every view.

    Args:
      logits: (N, V, C), float32 or wider, of V views.
      labels: (N,), integer.
    """
    views = logits.shape[1]
    scores = averaged(logits)
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    loss = -own[:, 0] if views > 1 else optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return {
        "rank": label_rank(scores, labels),
        "greater": jnp.sum(~(scores <= own), axis=-1, dtype=jnp.int32),
        "equal": jnp.sum(scores == own, axis=-1, dtype=jnp.int32),
        "predicted": jnp.argmax(scores, axis=-1).astype(jnp.int32),
        "loss": loss,
    }


def write_confusion(table: np.ndarray, classes: Sequence[str], path: pathlib.Path) -> None:
    """The confusion table as CSV: a row a true class, a column a predicted one, names in both heads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, table.tolist(), strict=True))


def write_per_class(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """`Examples.per_class` as CSV; None is an empty field."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
