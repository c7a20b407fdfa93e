"""What the examples share: scikit-learn's handwritten digits, and a small network that learns them in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from alexnet_jax import AlexNet, create_model, get_spec, preprocess, with_init


def load(classes: Iterable[int] = range(10)) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images (N, 8, 8, 3) in uint8, training labels, test labels, for some of the digits."""
    digits, kept = load_digits(), sorted(classes)
    chosen = np.isin(digits.target, kept)
    images = np.repeat((digits.images[chosen] * (255 / 16)).astype(np.uint8)[..., None], 3, -1)
    labels = np.searchsorted(kept, digits.target[chosen]).astype(np.int32)
    return tuple(train_test_split(images, labels, test_size=0.25, random_state=0))


def network(num_classes: int = 10, **options: Any) -> AlexNet:
    """The small network of the paper's figure 1, for images from -0.5 to 0.5, with weights that learn at once."""
    spec = with_init(get_spec("cifar"), "kaiming")
    spec = dataclasses.replace(spec, input=dataclasses.replace(spec.input, scale=1.0, mean=(0.5, 0.5, 0.5)))
    return create_model(spec, num_classes=num_classes, rngs=0, **options)


def train(
    model: AlexNet,
    images: np.ndarray,
    labels: np.ndarray,
    steps: int = 120,
    frozen: Callable[[str], bool] = lambda layer: False,
) -> None:
    """Momentum SGD on uint8 images; changes the model in place, but for layers that `frozen` names."""
    graph, params = nnx.split(model, nnx.Param)
    rule = {"train": optax.sgd(0.02, momentum=0.9), "freeze": optax.set_to_zero()}
    names = {layer: "freeze" if frozen(layer) else "train" for layer in params}
    optimizer = optax.multi_transform(rule, lambda params: {layer: names[layer] for layer in params})
    pure = nnx.to_pure_dict(params)
    inputs, answers = preprocess(images, model), jnp.asarray(labels)

    @jax.jit
    def step(pure: Any, state: Any, key: jax.Array) -> Any:
        rows = jax.random.randint(key, (64,), 0, len(answers))

        def loss(pure: Any) -> jax.Array:
            nnx.replace_by_pure_dict(params, pure)
            logits = nnx.merge(graph, params)(inputs[rows], train=True, dropout_key=key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, answers[rows]).mean()

        updates, state = optimizer.update(jax.grad(loss)(pure), state, pure)
        return optax.apply_updates(pure, updates), state

    state = optimizer.init(pure)
    for key in jax.random.split(jax.random.key(1), steps):
        pure, state = step(pure, state, key)
    nnx.update(model, pure)


def error(model: AlexNet, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 error in per cent."""
    logits = nnx.jit(lambda model, images: model(images))(model, preprocess(images, model))
    return 100 * float(np.mean(np.argmax(logits, -1) != labels))
