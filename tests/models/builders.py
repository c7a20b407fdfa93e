"""Models with parameters and images made by NumPy, the same on every version of JAX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alexnet_jax import AlexNet, ModelSpec, create_model, get_spec

Parameters = dict[str, dict[str, np.ndarray]]


def layer_names(spec: ModelSpec) -> list[str]:
    """Every layer with parameters, in the order of the computation."""
    return [*spec.conv_names(), *spec.dense_names(), spec.head_name()]


def small(name: str, *, features: int = 32, size: int = 67) -> ModelSpec:
    """A named variant with its own convolutions on small images, and narrow hidden layers."""
    spec = get_spec(name)
    return (
        spec.with_dense(features=features)
        if name == "cifar"
        else spec.at_image_size(size).with_dense(features=features)
    )


def narrow(name: str, *, features: int = 16, size: int = 67) -> ModelSpec:
    """As `small`, with few kernels: cheap even to differentiate twice."""
    spec = small(name, features=features, size=size)
    for layer, width in zip(spec.conv_names(), (8, 16, 12, 12, 8), strict=False):
        spec = spec.with_layer(layer, features=width)
    return spec


def shapes(spec: ModelSpec, num_classes: int = 1000) -> dict[str, dict[str, tuple[int, ...]]]:
    """The parameters' shapes as the module itself makes them; nothing is computed."""
    model = nnx.eval_shape(lambda: create_model(spec, num_classes=num_classes))
    state = nnx.to_pure_dict(nnx.state(model))
    return {name: {key: leaf.shape for key, leaf in state[name].items()} for name in layer_names(spec)}


def uniform(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Numbers of mean 0 and that standard deviation, from the generator's raw stream alone."""
    values = rng.random(shape)
    values -= 0.5
    values *= std * math.sqrt(12)
    return values


def parameters(spec: ModelSpec, num_classes: int = 1000, seed: int = 0) -> Parameters:
    """Parameters that keep activations of order 1: He's scale for kernels, biases around 0.1."""
    rng = np.random.Generator(np.random.PCG64(seed))
    found = {}
    for name, layer in shapes(spec, num_classes).items():
        fan_in = math.prod(layer["kernel"][:-1])
        kernel = uniform(rng, layer["kernel"], math.sqrt(2 / fan_in))
        found[name] = {"kernel": kernel, "bias": 0.1 + uniform(rng, layer["bias"], 0.1)}
    return found


def pictures(spec: ModelSpec, count: int = 2, seed: int = 1) -> np.ndarray:
    """Noise in the range of the input contract, float64."""
    std = 74.0 if spec.input.scale == 255 else 1.0
    rng = np.random.Generator(np.random.PCG64(seed))
    return uniform(rng, (count, spec.input.size, spec.input.size, 3), std)


def build(spec: ModelSpec, params: Parameters, *, dtype: str = "float32", forms: str = "auto") -> AlexNet:
    """The model that holds these parameters; the random initialisation is not run."""
    num_classes = params[spec.head_name()]["bias"].shape[0]
    model = nnx.eval_shape(lambda: create_model(spec, num_classes=num_classes, param_dtype=dtype, forms=forms))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, jax.tree.map(lambda value: jnp.asarray(value, dtype), params))
    return nnx.merge(graph, state)


def made(spec: ModelSpec, num_classes: int = 7, *, dtype: str = "float32", forms: str = "auto") -> AlexNet:
    """`build` with `parameters`."""
    return build(spec, parameters(spec, num_classes), dtype=dtype, forms=forms)


def run(model: AlexNet, images: np.ndarray, **options) -> jax.Array:
    """The model's logits, compiled as one program."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, images: nnx.merge(graph, state)(images, **options))(state, images)


def stages(model: AlexNet, images: np.ndarray, names=None, **options) -> dict[str, jax.Array]:
    """The named stages (all, unless told) of a compiled run."""
    names = tuple(model.spec.stages(model.num_classes)) if names is None else names
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, images: nnx.merge(graph, state).activations(images, names, **options)[1])
    return compiled(state, images)


def distance(ours, theirs) -> float:
    """The norm of the difference over the norm of the second."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
