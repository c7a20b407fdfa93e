"""Each block of a network alone, forward, and forward with backward, against its reference form and the limits.

    python benchmarks/layers.py [--quick] [--json FILE] [--variant paper] [--batch-size 32]

A block is one public function of `alexnet_jax.nn` with its bias, at the shapes that it has in the
network, on random data that stay on the device: what would come out of a ReLU, for norms and
pools (half of it zero). "backward" is the block's value and its gradients for a random gradient
of its output: of the parameters and, except in conv1, of the input.

Two rows each: `forms="auto"` against `forms="reference"`, and against the limit measured in the
same rounds. For convolutions and linear layers that is a large matrix product, and the figures
are GFLOP/s (two operations for each multiply-accumulate of the direct form: a form that needs
fewer may pass the limit). For the others it is a copy from memory to memory, and the figures
are GB/s, with each argument and result counted once: input and output; backward also their
gradients; for the update the parameters and momenta, read and written, and the gradients, read. A
copy that large misses every cache, a block at a small batch does not.

Everything runs in one process, as in a step, with freed memory kept (as `train.py` does) and
a thread for each core; layout NHWC.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import jax
import jax.numpy as jnp
import limits
import numpy as np
import optax
import our_networks

from alexnet_jax import create_model, nn
from alexnet_jax.models import ModelSpec
from alexnet_jax.models.spec import ConvSpec, NormSpec, PoolSpec
from alexnet_jax.models.summary import layer_table
from alexnet_jax.nn import checks
from alexnet_jax.nn.forms import jit
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig
from alexnet_jax.training.devices import keep_heap
from alexnet_jax.training.optimizer import make_optimizer

LIMITS = {"product": "matrix product", "copy": "memory copy"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A block at its place in a network.

    Attributes:
      name: "conv2", "norm1", "fc6".
      function: (forms, *arguments) -> result.
      arguments: its shapes, the input first.
      limit: "product" or "copy".
      work: GFLOP or GB of one call, forward.
      backward: the same with the backward pass; None: there is none.
      with_respect_to: arguments that have a gradient.
      in_place: arguments 1 and 2 are replaced by the results, as in an update.
      has_forms: False where `forms` makes no difference.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    limit: str
    work: float
    backward: float | None
    with_respect_to: tuple[int, ...] = (0,)
    in_place: bool = False
    has_forms: bool = True


def blocks(spec: ModelSpec, batch_size: int, classes: int) -> Iterator[Block]:
    """Those of a network, in the order of the computation, then dropout and the update."""
    gflop = {row.layer: 2e-9 * batch_size * row.macs for row in layer_table(spec, classes)}
    convs = dict(zip(spec.conv_names(), spec.convs, strict=True))
    linear = {f"{name}.pre": name for name in spec.dense_names()} | {"logits": spec.head_name()}
    for stage in spec.walk(classes):
        name = stage.name.removesuffix(".pre")
        kind, conv = name.rstrip("0123456789"), convs.get(f"conv{name[4:]}")
        before, after = (batch_size, *stage.before), (batch_size, *stage.after)
        size = 4e-9 * (math.prod(before) + math.prod(after))
        if stage.name == f"{name}.pre" and conv is not None:
            kernel = (conv.kernel, conv.kernel, before[-1] // conv.groups, conv.features)
            function = functools.partial(_conv, conv)
            seen = (1, 2) if name == "conv1" else (0, 1, 2)  # the images have no gradient
            work = gflop[name]
            yield Block(name, function, (before, kernel, after[-1:]), "product", work, len(seen) * work, seen)
        elif kind == "norm" and conv is not None and conv.norm is not None:
            yield Block(name, functools.partial(_norm, conv.norm), (before,), "copy", size, 2 * size)
        elif kind == "pool" and conv is not None and conv.pool is not None:
            yield Block(name, functools.partial(_pool, conv.pool), (before,), "copy", size, 2 * size)
        elif stage.name in linear:
            name = linear[stage.name]
            width, features = math.prod(stage.before), after[-1]
            shapes, work = ((batch_size, width), (width, features), (features,)), gflop[name]
            yield Block(name, _linear, shapes, "product", work, 3 * work, (0, 1, 2))
    if spec.dense:
        shape = (batch_size, spec.dense[0].features)
        size = 8e-9 * math.prod(shape)
        function = functools.partial(_dropout, spec.dense[0].dropout, spec.dropout_form)
        yield Block("dropout", function, (shape,), "copy", size, 2 * size, has_forms=False)
    yield _update(spec, classes)


def _conv(conv: ConvSpec, forms: str, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
    return nn.conv(x, kernel, bias, **options, round_up=conv.round_up, forms=forms)


def _norm(norm: NormSpec, forms: str, x: jax.Array) -> jax.Array:
    return nn.local_response_norm(x, **dataclasses.asdict(norm), forms=forms)


def _pool(pool: PoolSpec, forms: str, x: jax.Array) -> jax.Array:
    function = nn.max_pool if pool.kind == "max" else nn.avg_pool
    return function(x, window=pool.window, stride=pool.stride, round_up=pool.round_up, forms=forms)


def _linear(forms: str, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return nn.linear(x, kernel, bias, forms=forms)


def _dropout(rate: float, form: str, forms: str, x: jax.Array) -> jax.Array:
    return nn.dropout(x, rate=rate, form=form, train=True, key=jax.random.key(0))


def _update(spec: ModelSpec, classes: int) -> Block:
    """The momentum update of all parameters: gradients, parameters, momenta."""
    params = jax.eval_shape(lambda: steps.split(create_model(spec, num_classes=classes))[1])
    shapes = jax.tree.map(jnp.shape, params)
    optimizer = make_optimizer(OptimizerConfig(), list(params))
    rates = {"weights": 0.01, "biases": 0.01}

    def update(forms: str, grads: Any, params: Any, state: Any) -> Any:
        moves, state = optimizer.update(grads, state, params, rates=rates)
        return optax.apply_updates(params, moves), state

    count = sum(x.size for x in jax.tree.leaves(params))
    state = jax.eval_shape(optimizer.init, params)
    arguments = (shapes, shapes, jax.tree.map(jnp.shape, state))
    return Block("update", update, arguments, "copy", 20e-9 * count, None, (), in_place=True, has_forms=False)


class Case:
    """A block in one form with random data on the device.

    Args:
      block: which.
      forms: "auto" or "reference".
      work: GFLOP or GB of one call.
      backward: with the backward pass.
      seconds: that a measurement takes at least.
    """

    def __init__(self, block: Block, forms: str, work: float, *, backward: bool, seconds: float):
        draw = np.random.default_rng(0)

        def random(shape: tuple[int, ...]) -> jax.Array:
            return jnp.asarray(draw.standard_normal(shape, np.float32))

        def is_shape(x: Any) -> bool:
            return isinstance(x, tuple) and all(isinstance(n, int) for n in x)

        arguments = jax.tree.map(random, block.arguments, is_leaf=is_shape)
        if not block.in_place:
            arguments = (jax.nn.relu(arguments[0]), *arguments[1:])
        forward = functools.partial(block.function, forms)
        compiled = jit if forms == "auto" else jax.jit  # as the program has it; as a plain network has it
        self._work, self._in_place, self._arguments = work, block.in_place, arguments
        self._gradient: tuple[jax.Array, ...] = ()
        if backward:
            self._gradient = (random(jax.eval_shape(forward, *arguments).shape),)
            self._function = compiled(functools.partial(_with_gradients, forward, block.with_respect_to))
        else:
            self._function = compiled(forward, donate_argnums=(1, 2) if block.in_place else ())
        self.run(1)
        start = time.perf_counter()
        self.run(1)
        self._count = max(1, math.ceil(seconds / (time.perf_counter() - start)))

    def measure(self) -> float:
        """GFLOP/s or GB/s."""
        start = time.perf_counter()
        self.run(self._count)
        return self._count * self._work / (time.perf_counter() - start)

    def run(self, count: int) -> None:
        """Calls the block so often and waits."""
        result: Any = None
        for _ in range(count):
            result = self._function(*self._gradient, *self._arguments)
            if self._in_place:
                self._arguments = (self._arguments[0], *result)
        jax.block_until_ready(result)


def _with_gradients(
    forward: Callable[..., Any], with_respect_to: tuple[int, ...], dy: jax.Array, *arguments: Any
) -> Any:
    def of(*chosen: Any) -> Any:
        given = list(arguments)
        for index, value in zip(with_respect_to, chosen, strict=True):
            given[index] = value
        return forward(*given)

    value, pull = jax.vjp(of, *(arguments[index] for index in with_respect_to))
    return value, pull(dy)


def bounds(what: str, *, quick: bool) -> dict[str, Callable[[], float]]:
    """A limit as two libraries in this process reach it."""
    rows, size = (256, 2**20) if quick else (limits.ROWS, limits.BYTES)
    return {
        f"{LIMITS[what]} ({library})": functools.partial(limits.Limit(what, library, rows=rows, size=size).run, 1)
        for library in ("JAX", "NumPy")
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--blocks", nargs="+", help="these alone, such as conv2 norm1; default: all")
    parser.add_argument("--image-size", type=int, help="pixels; the variant's own by default")
    parser.add_argument("--narrow", type=int, default=1, help="divide every width by this: for a test of the program")
    parser.add_argument("--classes", type=int, default=1000)
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.01) if arguments.quick else (7, 0.3)
    heap = "kept" if keep_heap(compute_here=True) else "stock"
    spec = our_networks.variant(arguments.variant, size=arguments.image_size, narrow=arguments.narrow)
    report = harness.Report(
        arguments,
        f"Blocks of {arguments.variant}, float32, batch {arguments.batch_size}",
        device=jax.devices()[0].device_kind,
        threads=harness.cores(),
        heap=heap,
        layout="NHWC",
    )
    each = list(blocks(spec, arguments.batch_size, arguments.classes))
    for name in arguments.blocks or ():
        checks.choice(name, "a block", [block.name for block in each])
    settings: dict[str, Any] = {"threads": harness.cores(), "heap": heap, "layout": "NHWC"}
    settings |= {"variant": arguments.variant, "batch_size": arguments.batch_size}
    bound = {what: bounds(what, quick=arguments.quick) for what in LIMITS}
    spent = 0.0
    for block in each:
        if arguments.blocks and block.name not in arguments.blocks:
            continue
        works = {"": block.work} if block.backward is None else {"": block.work, ", backward": block.backward}
        for suffix, work in works.items():
            made = {
                forms: Case(block, forms, work, backward=bool(suffix), seconds=seconds)
                for forms in (("auto", "reference") if block.has_forms else ("auto",))
            }
            cases: dict[str, Callable[[], float]] = {forms: case.measure for forms, case in made.items()}
            found = harness.interleave(cases | bound[block.limit], rounds)
            title, unit = f"{block.name}{suffix}", limits.WHAT[block.limit]
            more = settings | {"milliseconds": 1000 * work / found["auto"].median}
            if suffix == list(works)[-1]:
                spent += more["milliseconds"]
            if block.has_forms:
                report.add(harness.row(title, found["auto"], found["reference"], 'forms="reference"', unit, **more))
            best = max(bound[block.limit], key=lambda name: found[name].median)
            report.add(harness.row(title, found["auto"], found[best], best, unit, **more))
    report.note(f"forward with backward of these blocks, and the update, take {spent:,.0f} ms together, each by itself")
    report.finish()


if __name__ == "__main__":
    main()
