"""Colour noise and shared draws, against the sources' formulas in float64 and their moments at fixed seeds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data.views import COLOUR_NOISES, Augmentation, ViewKeys, colour_directions, training_view, view_keys
from alexnet_jax.models import get_spec
from alexnet_jax.models.spec import InputSpec

from .view_cases import CONTRACTS, COUNT, IMAGES, MEAN_IMAGE, found_choices, reference

SEED, STEP = 11, 6
MIXED = np.array([[60.0, 15.0, 5.0], [55.0, -5.0, -10.0], [50.0, -20.0, 8.0]])
COVARIANCE = MIXED @ MIXED.T  # of colours that vary mostly from dark to light
EIGENVALUES, EIGENVECTORS = np.linalg.eigh(COVARIANCE)
IMAGENET = np.square([19.72, 37.09, 121.78])  # cuda-convnet2's published constants are √λ
PIXEL = InputSpec(size=1, resize=1)  # black pixels in, noise out


def normals(row: int) -> np.ndarray:
    """The three standard normals of an image, its key folded by hand: seed, purpose, step, row."""
    key = jax.random.key(SEED, impl="threefry2x32")
    for number in (3, STEP, row):
        key = jax.random.fold_in(key, number)
    return np.asarray(jax.random.normal(key, (3,), jnp.float32), np.float64)


def noise_of_the_paper(z: np.ndarray) -> np.ndarray:
    """P 4.1 on pixels from 0 to 1: [p1 p2 p3][α1 λ1, α2 λ2, α3 λ3]ᵀ, α ~ N(0, 0.1); then back to 0 to 255."""
    values, vectors = np.linalg.eigh(COVARIANCE / 255**2)
    return 255 * sum(vectors[:, i] * (0.1 * z[i]) * values[i] for i in range(3))


def noise_of_the_source(z: np.ndarray) -> np.ndarray:
    """S: standard deviations √λ of pixels from 0 to 255, times N(0, 1), times 0.1."""
    return sum(EIGENVECTORS[:, i] * np.sqrt(EIGENVALUES[i]) * z[i] * 0.1 for i in range(3))


FORMULAS = {"paper": (noise_of_the_paper, 1.0), "source2012": (noise_of_the_source, 1.1)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled(augmentation, contract, images, rows, directions, noise_on):
    """The views of these rows of step STEP; the noise's switch is traced."""
    views = view_keys(SEED, jnp.int32(STEP), rows, augmentation)
    mean = jnp.asarray(MEAN_IMAGE)
    return training_view(images, views, contract, mean, augmentation, directions, noise_on=noise_on)


def augmented(augmentation, contract, rows, images, *, noise_on=True, values=EIGENVALUES, vectors=EIGENVECTORS):
    """The views of these rows of step STEP."""
    kind = augmentation.colour_noise
    directions = None if kind is None else colour_directions(kind, values, vectors)
    return np.asarray(compiled(augmentation, contract, images, jnp.asarray(rows, jnp.int32), directions, noise_on))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in COLOUR_NOISES for name in ("position bgr", "unit scale")]
    + [("paper", "None bgr"), ("source2012", "centre rgb")],
)
def test_noise_follows_its_source(kind, name):
    contract, rows = CONTRACTS[name], np.arange(COUNT)
    plain = augmented(Augmentation(flip=True), contract, rows, IMAGES)
    noisy = augmented(Augmentation(flip=True, colour_noise=kind), contract, rows, IMAGES)
    formula, divisor = FORMULAS[kind]
    # Ten roundings of float32 on values that stay under 512 before the standard deviation.
    tolerance = 10 * 2**-24 * 512 * contract.scale / 255 / min(contract.std)
    for row in rows:
        ((top, left, mirrored),) = found_choices(plain[row], IMAGES[row], contract, True)
        image = IMAGES[row] + formula(normals(row))
        expected = reference(image, contract, top, left, mirrored) / divisor
        np.testing.assert_allclose(noisy[row], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", COLOUR_NOISES)
def test_noise_can_be_switched_off_inside_a_compiled_step(kind):
    """Without noise there is no division either: the network's input grows by 1.1."""
    contract, rows = CONTRACTS["centre rgb"], np.arange(COUNT)
    augmentation = Augmentation(flip=True, colour_noise=kind)
    plain = augmented(Augmentation(flip=True), contract, rows, IMAGES)
    np.testing.assert_array_equal(augmented(augmentation, contract, rows, IMAGES, noise_on=False), plain)
    assert not np.allclose(augmented(augmentation, contract, rows, IMAGES), plain, atol=0.1)


def noises(kind, count, values, vectors):
    """What is added to each of `count` images, (count, 3), on 0 to 255."""
    images = np.zeros((count, 1, 1, 3), np.uint8)
    found = augmented(Augmentation(colour_noise=kind), PIXEL, np.arange(count), images, values=values, vectors=vectors)
    return found[:, 0, 0].astype(np.float64) * (1.1 if kind == "source2012" else 1)


@pytest.mark.parametrize("kind", COLOUR_NOISES)
def test_moments_of_the_noise(kind):
    """Mean 0, covariance p diag((0.1 λ)²) pᵀ on 0 to 1 or p diag(0.01 λ) pᵀ; bounds of 4.5 standard errors."""
    count = 20_000
    found = noises(kind, count, EIGENVALUES, EIGENVECTORS)
    if kind == "paper":
        unit = COVARIANCE / 255**2
        wanted = 255**2 * 0.01 * unit @ unit
    else:
        wanted = 0.01 * COVARIANCE
    variance = np.diag(wanted)
    assert (np.abs(found.mean(0)) < 4.5 * np.sqrt(variance / count)).all()
    errors = np.sqrt((np.outer(variance, variance) + wanted**2) / count)  # of normals' sample covariance
    assert (np.abs(np.cov(found.T) - wanted) < 4.5 * errors).all()
    assert (np.abs(wanted) > 20 * errors).all()  # so that the bounds could fail


@pytest.mark.parametrize(("kind", "low", "high"), [("paper", 3.3, 3.5), ("source2012", 7.2, 7.7)])
def test_size_of_the_noise_on_imagenet(kind, low, high):
    """Images vary mostly from dark to light: with a grey first direction every channel lies in these bounds.

    A channel's variance is a third of the largest direction's and shares w₁ + w₂ = 2/3 of the others'.
    """
    draw = np.random.default_rng(2)
    for seed in range(20):
        grey, others = np.ones((3, 1)), draw.normal(size=(3, 2))
        vectors = np.linalg.qr(np.concatenate([grey, others], 1))[0][:, ::-1]
        deviations = np.sqrt((colour_directions(kind, IMAGENET, vectors).astype(np.float64) ** 2).sum(1))
        assert (deviations > low).all(), seed
        assert (deviations < high).all(), seed
    found = noises(kind, 20_000, IMAGENET, vectors).std(0)
    np.testing.assert_allclose(found, deviations, rtol=4.5 / np.sqrt(2 * 20_000))


def test_directions_of_grey_images():
    """Two eigenvalues are 0 but for rounding: finite, and grey."""
    values, vectors = np.linalg.eigh(np.full((3, 3), 900.0))
    values[:2] = [-1e-13, 1e-13]
    for kind, length in (("paper", 0.1 * 2700 / 255), ("source2012", 0.1 * np.sqrt(2700))):
        directions = colour_directions(kind, values, vectors)
        assert directions.dtype == np.float32
        np.testing.assert_allclose(np.abs(directions[:, 2]), length / np.sqrt(3), rtol=1e-6)
        np.testing.assert_allclose(directions[:, :2], 0, atol=1e-6)


def test_noise_is_drawn_once_an_image_not_once_a_pixel():
    """XLA would merge the draws into what is done to each pixel, and the view would take ten times as long."""
    contract = get_spec("source2012").input
    augmentation = Augmentation(flip=True, colour_noise="paper")
    directions = colour_directions("paper", EIGENVALUES, EIGENVECTORS)

    def run(images, rows):
        views = view_keys(SEED, jnp.int32(STEP), rows, augmentation)
        return training_view(images, views, contract, jnp.ones((256, 256, 3)), augmentation, directions)

    compiled = jax.jit(run).lower(np.zeros((8, 256, 256, 3), np.uint8), jnp.arange(8)).compile()
    drawn = compiled.cost_analysis()["transcendentals"]  # logarithms and roots of the normals
    assert 0 < drawn < 100 * 8


def places(side: int) -> np.ndarray:
    """An image whose pixels say where they are."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return np.stack([rows, columns, columns], -1).astype(np.uint8)


@pytest.mark.parametrize("count", [70, 64, 5])
def test_32_images_share_a_crop_and_a_flip_but_no_noise(count):
    contract = InputSpec(size=20, resize=52)  # 33 × 33 offsets, as in the 2012 source
    augmentation = Augmentation(flip=True, colour_noise="source2012", shared_draw=32)
    images = np.broadcast_to(places(52), (count, 52, 52, 3))
    off = augmented(augmentation, contract, np.arange(count), images, noise_on=False)
    on = augmented(augmentation, contract, np.arange(count), images)
    draws = [(view[0, 0, 0], view[..., 1].min(), view[0, 0, 1] > view[0, -1, 1]) for view in off]
    groups = [draws[start : start + 32] for start in range(0, count, 32)]
    assert [len(set(group)) for group in groups] == [1] * len(groups)
    assert len(set(draws)) == -(-count // 32)
    noise = (1.1 * on - off)[:, 0, 0]
    np.testing.assert_allclose(1.1 * on - off, np.broadcast_to(noise[:, None, None], on.shape), atol=1e-4)
    assert len(np.unique(noise.round(3), axis=0)) == count


def test_shares_are_of_the_whole_batch():
    """Rows 20 to 50 alone, as a device may hold them, draw what they draw in the whole batch."""
    augmentation = Augmentation(flip=True, colour_noise="paper", shared_draw=32)
    images = np.tile(IMAGES, (5, 1, 1, 1))
    whole = augmented(augmentation, CONTRACTS["centre rgb"], np.arange(60), images)
    part = augmented(augmentation, CONTRACTS["centre rgb"], np.arange(20, 51), images[20:51])
    np.testing.assert_array_equal(part, whole[20:51])


def test_keys_of_a_view():
    def data(keys):
        return np.asarray(jax.random.key_data(keys)).tolist()

    rows = jnp.arange(5)
    plain = view_keys(SEED, jnp.int32(STEP), rows, Augmentation())
    assert plain.colour is None
    keys = view_keys(SEED, jnp.int32(STEP), rows, Augmentation(colour_noise="paper", shared_draw=2))
    assert data(keys.place) == [data(plain.place)[row // 2] for row in range(5)]
    assert not {tuple(key) for key in data(keys.colour)} & {tuple(key) for key in data(plain.place)}
    other = view_keys(SEED, jnp.int32(STEP + 1), rows, Augmentation(colour_noise="paper"))
    assert not {tuple(key) for key in data(keys.colour)} & {tuple(key) for key in data(other.colour)}


@pytest.mark.usefixtures("x64")
def test_64_bit_jax_draws_the_same_noise():
    augmentation = Augmentation(flip=True, colour_noise="source2012", shared_draw=4)
    wide = augmented(augmentation, CONTRACTS["centre rgb"], np.arange(COUNT), IMAGES)
    assert wide.dtype == np.float32
    with jax.enable_x64(False):  # inside the 64-bit test
        narrow = augmented(augmentation, CONTRACTS["centre rgb"], np.arange(COUNT), IMAGES)
    np.testing.assert_array_equal(wide, narrow)


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ValueError, match="colour_noise must be one of 'paper', 'source2012', got 'papr'"):
        Augmentation(colour_noise="papr")
    with pytest.raises(ValueError, match="got 'none'"):
        colour_directions("none", EIGENVALUES, EIGENVECTORS)
    with pytest.raises(ValueError, match="shared_draw must be at least 1, got 0"):
        Augmentation(shared_draw=0)
    augmentation, contract = Augmentation(colour_noise="paper"), CONTRACTS["centre rgb"]
    views = view_keys(SEED, jnp.int32(STEP), jnp.arange(COUNT), augmentation)
    for keys, directions in ((views, None), (ViewKeys(views.place), np.eye(3))):
        with pytest.raises(ValueError, match="colour_noise='paper' needs directions"):
            training_view(IMAGES, keys, contract, MEAN_IMAGE, augmentation, directions)
