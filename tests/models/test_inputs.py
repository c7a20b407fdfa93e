"""`preprocess` against the input contracts written out in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax import create_model, get_spec, list_models, preprocess
from alexnet_jax.models import InputSpec, resize
from alexnet_jax.models.inputs import to_contract

RGB_MEAN = (122.67891434, 116.66876762, 104.00698793)  # ILSVRC-2012's, as Caffe published it


def photo(height, width, seed=0):
    """A smooth colour picture with some noise, uint8."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:height, :width]
    base = [np.sin(x / (9 + 4 * c) + c) + np.cos(y / (7 + 5 * c)) for c in range(3)]
    return np.clip(np.stack(base, -1) * 60 + 127 + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def triangle(pixels, size):
    """The matrix of an antialiased bilinear resize along one axis."""
    scale = pixels / size
    reach = max(scale, 1)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - abs(np.arange(pixels)[None] + 0.5 - centre) / reach)
    return weights / weights.sum(1, keepdims=True)


def scaled(image, height, width):
    rows, columns = triangle(image.shape[0], height), triangle(image.shape[1], width)
    return np.einsum("hwc,ih,jw->ijc", image.astype(np.float64), rows, columns, optimize=True)


def centre(image, size):
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def model_of(name, **options):
    return nnx.eval_shape(lambda: create_model(name, **options))


CONTRACTS = {  # size, what the crop is cut from, and its values from 0 to 255 in RGB
    "paper": (224, lambda x: x - np.array(RGB_MEAN)),
    "source2012": (224, lambda x: x - np.array(RGB_MEAN)),
    "single": (224, lambda x: x - np.array(RGB_MEAN)),
    "one_tower": (224, lambda x: x - np.array(RGB_MEAN)),
    "half": (224, lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])),
    "torchvision": (224, lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])),
    "bvlc_alexnet": (227, lambda x: x[..., ::-1] - np.array(RGB_MEAN[::-1])),
    "caffenet": (227, lambda x: x[..., ::-1] - np.array(RGB_MEAN[::-1])),
}


def test_every_variant_has_a_contract_here():
    assert set(CONTRACTS) | {"cifar"} == set(list_models())


@pytest.mark.parametrize("name", CONTRACTS)
def test_range_order_mean_and_crop(name):
    """On an image of the size before the crop nothing is resized: exact."""
    size, values = CONTRACTS[name]
    image = photo(256, 256)
    found = preprocess(image, model_of(name))
    assert found.shape == (1, size, size, 3)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], values(centre(image, size).astype(np.float64)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(300, 600), (512, 256), (100, 140), (256, 300)])
@pytest.mark.parametrize("name", ["paper", "torchvision", "bvlc_alexnet"])
def test_resizing(name, shape):
    """Within a grey level or so of a resize written out: uint8 rounds twice."""
    size, values = CONTRACTS[name]
    image = photo(*shape)
    if name == "bvlc_alexnet":  # warped, whatever its shape
        wanted = scaled(image, 256, 256)
    else:  # the shorter side, then the central square
        height, width = (side * 256 / min(shape) for side in shape)
        wanted = scaled(image, round(height), round(width))
        wanted = centre(wanted, 256)
    wanted = values(centre(wanted, size))
    level = 1 / 255 / 0.22 if name == "torchvision" else 1
    found = np.asarray(preprocess(image, model_of(name))[0])
    # 358.4 columns are no whole number: there the two cuts are up to half a pixel apart
    bound = 1.5 if all(side * 256 % min(shape) == 0 for side in shape) else 40
    assert abs(found - wanted).max() < bound * level
    assert abs(found - wanted).mean() < (0.6 if bound < 2 else 4) * level


def test_a_square_is_not_the_warp():
    image = photo(256, 400)
    whole, square = resize(image, 64, "warp"), resize(image, 64, "shorter_side")
    assert whole.shape == square.shape == (64, 64, 3)
    assert abs(whole.astype(int) - square).mean() > 5
    # The central square alone; at its sides the filter also sees what lies beyond.
    cut = resize(np.ascontiguousarray(image[:, 72:328]), 64, "warp")
    np.testing.assert_array_equal(square[:, 1:-1], cut[:, 1:-1])
    with pytest.raises(ValueError, match="the resize rule must be one of 'shorter_side', 'warp', got 'pad'"):
        resize(image, 64, "pad")


def test_an_image_of_the_size_passes_unchanged():
    image = photo(40, 40)
    for rule in ("shorter_side", "warp"):
        np.testing.assert_array_equal(resize(image, 40, rule), image)


def test_cifar_takes_its_images_whole():
    image = photo(32, 32)
    found = preprocess(image, model_of("cifar", num_classes=10))
    np.testing.assert_allclose(found[0], image - np.array([125.31, 122.95, 113.87]), atol=2e-5)


def test_images_of_many_sizes_together():
    model = model_of("paper")
    several = [photo(300, 260, 1), photo(256, 256, 2), photo(90, 400, 3)]
    found = preprocess(several, model)
    assert found.shape == (3, 224, 224, 3)
    for image, one in zip(several, found, strict=True):
        np.testing.assert_array_equal(preprocess(image, model)[0], one)


def test_a_batch_as_an_array():
    model = model_of("paper")
    batch = np.stack([photo(256, 256, seed) for seed in range(2)])
    found = preprocess(batch, model)
    np.testing.assert_array_equal(preprocess(jnp.asarray(batch), model), found)
    np.testing.assert_array_equal(preprocess(list(batch), model), found)


def test_at_another_size_the_ratio_stays():
    found = preprocess(photo(128, 128), model_of("paper", image_size=112))
    np.testing.assert_allclose(found[0], centre(photo(128, 128), 112) - np.array(RGB_MEAN), atol=2e-5)


@pytest.mark.parametrize("name", ["paper", "bvlc_alexnet"])
def test_the_mean_image(name):
    """Its central crop is subtracted, in the contract's own channel order."""
    rng = np.random.Generator(np.random.PCG64(3))
    mean = rng.uniform(80, 160, (256, 256, 3)).astype(np.float32)
    image, size = photo(256, 256), CONTRACTS[name][0]
    wanted = centre(image.astype(np.float64) - mean, size)
    wanted = wanted[..., ::-1] if name == "bvlc_alexnet" else wanted
    np.testing.assert_allclose(preprocess(image, model_of(name), mean_image=mean)[0], wanted, atol=2e-5)


def test_a_contract_of_ones_own():
    contract = InputSpec(size=20, resize=30, channel_order="bgr", scale=1.0, mean=(0.1, 0.2, 0.3), std=(2.0, 4.0, 8.0))
    image = photo(30, 30)
    spec = dataclasses.replace(get_spec("cifar"), input=contract)
    wanted = (centre(image, 20)[..., ::-1] / 255 - np.array([0.1, 0.2, 0.3])) / np.array([2.0, 4.0, 8.0])
    np.testing.assert_allclose(preprocess(image, model_of(spec, num_classes=3))[0], wanted, atol=1e-6)
    # A mean image comes on 0 to 255 in RGB, whatever the contract's scale and order.
    mean = np.full((20, 20, 3), [51, 102, 153], np.float32)
    found = to_contract(jnp.asarray(centre(image, 20)), contract, jnp.asarray(mean))
    wanted = (centre(image, 20)[..., ::-1] / 255 - np.array([0.6, 0.4, 0.2])) / np.array([2.0, 4.0, 8.0])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_what_preprocess_makes_the_model_takes():
    model = create_model("cifar", num_classes=3)
    assert model(preprocess(photo(50, 40), model)).shape == (1, 3)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (photo(256, 256).astype(np.float32), TypeError, "uint8 images of 0 to 255, got float32"),
        ([photo(256, 256), photo(256, 256) / 255], TypeError, "uint8 images of 0 to 255, got float64"),
        (
            photo(256, 256).transpose(2, 0, 1),
            ValueError,
            r"of shape \(3, 256, 256\): use images.transpose\(0, 2, 3, 1\)",
        ),
        (photo(256, 256)[None].transpose(0, 3, 1, 2), ValueError, r"use images.transpose\(0, 2, 3, 1\)"),
        ([photo(256, 256)[..., 0]], ValueError, r"RGB images \(H, W, 3\), got one of shape \(256, 256\)"),
        (np.zeros((2, 256, 256, 4), np.uint8), ValueError, r"got one of shape \(256, 256, 4\)"),
        ([], ValueError, "got no images"),
        (np.zeros((0, 256, 256, 3), np.uint8), ValueError, "got no images"),
    ],
)
def test_what_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        preprocess(images, model_of("paper"))


def test_mean_images_that_are_refused():
    image = photo(256, 256)
    with pytest.raises(ValueError, match="torchvision subtracts a mean pixel; mean_image must be None"):
        preprocess(image, model_of("torchvision"), mean_image=np.zeros((256, 256, 3)))
    with pytest.raises(ValueError, match=r"mean_image must be \(256, 256, 3\), got \(224, 224, 3\)"):
        preprocess(image, model_of("paper"), mean_image=np.zeros((224, 224, 3)))


def test_to_contract_under_jit():
    contract = get_spec("bvlc_alexnet").input
    crops = photo(227, 227)[None]
    inside = jax.jit(lambda x: to_contract(x, contract))(crops)
    np.testing.assert_allclose(inside, to_contract(jnp.asarray(crops), contract), atol=1e-5)
