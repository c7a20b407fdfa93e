"""Caffe's files read by OpenCV's Caffe importer: the same logits, LRN across groups included."""

from __future__ import annotations

import numpy as np
import pytest
from models.builders import distance, pictures, run, stages

from alexnet_jax import get_spec, preprocess
from alexnet_jax.models.variants import IMAGENET_MEAN
from alexnet_jax.weights import open_weights

from . import caffe_writer
from .networks import PLACES, caffe_state

pytestmark = pytest.mark.parity
NAMES = ("bvlc_alexnet", "caffenet")


@pytest.fixture(scope="session")
def cv2():
    """OpenCV 4, the last that has the importer, or the test is skipped."""
    found = pytest.importorskip("cv2")
    if not hasattr(found.dnn, "readNetFromCaffe"):
        pytest.skip("this OpenCV has no importer of Caffe's files")
    return found


def write(folder, spec, arrays, num_classes, **options):
    """A .caffemodel as Caffe saves it in training, and the deploy.prototxt."""
    old = options.get("old", False)
    net = caffe_writer.fill(caffe_writer.network(spec, num_classes, train=True, **options), arrays, old=old)
    (folder / "w.caffemodel").write_bytes(net.SerializeToString())
    (folder / "deploy.prototxt").write_text(caffe_writer.prototxt(caffe_writer.network(spec, num_classes, **options)))
    return folder / "w.caffemodel", folder / "deploy.prototxt"


def theirs(cv2, model, prototxt, images, layer="fc8"):
    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(model))
    net.setInput(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))
    return net.forward(layer)


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", NAMES)
def test_narrow(cv2, tmp_path, name, old):
    spec, _, arrays = caffe_state(name)
    model, prototxt = write(tmp_path, spec, arrays, 7, old=old)
    images = pictures(spec).astype(np.float32)
    ours = run(open_weights(model, variant=spec, prototxt=prototxt).model, images)
    expected = theirs(cv2, model, prototxt, images)
    assert distance(ours, expected) < 1e-4
    assert expected.std() > 0.1  # it is not a constant that agrees


@pytest.fixture(scope="module")
def whole():
    """Weights and biases of the whole network in Caffe's own layout, for both variants."""
    rng = np.random.default_rng(0)
    kernels = [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    matrices = [(4096, 9216), (4096, 4096), (1000, 4096)]
    return {
        name: (
            rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5),
            rng.random(shape[0], np.float32) / 5,
        )
        for name, shape in zip(PLACES, kernels + matrices, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_network(cv2, whole, tmp_path, name):
    """Told by its file alone; from an image of 8 bits in RGB to the logits, by way of every norm."""
    spec = get_spec(name)
    model, prototxt = write(tmp_path, spec, whole, 1000, old=True)
    found = open_weights(model)
    assert (found.model.spec, found.model.num_classes) == (spec, 1000)

    image = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), np.uint8)
    ours = preprocess(image, found.model)
    crop = np.ascontiguousarray(image[0, 14:241, 14:241, ::-1])
    blob = cv2.dnn.blobFromImage(crop, mean=IMAGENET_MEAN[::-1], swapRB=False)
    assert distance(ours, blob.transpose(0, 2, 3, 1)) < 1e-6
    for stage, value in stages(found.model, ours, ("norm1", "norm2", "fc6.pre", "logits")).items():
        layer = {"fc6.pre": "fc6", "logits": "fc8"}.get(stage, stage)
        expected = theirs(cv2, model, prototxt, np.asarray(ours), layer)
        if expected.ndim == 4:
            expected = expected.transpose(0, 2, 3, 1)
        assert distance(value, expected) < 1e-4, stage
        assert expected.std() > 0.1  # it is not a constant that agrees
