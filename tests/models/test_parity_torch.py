"""Whole variants against the same networks written in PyTorch: logits and the images' gradient.

The networks are written out from their sources, in PyTorch's own terms: NCHW, α of its
normalisation always over n, dropout at test as a factor.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import get_spec

from .builders import build, distance, parameters, pictures

pytestmark = pytest.mark.parity


def paper(torch, p, x):
    """Krizhevsky et al. 2012, section 3; conv1's three rows of zeros are at the bottom and right."""
    f = torch.nn.functional

    def norm(x):  # α on the plain sum, inside a tower
        return torch.cat([f.local_response_norm(h, 5, alpha=5e-4, beta=0.75, k=2.0) for h in x.chunk(2, 1)], 1)

    def pool(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    high = (11 - x.shape[-1]) % 4  # what rounding up adds: 3 at 224
    x = pool(norm(f.conv2d(f.pad(x, (0, high, 0, high)), *p["conv1"], stride=4).relu()))
    x = pool(norm(f.conv2d(x, *p["conv2"], padding=2, groups=2).relu()))
    x = f.conv2d(x, *p["conv3"], padding=1).relu()
    x = f.conv2d(x, *p["conv4"], padding=1, groups=2).relu()
    x = pool(f.conv2d(x, *p["conv5"], padding=1, groups=2).relu())
    x = f.linear(x.flatten(1), *p["fc6"]).relu() * 0.5
    x = f.linear(x, *p["fc7"]).relu() * 0.5
    return f.linear(x, *p["fc8"])


def caffe(torch, p, x, *, pool_first):
    """Caffe's two AlexNets: norms across both groups, k = 1, nothing from dropout at test."""
    f = torch.nn.functional

    def norm(x):
        return f.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def pool(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    def both(x):
        return norm(pool(x)) if pool_first else pool(norm(x))

    x = both(f.conv2d(x, *p["conv1"], stride=4).relu())
    x = both(f.conv2d(x, *p["conv2"], padding=2, groups=2).relu())
    x = f.conv2d(x, *p["conv3"], padding=1).relu()
    x = f.conv2d(x, *p["conv4"], padding=1, groups=2).relu()
    x = pool(f.conv2d(x, *p["conv5"], padding=1, groups=2).relu())
    x = f.linear(x.flatten(1), *p["fc6"]).relu()
    x = f.linear(x, *p["fc7"]).relu()
    return f.linear(x, *p["fc8"])


def one_column(torch, p, x, *, adaptive):
    """torchvision's `alexnet`, and with other widths and no adaptive pooling the half-width listing."""
    nn = torch.nn

    def conv(name, stride=1, padding=0):
        weight, bias = p[name]
        layer = nn.utils.skip_init(nn.Conv2d, *weight.shape[1::-1], weight.shape[2:], stride=stride, padding=padding)
        layer.weight, layer.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        return layer

    def linear(name):
        weight, bias = p[name]
        layer = nn.utils.skip_init(nn.Linear, *weight.shape[::-1])
        layer.weight, layer.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        return layer

    return nn.Sequential(
        *(conv("conv1", 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(conv("conv2", padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(conv("conv3", padding=1), nn.ReLU()),
        *(conv("conv4", padding=1), nn.ReLU()),
        *(conv("conv5", padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *([nn.AdaptiveAvgPool2d((6, 6))] if adaptive else []),
        *(nn.Flatten(), nn.Dropout(), linear("fc6"), nn.ReLU()),
        *(nn.Dropout(), linear("fc7"), nn.ReLU()),
        linear("fc8"),
    ).eval()(x)


THEIRS = {
    "paper": paper,
    "bvlc_alexnet": functools.partial(caffe, pool_first=False),
    "caffenet": functools.partial(caffe, pool_first=True),
    "torchvision": functools.partial(one_column, adaptive=True),
    "half": functools.partial(one_column, adaptive=False),
}
BOUNDS = {"float64": 1e-9, "float32": 1e-4}


def transplanted(torch, params, maps, dtype):
    """Our parameters in PyTorch's layouts: OIHW, and fc6's rows in the order of CHW."""

    def tensor(array):
        return torch.tensor(np.ascontiguousarray(array), dtype=getattr(torch, dtype))

    found = {}
    for name, layer in params.items():
        kernel = layer["kernel"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if name == "fc6":
                side = kernel.reshape(*maps, -1)
                kernel = side.transpose(2, 0, 1, 3).reshape(kernel.shape)
            kernel = kernel.T
        found[name] = (tensor(kernel), tensor(layer["bias"]))
    return found


def compare(torch, spec, params, dtype):
    images, num_classes = pictures(spec), params["fc8"]["bias"].size
    weights = np.cos(np.arange(2 * num_classes)).reshape(2, num_classes)

    graph, state = nnx.split(build(spec, params, dtype=dtype))

    @jax.jit
    def ours(state, images, weights):
        def value(images):
            logits = nnx.merge(graph, state)(images)
            return (logits * weights).sum(), logits

        return jax.grad(value, has_aux=True)(images)

    gradient, logits = ours(state, jnp.asarray(images, dtype), jnp.asarray(weights, dtype))
    assert logits.dtype == dtype

    maps = [shape for shape in spec.stages(num_classes).values() if len(shape) == 3][-1]
    x = torch.tensor(images.transpose(0, 3, 1, 2), dtype=getattr(torch, dtype), requires_grad=True)
    y = THEIRS[spec.name](torch, transplanted(torch, params, maps, dtype), x)
    (y * torch.tensor(weights, dtype=y.dtype)).sum().backward()

    assert distance(logits, y.detach().numpy()) < BOUNDS[dtype]
    expected = x.grad.numpy().transpose(0, 2, 3, 1)
    if dtype == "float32":
        # Rounding may decide a ReLU at zero or a tie of a maximum, and with it what one unit's field is told.
        error = np.abs(gradient - expected) / np.sqrt((expected**2).mean())
        assert np.quantile(error, 0.75) < BOUNDS[dtype]
        assert distance(gradient, expected) < 0.02
    else:
        assert distance(gradient, expected) < BOUNDS[dtype]
    assert float(y.detach().std()) > 1e-2  # it is not a constant that agrees


@functools.lru_cache(1)
def at_full_size(name):
    return parameters(get_spec(name))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", THEIRS)
def test_at_full_size(name, dtype, torch):
    with jax.enable_x64(dtype == "float64"):
        compare(torch, get_spec(name), at_full_size(name), dtype)


# Sizes at which rounding up and down, and adaptive pooling, matter.
@pytest.mark.parametrize(
    ("name", "size"),
    [("paper", 93), ("bvlc_alexnet", 115), ("caffenet", 93), ("half", 119), ("torchvision", 127), ("torchvision", 256)],
)
def test_at_other_sizes(name, size, torch, x64):
    spec = get_spec(name).at_image_size(size).with_dense(features=64)
    compare(torch, spec, parameters(spec, 10), "float64")
