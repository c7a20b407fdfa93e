"""Small networks whose weights are in files, and the files' names for them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from models.builders import narrow, parameters

from alexnet_jax import load_weights
from alexnet_jax.weights import WeightsError

PLACES = {f"conv{n}": f"features.{i}" for n, i in zip(range(1, 6), (0, 3, 6, 8, 10), strict=True)}
PLACES |= {f"fc{n}": f"classifier.{i}" for n, i in zip(range(6, 9), (1, 4, 6), strict=True)}


def network(name="half", num_classes=7, **options):
    """A narrow variant and parameters for it, float32."""
    spec = narrow(name, **options)
    params = parameters(spec, num_classes)
    return spec, {layer: {k: v.astype(np.float32) for k, v in leaves.items()} for layer, leaves in params.items()}


def as_torch(params, maps):
    """Our parameters by PyTorch's names in its layouts, an index at a time; `maps` is (H, W, C) before fc6."""
    found = {}
    for layer, leaves in params.items():
        kernel = leaves["kernel"]
        if kernel.ndim == 4:
            weight = np.stack([np.moveaxis(kernel[..., o], -1, 0) for o in range(kernel.shape[-1])])
        elif layer == "fc6":
            height, width, channels = maps
            rows = [
                (y * width + x) * channels + c for c in range(channels) for y in range(height) for x in range(width)
            ]
            weight = np.stack([kernel[rows, o] for o in range(kernel.shape[-1])])
        else:
            weight = np.ascontiguousarray(kernel.T)
        found[f"{PLACES[layer]}.weight"] = np.ascontiguousarray(weight)
        found[f"{PLACES[layer]}.bias"] = leaves["bias"]
    return found


def maps_of(spec):
    return [shape for shape in spec.stages(7).values() if len(shape) == 3][-1]


def torch_state(name="half", num_classes=7, **options):
    """A narrow variant, its parameters, and its state dict."""
    spec, params = network(name, num_classes, **options)
    return spec, params, as_torch(params, maps_of(spec))


def flat(params):
    return {f"{layer}.{leaf}": value for layer, leaves in params.items() for leaf, value in leaves.items()}


def held(model):
    """The parameters that a model holds, by name."""
    return {
        f"{layer}.{leaf}": np.asarray(getattr(getattr(model, layer), leaf)[...])
        for layer in [*model.spec.conv_names(), *model.spec.dense_names(), model.spec.head_name()]
        for leaf in ("kernel", "bias")
    }


def assert_holds(model, params):
    found, expected = held(model), flat(params)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def caffe_state(name="caffenet", num_classes=7, *, size=131):
    """A narrow variant whose fc6 sees 3 × 3 maps, its parameters, and its weights and biases by Caffe's layers."""
    spec, params, state = torch_state(name, num_classes, size=size)
    return spec, params, {layer: (state[f"{at}.weight"], state[f"{at}.bias"]) for layer, at in PLACES.items()}


def refused(path, words, **options):
    """The load is refused in one line that begins with the path, and reserves little memory."""
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            load_weights(path, variant=options.pop("variant", None), **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message
    assert peak < 8 * size + (32 << 20)
