"""Forward-mode and higher derivatives, with `forms="reference"`: a directional derivative and a Hessian's product.

    python examples/higher_derivatives.py

`forms="auto"`, the default, has gradients of its own where they are faster, and these can be taken in
reverse mode only; it says so.
"""

from __future__ import annotations

import digits
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from alexnet_jax import preprocess


def check(what: str, found: jax.Array, expected: jax.Array) -> None:
    """Prints both, and fails where they are not the same to six digits."""
    print(f"{what}: {found:.8f}, by finite differences {expected:.8f}")
    if not abs(found - expected) <= 1e-6 * abs(expected):
        raise SystemExit(f"{what}: they differ")


def main() -> None:
    jax.config.update("jax_enable_x64", True)  # finite differences need the digits
    model = digits.network(param_dtype=jnp.float64, forms="reference")
    images, _, labels, _ = digits.load()
    inputs, answers = preprocess(images[:4], model).astype(jnp.float64), jnp.asarray(labels[:4])
    graph, params = nnx.split(model, nnx.Param)

    def loss(params: nnx.State) -> jax.Array:
        logits = nnx.merge(graph, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()

    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draws = [jax.random.normal(key, leaf.shape) / leaf.size for key, leaf in zip(keys, leaves, strict=True)]
    direction = jax.tree.unflatten(structure, draws)

    def moved(step: float) -> nnx.State:
        return jax.tree.map(lambda p, d: p + step * d, params, direction)

    def dot(one: nnx.State, other: nnx.State) -> jax.Array:
        return jnp.vdot(ravel_pytree(one)[0], ravel_pytree(other)[0])

    gradient, h = jax.jit(jax.grad(loss)), 1e-5
    loss = jax.jit(loss)
    _, slope = jax.jvp(loss, (params,), (direction,))
    check("jvp", slope, (loss(moved(h)) - loss(moved(-h))) / (2 * h))

    # Forward over reverse: the Hessian times a direction, for the price of two gradients.
    _, product = jax.jvp(gradient, (params,), (direction,))
    difference = jax.tree.map(lambda a, b: (a - b) / (2 * h), gradient(moved(h)), gradient(moved(-h)))
    check("direction · Hessian · direction", dot(direction, product), dot(direction, difference))

    fast = digits.network()
    try:
        jax.jvp(fast, (inputs.astype(jnp.float32),), (jnp.ones_like(inputs, jnp.float32),))
    except TypeError as error:
        print(f'forms="auto": {error}')
    else:
        raise SystemExit('forms="auto" has forward-mode derivatives here')


if __name__ == "__main__":
    main()
