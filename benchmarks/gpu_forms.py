"""Candidate forms of blocks for a GPU, by themselves and in the training step; see `gpu.py`.

Each candidate is compared with the plain form (one `lax` operation, differentiated by JAX) before
it is timed, by the relative Euclidean distance of results and gradients; one that differs has a
note instead of a row.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import harness
import jax
import jax.numpy as jnp
import numpy as np
import our_networks

from alexnet_jax.nn import fused, lrn, pool_index, pooling
from alexnet_jax.nn.conv_gradients import direct
from alexnet_jax.nn.space_to_depth import in_blocks
from alexnet_jax.trained import PRECISIONS

NETWORK = importlib.import_module("alexnet_jax.models.alexnet")
CONV = importlib.import_module("alexnet_jax.nn.conv")  # `nn.conv` is the function
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bfloat16": 5e-2}  # relative distance, of gradients after 8 layers too
Form = Callable[..., jax.Array]


def more_channels(channels: int) -> Form:
    """conv1 of images with channels of zeros added."""

    def form(x: jax.Array, kernel: jax.Array, stride: int, pads: Any, groups: int = 1) -> jax.Array:
        extra = channels - x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))
        return direct(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, extra), (0, 0))), stride, pads, groups)

    return form


CONV1: dict[str, Form] = {
    "4 channels": more_channels(4),
    "8 channels": more_channels(8),
    "blocks of 4 pixels": in_blocks,
}


def split_groups(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """conv2 group by group."""
    pairs = zip(jnp.split(x, 2, -1), jnp.split(kernel, 2, -1), strict=True)
    return jnp.concatenate([direct(a, b, 1, ((2, 2), (2, 2))) for a, b in pairs], -1)


def following(x: jax.Array, bias: jax.Array, form: str) -> jax.Array:
    """Bias, ReLU, norm and pooling of `paper`: as one kernel, or one after the other."""
    norm: dict[str, Any] = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "alpha_per": "term", "groups": 2}
    if form == "one kernel":
        return fused.relu_norm_max_pool(x, bias, norm, interpret=jax.default_backend() != "gpu")
    own = "auto" if form == "own gradients" else "reference"
    y = lrn.local_response_norm(jax.nn.relu(x + bias), **norm, forms=own)
    if form == "own gradients":
        return pool_index.max_pool_with_index(y, 3, 2, ((0, 0),) * 4)
    return pooling.max_pool(y, forms="reference")


def blocks(narrow: int, size: int) -> dict[str, tuple[dict[str, Form], list[tuple[int, ...]]]]:
    """For each block its forms, the plain one first, and the shapes of its arguments (0: the batch)."""
    width, side = 96 // narrow, (size - 8) // 4 + 1
    pads = ((0, 3), (0, 3))
    conv1 = {"as it is": direct, **CONV1}
    no_pads = ((0, 0), (0, 0), (0, 0), (0, 0))
    maps = (0, side, side, width)
    after: dict[str, Form] = {
        form: functools.partial(following, form=form) for form in ("XLA", "own gradients", "one kernel")
    }
    return {
        "after conv1": (after, [maps, (width,)]),
        "after conv2": (after, [(0, side // 2, side // 2, 256 // narrow), (256 // narrow,)]),
        "conv1": (
            {name: lambda x, kernel, form=form: form(x, kernel, 4, pads) for name, form in conv1.items()},
            [(0, size, size, 3), (11, 11, 3, width)],
        ),
        "conv2": (
            {"feature_group_count": lambda x, k: direct(x, k, 1, ((2, 2), (2, 2)), 2), "split groups": split_groups},
            [(0, side // 2, side // 2, width), (5, 5, width // 2, 256 // narrow)],
        ),
        "pool1": (
            {
                "XLA": lambda x: pooling.max_pool(x, forms="reference"),
                "kept index": lambda x: pool_index.max_pool_with_index(x, 3, 2, no_pads),
            },
            [maps],
        ),
        "norm1": (
            {
                "autodiff": lambda x: lrn.local_response_norm(x, groups=2, forms="reference"),
                "own gradient": lambda x: lrn.local_response_norm(x, groups=2),
            },
            [maps],
        ),
    }


def distance(found: Any, plain: Any) -> float:
    """The largest relative Euclidean distance of two trees' leaves."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True)
    both = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs]
    return max(float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30)) for a, b in both)


def rate(work: Callable[[], Any], batch_size: int, seconds: float) -> Callable[[], float]:
    """A measurement that takes about so many seconds: images a second."""
    jax.block_until_ready(work())
    start = time.perf_counter()
    jax.block_until_ready(work())
    count = max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = work()
        jax.block_until_ready(result)
        return count * batch_size / (time.perf_counter() - start)

    return measure


def alone(report: harness.Report, options: Any, precision: str, batch_size: int) -> None:
    """Each block's candidates by themselves, forward and backward, against the plain form."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    draw = np.random.default_rng(0)
    for block, (forms, shapes) in blocks(options.narrow, options.image_size).items():
        arrays = [jnp.asarray(draw.standard_normal([n or batch_size for n in shape], np.float32)) for shape in shapes]
        arrays = [a.astype(dtype) for a in arrays]
        plain = next(iter(forms))
        results: dict[str, Any] = {}
        cases: dict[str, Callable[[], float]] = {}
        title = f"{block} alone, {precision}, batch {batch_size}"
        with jax.default_matmul_precision(PRECISIONS[precision]):
            for name, form in forms.items():
                # Images need no gradient, so conv1 has only its kernel's.
                first = len(arrays) - 1 if block == "conv1" else 0

                def work(*arrays: jax.Array, form: Form = form, first: int = first) -> Any:
                    y, back = jax.vjp(lambda *own: form(*arrays[:first], *own), *arrays[first:])
                    slope = jnp.cos(jnp.arange(y.shape[-1], dtype=jnp.float32)).astype(y.dtype)
                    return y, back(jnp.broadcast_to(slope, y.shape))

                try:
                    compiled = jax.jit(work)
                    # On a few images: the host need not see gigabytes.
                    results[name] = jax.tree.map(np.asarray, compiled(arrays[0][:32], *arrays[1:]))
                    apart = distance(results[name], results[plain])
                    if not apart <= TOLERANCE[precision]:
                        report.note(f"{title}: {name} is left out: it differs from {plain} by {apart:.2g}")
                        continue
                    cases[name] = rate(functools.partial(compiled, *arrays), batch_size, options.seconds_each)
                except Exception as error:  # the other forms go on
                    report.note(f"{title}: {name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
            if plain not in cases:
                continue
            found = harness.interleave(cases, options.rounds)
        for name in list(found)[1:]:
            report.add(
                harness.row(f"{title}: {name}", found[name], found[plain], plain, "images/s", precision=precision)
            )


def in_conv1(form: Form) -> Form:
    """`direct`, but for the convolution of the images."""

    def both(x: jax.Array, kernel: jax.Array, stride: int, pads: Any, groups: int = 1) -> jax.Array:
        return form(x, kernel, stride, pads) if x.shape[-1] == 3 else direct(x, kernel, stride, pads, groups)

    return both


def changes() -> dict[str, list[Any]]:
    """For each candidate in the step what it replaces in the package while the step is compiled."""
    call = CONV.Conv.__call__

    def grouped(self: Any, x: jax.Array, **options: Any) -> Any:
        return call(self, x, **options | ({"forms": "reference"} if self.groups > 1 else {}))

    conv1: dict[str, list[Any]] = {
        f"conv1 by {name}": [
            mock.patch.object(CONV, "direct", in_conv1(form)),
            mock.patch.object(CONV, "conv_gradients", return_value=False),
            mock.patch.object(CONV, "in_blocks", return_value=False),
        ]
        for name, form in {"one convolution": direct, **CONV1}.items()
    }
    apart = mock.patch.object(NETWORK, "fused", return_value=False)
    return conv1 | {
        "groups by feature_group_count": [mock.patch.object(CONV.Conv, "__call__", grouped)],
        "what follows by XLA": [apart],
        "what follows by XLA, pool with kept index": [
            apart,
            mock.patch.object(pooling, "own_gradients", return_value=True),
        ],
        "what follows by XLA, LRN by autodiff": [apart, mock.patch.object(lrn, "_saving_x_only", lrn._plain)],
    }


def in_step(report: harness.Report, options: Any, variant: str, precision: str, batch_size: int) -> None:
    """The training step with one block in another form, against the step as it is."""
    spec = our_networks.variant(variant, size=options.image_size, narrow=options.narrow)

    def make(patches: list[Any]) -> tuple[our_networks.Case, Any]:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            case = our_networks.Case(spec, batch_size, precision=precision, classes=options.classes)
            with jax.default_matmul_precision(PRECISIONS[precision]):
                state, loss = case._step()  # traced here, with the replacements
            return case, jax.tree.map(np.asarray, (loss, jax.tree.leaves(state[1])))  # momentum: the gradient

    title = f"step of {variant}, {precision}, batch {batch_size}"
    plain, wanted = make([])

    def measured(case: our_networks.Case) -> Callable[[], float]:
        with jax.default_matmul_precision(PRECISIONS[precision]):
            return rate(case._step, batch_size, options.seconds_each)

    candidates = changes()
    if options.quick:  # one of each kind
        candidates = {
            name: candidates[name] for name in ("conv1 by blocks of 4 pixels", "what follows by XLA, LRN by autodiff")
        }
    for name, patches in candidates.items():
        try:
            case, found = make(patches)
            apart = distance(found, wanted)
            if not apart <= TOLERANCE[precision]:
                report.note(f"{title}: {name} is left out: its gradient differs by {apart:.2g}")
                continue
            with jax.default_matmul_precision(PRECISIONS[precision]):
                cases = {"candidate": measured(case), "plain": measured(plain)}
                rates = harness.interleave(cases, options.rounds)
            more: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "distance": apart}
            line = harness.row(f"{title}: {name}", rates["candidate"], rates["plain"], "as it is", "images/s", **more)
            report.add(line)
            del case
        except Exception as error:  # the other forms go on
            report.note(f"{title}: {name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
