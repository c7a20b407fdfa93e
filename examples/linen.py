"""The network inside a Flax Linen program, through Flax's bridge.

python examples/linen.py
"""

from __future__ import annotations

from typing import Any

import digits
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alexnet_jax import AlexNet, preprocess


class Classifier(nn.Module):
    """A Linen module with AlexNet's features and a head of its own."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        model = digits.network()
        features = nnx.bridge.to_linen(AlexNet, model.spec, num_classes=10, name="alexnet")(images)
        return nn.Dense(3)(nn.relu(features))


def main() -> None:
    model = digits.network()
    images = preprocess(digits.load()[0][:8], model)

    # Alone: parameters as Linen keeps them, under the layers' names.
    bridged = nnx.bridge.to_linen(AlexNet, model.spec, num_classes=10)
    variables = bridged.init(jax.random.key(0), images)
    print("params:", ", ".join(sorted(variables["params"])))

    # Weights of a model go in as a tree.
    given = {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}
    logits = jax.jit(bridged.apply)({**variables, **given}, images)
    apart = float(jnp.abs(logits - model(images)).max())
    print(f"logits with a model's weights: {apart:.1e} from the model's own")
    np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-5)

    # As a part of a larger module.
    classifier = Classifier()
    variables = classifier.init(jax.random.key(0), images)

    def scores(params: Any) -> jax.Array:
        found: Any = classifier.apply({**variables, "params": params}, images)
        return found

    grads = jax.grad(lambda params: scores(params).sum())(variables["params"])
    print("scores", scores(variables["params"]).shape, "and gradients of", ", ".join(sorted(grads)))
    if not all(jnp.any(g != 0) for g in jax.tree.leaves(grads["alexnet"]["conv1"])):
        raise SystemExit("no gradient arrived at conv1")


if __name__ == "__main__":
    main()
