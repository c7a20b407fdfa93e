"""Networks as ONNX files, run by ONNX Runtime: the same logits, whatever the variant and the batch."""

from __future__ import annotations

import base64
import dataclasses
import json

import numpy as np
import pytest
from models.builders import distance, made, narrow, pictures, run

from alexnet_jax.models import MapNormSpec, NormSpec, PoolSpec, get_spec, list_models
from alexnet_jax.weights import Weights, WeightsError
from alexnet_jax.weights import onnx_export as exporter

SLOW = pytest.mark.slow
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def exported(weights, folder):
    path = folder / "network.onnx"
    exporter.save_onnx(weights, path, provenance={"source": "a test"})
    return path


def theirs(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)})[0]


def check(spec, folder):
    model = made(spec)
    path = exported(Weights(model, "made", ()), folder)
    for count in (1, 3):
        images = pictures(spec, count).astype(np.float32)
        wanted = np.asarray(run(model, images))
        assert distance(theirs(path, images), wanted) < 1e-4
    assert wanted.std() > 1e-2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("source2012", "torchvision", "cifar") else SLOW)
        for name in list_models()
    ],
)
def test_every_variant_gives_the_same_logits(name, tmp_path):
    check(narrow(name), tmp_path)


SPECS = {
    "even window": narrow("paper").with_layer("conv1", norm=NormSpec(size=4, alpha=1e-2, groups=2)),
    "even window, per window": narrow("paper").with_layer("conv2", norm=NormSpec(size=2, alpha_per="window")),
    "whole width": narrow("paper").with_layer("conv1", norm=NormSpec(size=None, k=0.0, alpha=1.0, beta=0.5)),
    "window wider than the maps": narrow("paper").with_layer("conv1", norm=NormSpec(size=31, alpha=1e-2)),
    "k is 0": narrow("paper").with_layer("conv1", norm=NormSpec(k=0.0, alpha=1.0, groups=4)),
    "within maps, even": narrow("cifar").with_layer("conv1", map_norm=MapNormSpec(size=4, scale=0.1)),
    "averages over the edge": narrow("paper").with_layer("conv1", pool=PoolSpec("avg", window=4, stride=2)),
    "padding on one side": narrow("torchvision").with_layer("conv1", padding=(1, 3)),
    "tanh": dataclasses.replace(narrow("paper"), activation="tanh"),
    "sigmoid": dataclasses.replace(narrow("half"), activation="sigmoid"),
    "identity": dataclasses.replace(narrow("half"), activation="identity"),
    "no hidden layers": dataclasses.replace(narrow("paper"), dense=()),
    "finer bins than maps": dataclasses.replace(narrow("paper"), adaptive_pool=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_no_variant_has_is_exported_too(spec, tmp_path):
    check(spec, tmp_path)


@pytest.mark.slow
def test_where_a_window_is_all_zero_the_result_is_zero(tmp_path):
    spec = narrow("paper").with_layer("conv1", norm=NormSpec(k=0.0, alpha=1.0))
    model = made(spec)
    model.conv1.bias[...] = model.conv1.bias[...] - 1e4  # nothing passes the ReLU
    images = pictures(spec).astype(np.float32)
    wanted = np.asarray(run(model, images))
    assert np.isfinite(wanted).all()
    assert distance(theirs(exported(Weights(model, "made", ()), tmp_path), images), wanted) < 1e-4


def test_the_file_says_all_that_a_user_needs(tmp_path):
    spec = narrow("bvlc_alexnet")
    mean_image = np.random.default_rng(0).uniform(0, 255, (spec.input.resize, spec.input.resize, 3)).astype(np.float32)
    names = tuple("abcdefg")
    path = exported(Weights(made(spec), "made", (), classes=names, mean_image=mean_image), tmp_path)
    model = onnx.load(path)
    found = {one.key: one.value for one in model.metadata_props}
    assert (found["variant"], found["num_classes"]) == ("bvlc_alexnet", "7")
    assert json.loads(found["classes"]) == list(names)
    assert json.loads(found["provenance"]) == {"source": "a test"}
    steps = json.loads(found["preprocessing"])
    assert (steps["layout"], steps["shape"], steps["channel_order"]) == ("NCHW", ["N", 3, 67, 67], "bgr")
    assert steps["steps"][-1] == "reverse the channels to blue, green, red"
    image = np.frombuffer(base64.b64decode(found["mean_image"]), "<f4").reshape(mean_image.shape)
    np.testing.assert_array_equal(image, mean_image)
    (entry,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["N", 3, 67, 67]


def test_without_the_package_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(WeightsError, match=r'pip install "alexnet-jax\[export\]"'):
        exported(Weights(made(narrow("half")), "made", ()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_paper_s_network(tmp_path):
    check(get_spec("paper"), tmp_path)
