"""A trained network at work on images: class scores, a layer's activations, nearest neighbours."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alexnet_jax.data.pictures import Batch
from alexnet_jax.data.views import evaluation_view, ten_crops
from alexnet_jax.evaluation import CROPS, averaged
from alexnet_jax.models import InputSpec
from alexnet_jax.nn import checks
from alexnet_jax.nn.forms import jit
from alexnet_jax.trained import PRECISIONS, Structure
from alexnet_jax.weights import Weights


@dataclasses.dataclass(frozen=True)
class Network:
    """What predictions depend on.

    Attributes:
      structure: what is computed, in which arithmetic.
      params: nested dictionaries, float32.
      mean_image: (R, R, 3), float32, on 0 to 255 in RGB.
      classes: the classes' names in the order of the logits; None where they are not known.
    """

    structure: Structure
    params: Any
    mean_image: jax.Array
    classes: tuple[str, ...] | None

    @classmethod
    def of(cls, weights: Weights, precision: str = "float32") -> Network:
        """From loaded weights; without a mean image, the contract's mean pixel is subtracted.

        Raises:
          ValueError: an unknown precision, or a mean image of another size than the network's.
        """
        checks.choice(precision, "precision", PRECISIONS)
        model = weights.model
        contract = model.spec.input
        mean = weights.mean_image
        if mean is not None and mean.shape != (contract.resize, contract.resize, 3):
            raise ValueError(
                f"the mean image is {mean.shape}, and {model.spec.name} resizes images to {contract.resize} pixels: "
                "give weights without it (dataclasses.replace(weights, mean_image=None)) to subtract the mean pixel"
            )
        return cls(
            Structure(model.spec, model.num_classes, precision),
            nnx.to_pure_dict(nnx.state(model)),
            mean_pixel(contract) if mean is None else jnp.asarray(mean, jnp.float32),
            weights.classes,
        )

    def name(self, label: int) -> str:
        """What to call a class: its name, or its number."""
        return str(label) if self.classes is None else self.classes[label]


def mean_pixel(contract: InputSpec) -> jax.Array:
    """A mean image (R, R, 3) of one colour, on 0 to 255 in RGB: the contract's own `mean`."""
    pixel = np.array(contract.mean, np.float32) * np.float32(255 / contract.scale)
    pixel = pixel[::-1] if contract.channel_order == "bgr" else pixel
    return jnp.broadcast_to(jnp.asarray(pixel).reshape(1, 1, 3), (contract.resize, contract.resize, 3))


def probabilities(
    network: Network, batches: Iterable[Batch], *, crops: str = "centre"
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch, and the class probabilities (n, C), float32, of its n good images.

    Args:
      network: whose they are.
      batches: images of the size that the network's contract resizes to.
      crops: "centre", or "ten" (`views.ten_crops`), whose softmaxes are averaged.

    Raises:
      ValueError: unknown crops.
    """
    checks.choice(crops, "crops", CROPS)
    step = _scorer(network.structure, crops)
    return _fetched(lambda images: step(network.params, network.mean_image, images), batches)


def activations(network: Network, batches: Iterable[Batch], layer: str) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch, and a stage's activations (n, …), float32, for the central crops of its n good images.

    Args:
      network: whose they are.
      batches: images of the size that the network's contract resizes to.
      layer: a stage, see `AlexNet.activations`.

    Raises:
      ValueError: there is no such stage.
    """
    return _fetched(stage_step(network, layer), batches)


def stage_step(network: Network, layer: str) -> Callable[[np.ndarray | jax.Array], jax.Array]:
    """The compiled step of `activations`: (B, R, R, 3) uint8 to (B, …) float32, on the device.

    Raises:
      ValueError: there is no such stage.
    """
    check_layer(network, layer)
    step = _stage(network.structure, layer)
    return lambda images: step(network.params, network.mean_image, images)


def check_layer(network: Network, layer: str) -> tuple[int, ...]:
    """The shape of one image's activations at a stage.

    Raises:
      ValueError: there is no such stage; the message lists those there are.
    """
    stages = network.structure.spec.stages(network.structure.num_classes)
    return stages[checks.choice(layer, f"a layer of {network.structure.spec.name}", stages)]


def _fetched(step: Callable[[np.ndarray], jax.Array], batches: Iterable[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch's result on the host, while the device works on the next."""
    pending: collections.deque[tuple[Batch, jax.Array]] = collections.deque()
    for batch in batches:
        pending.append((batch, step(batch.images)))
        if len(pending) > 1:
            yield _taken(*pending.popleft())
    while pending:
        yield _taken(*pending.popleft())


def _taken(batch: Batch, result: jax.Array) -> tuple[Batch, np.ndarray]:
    rows = np.asarray(result)
    return batch, rows if batch.good.all() else rows[batch.good]


@functools.lru_cache(maxsize=8)
def _scorer(structure: Structure, crops: str) -> Callable[..., jax.Array]:
    """A compiled (params, mean image, images) -> (B, C)."""
    graph, contract = structure.graph(), structure.spec.input

    def step(params: Any, mean_image: jax.Array, images: jax.Array) -> jax.Array:
        if crops == "ten":
            x = ten_crops(images, contract, mean_image)
        else:
            x = evaluation_view(images, contract, mean_image)[:, None]
        with structure.arithmetic():
            logits = nnx.merge(graph, params)(x.reshape(-1, *x.shape[2:])).astype(jnp.float32)
        return jax.nn.softmax(averaged(logits.reshape(*x.shape[:2], -1)))

    return jit(step)


@functools.lru_cache(maxsize=8)
def _stage(structure: Structure, layer: str) -> Callable[..., jax.Array]:
    """A compiled (params, mean image, images) -> (B, …)."""
    graph, contract = structure.graph(), structure.spec.input

    def step(params: Any, mean_image: jax.Array, images: jax.Array) -> jax.Array:
        x = evaluation_view(images, contract, mean_image)
        with structure.arithmetic():
            found = nnx.merge(graph, params).activations(x, [layer])[1]
        return found[layer].astype(jnp.float32)

    return jit(step)


def top(probabilities: np.ndarray, count: int = 5) -> list[tuple[int, float]]:
    """The likeliest classes of one image, (C,): (label, probability), of equal ones the lower label first."""
    labels = np.argsort(-probabilities, kind="stable")[:count]
    return [(int(label), float(probabilities[label])) for label in labels]


@dataclasses.dataclass
class Nearest:
    """The nearest so far of what is added batch by batch, in Euclidean distance.

    Attributes:
      queries: (Q, …), float32.
      count: how many are kept for each query.
      found: for each query (distance, index), the nearest first; of equal ones the lower index.
    """

    queries: np.ndarray
    count: int
    found: list[list[tuple[float, int]]] = dataclasses.field(init=False)

    def __post_init__(self):
        self.found = [[] for _ in self.queries]

    def add(self, indices: np.ndarray, rows: np.ndarray, left_out: dict[int, int] | None = None) -> None:
        """Adds rows (n, …) with their indices (n,).

        Args:
          indices: what to call them.
          rows: of the queries' shape.
          left_out: for a query, the index that is the query's own image.
        """
        flat = rows.reshape(len(rows), -1)
        for number, query in enumerate(self.queries):
            apart = np.sqrt(np.square(flat - query.reshape(1, -1)).sum(1, dtype=np.float64))
            own = (left_out or {}).get(number)
            new = [(float(d), int(i)) for d, i in zip(apart, indices, strict=True) if i != own]
            self.found[number] = sorted([*self.found[number], *new])[: self.count]
