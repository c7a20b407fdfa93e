"""Bad input is refused at the border, by one error that names the value and the remedy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import create_model, get_spec
from alexnet_jax.models import NormSpec, PoolSpec

from .builders import made, narrow, pictures


@pytest.fixture(scope="module")
def model():
    return made(narrow("paper"), 3)


@pytest.fixture(scope="module")
def images():
    return pictures(narrow("paper")).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.transpose(0, 3, 1, 2), r"NHWC.*NCHW, \(2, 3, 67, 67\): use images.transpose\(0, 2, 3, 1\)"),
        (lambda x: x[0], r"batch \(N, 67, 67, 3\), got \(67, 67, 3\): use images\[None\]"),
        (lambda x: x[:, :66], r"\(N, 67, 67, 3\), got \(2, 66, 67, 3\): use alexnet_jax.preprocess.*image_size"),
        (lambda x: x[..., :1], r"\(N, 67, 67, 3\), got \(2, 67, 67, 1\)"),
        (lambda x: x[None], r"\(N, 67, 67, 3\), got \(1, 2, 67, 67, 3\)"),
        (lambda x: x.reshape(2, -1), r"\(N, 67, 67, 3\), got \(2, 13467\)"),
    ],
)
def test_images_of_another_shape(model, images, change, message):
    with pytest.raises(ValueError, match=message):
        model(change(images))
    with pytest.raises(ValueError, match=message):
        model.activations(change(images), ["conv1"])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_images_that_are_not_floats(model, images, dtype):
    with pytest.raises(TypeError, match=rf"floating-point.*got {dtype}: use alexnet_jax.preprocess\(images, model\)"):
        model(images.astype(dtype))


def test_training_without_a_key(model, images):
    with pytest.raises(ValueError, match=r"train=True needs a key.*dropout_key=jax.random.key\(0\)"):
        model(images, train=True)
    with pytest.raises(ValueError, match="train=True needs a key"):
        made(get_spec("cifar"), 2)(np.zeros((1, 32, 32, 3), np.float32), train=True)


def test_another_number_of_keys(model, images):
    with pytest.raises(ValueError, match=r"one for each of 2 images, got keys of shape \(3,\)"):
        model(images, train=True, dropout_key=jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize("key", [0, jnp.zeros(2), jnp.zeros(2, jnp.int32)])
def test_what_is_not_a_key(model, images, key):
    with pytest.raises(TypeError, match=r"expected a key such as jax.random.key\(0\)"):
        model(images, train=True, dropout_key=key)


def test_an_unknown_stage(model, images):
    for names in ("relu1", ["conv1", "relu1"]):
        with pytest.raises(ValueError, match=r"a stage of paper must be one of 'conv1.pre', .*'logits', got 'relu1'"):
            model.activations(images, names)


@pytest.mark.parametrize(
    ("name", "near"),
    [("papre", "paper"), ("bvlc-alexnet", "bvlc_alexnet"), ("source2021", "source2012"), ("CaffeNet", "caffenet")],
)
def test_an_unknown_model(name, near):
    with pytest.raises(ValueError, match=rf"no model '{name}'; did you mean '{near}'\? Known: paper, source2012, "):
        create_model(name)
    with pytest.raises(ValueError, match="did you mean"):
        get_spec(name)


def test_a_name_like_no_other():
    with pytest.raises(ValueError, match=r"there is no model 'resnet50'[^?]*Known: paper, .*cifar"):
        create_model("resnet50")


@pytest.mark.parametrize(
    ("name", "size", "where"),
    [("paper", 10, "conv1"), ("paper", 14, "pool1"), ("torchvision", 24, "pool2"), ("bvlc_alexnet", 40, "pool5")],
)
def test_images_too_small(name, size, where):
    with pytest.raises(ValueError, match=rf"{name}: images of {size} pixels are too small: {where}: .*larger image"):
        create_model(name, image_size=size)


@pytest.mark.parametrize("size", [0, -3])
def test_no_image(size):
    with pytest.raises(ValueError, match=f"image_size must be at least 1, got {size}"):
        create_model("paper", image_size=size)


@pytest.mark.parametrize("count", [0, -1])
def test_no_classes(count):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, got {count}"):
        create_model("paper", num_classes=count)


def test_channels_that_groups_do_not_divide():
    with pytest.raises(
        ValueError, match="conv2: 9 input and 16 output channels must both be divisible by its groups=2"
    ):
        create_model(narrow("paper").with_layer("conv1", features=9, norm=None), num_classes=2)
    with pytest.raises(ValueError, match="conv5: 12 input and 7 output channels"):
        create_model(narrow("paper").with_layer("conv5", features=7), num_classes=2)
    with pytest.raises(ValueError, match="norm1: 8 channels are not divisible by its groups=3"):
        create_model(narrow("paper").with_layer("conv1", norm=NormSpec(groups=3)), num_classes=2)


def test_a_pool_larger_than_its_map():
    spec = narrow("paper").with_layer("conv5", pool=PoolSpec(window=4))
    with pytest.raises(ValueError, match="pool5: a window of 4 does not fit into 3 pixels"):
        create_model(spec, num_classes=2)


@pytest.mark.parametrize("what", ["param_dtype", "dtype"])
def test_float64_without_x64(what):
    with pytest.raises(ValueError, match=rf"{what}=float64 needs 64-bit JAX: .*jax_enable_x64"):
        create_model(narrow("paper"), num_classes=2, **{what: "float64"})


@pytest.mark.parametrize("forms", ["Auto", "fast", ""])
def test_forms_misspelt(model, images, forms):
    with pytest.raises(ValueError, match=f"forms must be one of 'auto', 'reference', got '{forms}'"):
        create_model(narrow("paper"), num_classes=2, forms=forms)
    other = made(narrow("paper"), 3)
    other.forms = forms
    with pytest.raises(ValueError, match="forms must be one of 'auto', 'reference'"):
        other(images)


def test_a_norm_with_nothing_in_it(images):
    spec = narrow("paper").with_layer(
        "conv1", norm=dataclasses.replace(narrow("paper").convs[0].norm, k=0.0, alpha=0.0)
    )
    with pytest.raises(ValueError, match="alpha and k must not be negative, nor both zero"):
        create_model(spec, num_classes=2)(images)
