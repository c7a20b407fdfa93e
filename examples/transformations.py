"""The model under JAX's transformations: jit, grad, vmap, checkpoint, and in bfloat16.

    python examples/transformations.py

`nnx.split` takes a model apart into its structure and a tree of arrays, and `nnx.merge` puts them
together inside a pure function, to which every transformation applies. Each result is compared
with one that was found in another way.
"""

from __future__ import annotations

import digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alexnet_jax import preprocess


def close(what: str, found: object, expected: object, tolerance: float) -> None:
    """Prints how far two trees are apart, relative to the largest number, and fails where that is too far."""
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, expected))
    apart = np.abs(one - other).max() / np.abs(other).max()
    print(f"{what:<45} {apart:.1e} apart")
    if not apart <= tolerance:
        raise SystemExit(f"{what}: more than {tolerance:g}")


def main() -> None:
    model = digits.network()
    images, _, labels, _ = digits.load()
    inputs, answers = preprocess(images[:16], model), jnp.asarray(labels[:16])

    graph, params = nnx.split(model, nnx.Param)

    def apply(params: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(images)

    def loss(params: nnx.State, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()

    close("jit, against no jit", jax.jit(apply)(params, inputs), model(inputs), 1e-5)

    gradient = jax.jit(jax.grad(loss))(params, inputs, answers)
    squares = sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))
    h = 1e-2 / jnp.sqrt(squares)  # a step of length 0.01
    ahead, behind = (
        loss(jax.tree.map(lambda p, g, step=step: p + step * g, params, gradient), inputs, answers) for step in (h, -h)
    )
    close("grad, against a finite difference along it", (ahead - behind) / (2 * h), squares, 2e-2)

    one = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))  # the gradient of each image
    each = jax.jit(one)(params, inputs[:, None], answers[:, None])
    close("vmap of grad, its mean against grad", jax.tree.map(lambda g: g.mean(0), each), gradient, 1e-4)

    thrifty = jax.checkpoint(loss)  # computes the activations again in the backward pass, to save memory
    close("grad of checkpoint, against grad", jax.jit(jax.grad(thrifty))(params, inputs, answers), gradient, 1e-4)

    half = digits.network(dtype=jnp.bfloat16)  # the same parameters in float32, computation in bfloat16
    close("bfloat16, against float32", half(inputs).astype(jnp.float32), model(inputs), 5e-2)


if __name__ == "__main__":
    main()
