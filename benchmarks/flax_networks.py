"""AlexNet as most people write it in Flax: a peer of `step.py` and `forward.py`.

Plain `nnx` layers, `feature_group_count`, a max pool and an LRN that are differentiated by JAX,
`jax.random.bernoulli` dropout, `nnx.jit` with `nnx.Optimizer`, and no thought of speed.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alexnet_jax.models import ModelSpec
from alexnet_jax.models.spec import ConvSpec, NormSpec, PoolSpec
from alexnet_jax.nn import adaptive_avg_pool
from alexnet_jax.nn.windows import full_padding
from alexnet_jax.trained import PRECISIONS


def response_norm(x: jax.Array, norm: NormSpec) -> jax.Array:
    """x / (k + α Σ x²)^β over a window of channels, inside groups: a `reduce_window` and a power."""
    channels = x.shape[-1] // norm.groups
    size = channels if norm.size is None else norm.size
    alpha = norm.alpha / size if norm.alpha_per == "window" else norm.alpha
    split = x.reshape(*x.shape[:-1], norm.groups, channels)
    window = (1,) * (split.ndim - 1) + (size,)
    pads = ((0, 0),) * (split.ndim - 1) + ((size // 2, (size - 1) // 2),)
    energy = jax.lax.reduce_window(split * split, 0.0, jax.lax.add, window, (1,) * split.ndim, pads)
    return (split * (norm.k + alpha * energy) ** -norm.beta).reshape(x.shape)


def pooled(x: jax.Array, pool: PoolSpec) -> jax.Array:
    """`nnx.max_pool`, or `nnx.avg_pool`, with the spec's rounding."""
    pads = [full_padding(n, pool.window, pool.stride, 0, round_up=pool.round_up) for n in x.shape[1:3]]
    window, strides = (pool.window, pool.window), (pool.stride, pool.stride)
    if pool.kind == "max":
        return nnx.max_pool(x, window, strides=strides, padding=pads)
    return nnx.avg_pool(x, window, strides=strides, padding=pads, count_include_pad=False)


class PlainAlexNet(nnx.Module):
    """The network of a spec, of Flax's own layers.

    Args:
      spec: any variant without a norm within a map.
      classes: width of the logits.
      dtype: of the computation.
      rngs: with streams `params` and `dropout`.

    Raises:
      ValueError: a variant with a norm within a map.
    """

    def __init__(self, spec: ModelSpec, *, classes: int = 1000, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        if any(conv.map_norm is not None for conv in spec.convs):
            raise ValueError(f"{spec.name} has a norm within a map, which the plain Flax network leaves out")
        self.spec = spec
        shapes = spec.stages(classes)
        convs, dense, dropouts = [], [], []
        side, channels = spec.input.size, 3
        for name, conv in zip(spec.conv_names(), spec.convs, strict=True):
            pads = full_padding(side, conv.kernel, conv.stride, conv.padding, round_up=conv.round_up)
            layer = nnx.Conv(
                channels,
                conv.features,
                (conv.kernel, conv.kernel),
                strides=conv.stride,
                padding=[pads, pads],
                feature_group_count=conv.groups,
                dtype=dtype,
                rngs=rngs,
            )
            convs.append(layer)
            side, _, channels = shapes[_last_stage(name, conv)]
        side = side if spec.adaptive_pool is None else spec.adaptive_pool
        width = side * side * channels
        for layer_spec in spec.dense:
            linear = nnx.Linear(width, layer_spec.features, dtype=dtype, rngs=rngs)
            dense.append(linear)
            dropouts.append(nnx.Dropout(layer_spec.dropout, rngs=rngs))
            width = layer_spec.features
        self.convs, self.dense, self.dropouts = nnx.List(convs), nnx.List(dense), nnx.List(dropouts)
        self.head = nnx.Linear(width, classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (N, classes) of images (N, size, size, 3)."""
        for layer, conv in zip(self.convs, self.spec.convs, strict=True):
            x = layer(x)
            for stage in conv.following():
                if stage == "activation":
                    x = nnx.relu(x)
                elif stage == "norm" and conv.norm is not None:
                    x = response_norm(x, conv.norm)
                elif stage == "pool" and conv.pool is not None:
                    x = pooled(x, conv.pool)
        bins = self.spec.adaptive_pool
        if bins is not None and x.shape[1] != bins:
            x = adaptive_avg_pool(x, bins)
        x = x.reshape(x.shape[0], -1)
        for linear, dropout, dense in zip(self.dense, self.dropouts, self.spec.dense, strict=True):
            x = dropout(x) if dense.dropout_at == "input" else x
            x = nnx.relu(linear(x))
            x = dropout(x) if dense.dropout_at == "output" else x
        return self.head(x)


def _last_stage(name: str, conv: ConvSpec) -> str:
    """The name of the stage that ends a convolution's block."""
    last, number = conv.following()[-1], name.removeprefix("conv")
    return name if last == "activation" else f"{last}{number}"


class Case:
    """A plain Flax network with random images that stay on the device, and training steps or forward passes of it.

    Args:
      spec: any variant without a norm within a map.
      batch_size: images.
      training: steps of `optax.sgd` with momentum and weight decay; else forward passes.
      precision: "float32" (true), "tf32" (GPU) or "bfloat16" (computation; float32 parameters).
      classes: width of the logits.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch_size: int,
        *,
        training: bool = True,
        precision: str = "float32",
        classes: int = 1000,
    ):
        self.batch_size, self._training, self._precision = batch_size, training, PRECISIONS[precision]
        dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        self._model = PlainAlexNet(spec, classes=classes, dtype=dtype, rngs=nnx.Rngs(0, dropout=1))
        draw = np.random.default_rng(0)
        side = spec.input.size
        self._images = jnp.asarray(draw.standard_normal((batch_size, side, side, 3), np.float32))
        self._labels = jnp.asarray(draw.integers(0, classes, batch_size, np.int32))
        if training:
            self._model.train()
            rule = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
            self._optimizer = nnx.Optimizer(self._model, rule, wrt=nnx.Param)
        else:
            self._model.eval()

    def run(self, count: int) -> float:
        """Images a second over so many steps, or forward passes."""
        result: Any = None
        with jax.default_matmul_precision(self._precision):
            start = time.perf_counter()
            for _ in range(count):
                if self._training:
                    result = _step(self._model, self._optimizer, self._images, self._labels)
                else:
                    result = _forward(self._model, self._images)
            jax.block_until_ready((result, nnx.state(self._model)))
            return count * self.batch_size / (time.perf_counter() - start)


@nnx.jit
def _step(model: PlainAlexNet, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss_fn(model: PlainAlexNet) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def _forward(model: PlainAlexNet, images: jax.Array) -> jax.Array:
    return model(images)
