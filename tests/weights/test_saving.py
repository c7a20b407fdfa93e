"""Safetensors that are written: read again without being told, by PyTorch too, and not believed blindly."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import safetensors
from models.builders import made, narrow, pictures, run
from safetensors.numpy import load_file, save_file

from alexnet_jax import load_weights
from alexnet_jax.data import atomic
from alexnet_jax.models import PoolSpec, list_models
from alexnet_jax.weights import Weights, WeightsError, open_weights, save_safetensors
from alexnet_jax.weights.metadata import metadata
from alexnet_jax.weights.saving import origin

from .networks import assert_holds, flat, held, torch_state


def saved(spec, folder, **more):
    model = made(spec)
    save_safetensors(Weights(model, "made", (), **more), folder / "a.safetensors")
    return model, folder / "a.safetensors"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("paper", "cifar") else pytest.mark.slow) for name in list_models()]
)
def test_a_variant_with_sizes_of_its_own_is_read_again(name, tmp_path):
    model, path = saved(narrow(name), tmp_path)
    again = load_weights(path)
    assert again.spec == model.spec
    assert held(again).keys() == held(model).keys()
    for key, value in held(model).items():
        np.testing.assert_array_equal(held(again)[key], value)


def test_names_mean_image_and_provenance_travel_with_it(tmp_path):
    spec = narrow("paper")
    mean_image = np.random.default_rng(0).uniform(0, 255, (spec.input.resize, spec.input.resize, 3)).astype(np.float32)
    names = tuple("abcdeé日")
    _, path = saved(spec, tmp_path, classes=names, mean_image=mean_image)
    found = open_weights(path)
    assert found.classes == names
    np.testing.assert_array_equal(found.mean_image, mean_image)
    with safetensors.safe_open(path, "numpy") as file:
        about = file.metadata()
    assert about["variant"] == "paper"
    steps = json.loads(about["preprocessing"])
    assert (steps["size"], steps["layout"], steps["mean_image_included"]) == (67, "NHWC", True)
    assert origin(path, found)["sha256"] == __import__("hashlib").sha256(path.read_bytes()).hexdigest()


def test_a_mean_image_of_another_size_or_none_to_subtract_is_left_out(tmp_path):
    for name, shape in (("paper", (10, 10, 3)), ("half", (77, 77, 3))):
        _, path = saved(narrow(name), tmp_path, mean_image=np.zeros(shape, np.float32))
        assert "mean_image" not in load_file(path)


@pytest.mark.parametrize("name", ["half", "torchvision"])
def test_torchvision_s_names_and_layouts(name, tmp_path):
    spec, params, state = torch_state(name)
    save_file(flat(params), tmp_path / "ours.safetensors")
    ours = open_weights(tmp_path / "ours.safetensors", variant=spec)
    save_safetensors(ours, tmp_path / "theirs.safetensors", names="torchvision")
    found = load_file(tmp_path / "theirs.safetensors")
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key, strict=True)
    assert_holds(load_weights(tmp_path / "theirs.safetensors"), params)


REFUSED = {
    "paper": "has norms, and",
    "single": "has norms",
    "cifar": "has norms",
    "no norms": "has groups",
    "tanh": "has tanh instead of ReLU",
    "pools": "has another form",
    "scaled": "has another form",
}
SPECS = {
    "no norms": narrow("paper").with_convs(norm=None),
    "tanh": dataclasses.replace(narrow("half"), activation="tanh"),
    "pools": narrow("half").with_layer("conv1", pool=PoolSpec(round_up=True)),
    "scaled": dataclasses.replace(narrow("half"), dropout_form="paper"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pytorch_would_compute_otherwise_is_refused(name, tmp_path):
    model = made(SPECS.get(name) or narrow(name))
    with pytest.raises(WeightsError, match=f"{REFUSED[name]}.*half"):
        save_safetensors(Weights(model, "made", ()), tmp_path / "a.safetensors", names="torchvision")
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
@pytest.mark.parametrize("name", ["half", "torchvision"])
def test_pytorch_loads_it_strictly_and_computes_the_same(name, torch, tmp_path):
    from .test_parity_torch import torchvision_like

    spec = narrow(name)
    model, path = saved(spec, tmp_path)
    save_safetensors(open_weights(path), path, names="torchvision")
    widths = [conv.features for conv in spec.convs]
    maps = [shape for shape in spec.stages(7).values() if len(shape) == 3][-1]
    theirs = torchvision_like(torch, widths, spec.dense[0].features, 7, adaptive=name == "torchvision")
    if name == "half":  # the listing's 6×6 maps are smaller here
        theirs.classifier[1] = torch.nn.Linear(int(np.prod(maps)), spec.dense[0].features)
    from safetensors.torch import load_file as load_torch

    theirs.load_state_dict(load_torch(path), strict=True)
    images = pictures(spec, 3).astype(np.float32)
    with torch.no_grad():
        wanted = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(run(model, images), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def spoilt(**changes):
    spec = narrow("half").to_dict()
    for path, value in changes.items():
        *way, last = path.split("__")
        here = spec
        for step in way:
            here = here[int(step) if step.isdigit() else step]
        if value is KeyError:
            del here[last]
        else:
            here[last] = value
    return json.dumps(spec)


HOSTILE = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "a number": "7",
    "unknown field": spoilt(code="import os"),
    "missing field": spoilt(convs=KeyError),
    "text for a number": spoilt(input__size="67"),
    "half a pixel": spoilt(input__size=66.5),
    "true for a number": spoilt(convs__0__groups=True),
    "not finite": spoilt(input__scale=float("inf")),
    "huge image": spoilt(input__size=10**9, input__resize=10**9),
    "huge kernel": spoilt(convs__0__kernel=10**12, convs__0__padding=10**12),
    "huge layer": spoilt(dense__0__features=10**15),
    "many layers": spoilt(dense=narrow("half").to_dict()["dense"] * 1000),
    "no layers": spoilt(convs=[]),
    "colours": spoilt(input__mean=[1.0, 2.0]),
    "activation": spoilt(activation="exec"),
    "too small": spoilt(input__size=5),
    "name": spoilt(name=7),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_spec_that_can_not_be_is_refused(text, tmp_path):
    arrays = {"conv1.bias": np.zeros(8, np.float32)}
    save_file(arrays, tmp_path / "a.safetensors", {"alexnet_jax": "1", "variant": "half", "spec": text})
    for partial in (False, True):
        with pytest.raises(WeightsError, match=r"a\.safetensors: the spec in its metadata can't be used"):
            open_weights(tmp_path / "a.safetensors", partial=partial)


def test_the_unspoilt_spec_is_none_of_these(tmp_path):
    model = made(narrow("half"))
    save_file(held(model), tmp_path / "a.safetensors", {"spec": spoilt()})
    assert load_weights(tmp_path / "a.safetensors").spec == model.spec


@pytest.mark.parametrize("text", ["{", "7", '{"a": 1}', "[1, 2]", '"abcdefg"', "[" * 100_000])
def test_classes_that_are_no_names_are_refused(text, tmp_path):
    model = made(narrow("half"))
    about = metadata(model.spec, 7, layout="NHWC", classes=None, mean_image=False, provenance={})
    save_file(held(model), tmp_path / "a.safetensors", {**about, "classes": text})
    with pytest.raises(WeightsError, match="no JSON list of names"):
        open_weights(tmp_path / "a.safetensors")


def test_another_number_of_classes_than_the_head_has_is_refused(tmp_path):
    model = made(narrow("half"))
    about = metadata(model.spec, 7, layout="NHWC", classes=("a", "b"), mean_image=False, provenance={})
    save_file(held(model), tmp_path / "a.safetensors", about)
    with pytest.raises(WeightsError, match="2 class names for 7 classes"):
        open_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "image", [np.zeros((4, 5, 3), np.float32), np.zeros((4, 4, 3), np.float16), np.full((4, 4, 3), np.nan, np.float32)]
)
def test_a_mean_image_that_is_none_is_refused(image, tmp_path):
    model = made(narrow("paper"))
    about = metadata(model.spec, 7, layout="NHWC", classes=None, mean_image=True, provenance={})
    save_file({**held(model), "mean_image": image}, tmp_path / "a.safetensors", about)
    with pytest.raises(WeightsError, match="its mean image"):
        open_weights(tmp_path / "a.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic.replacing(path) as partial:
            partial.write_text("half of the new")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "force", "words"),
    [("there", False, "is there already"), ("folder", True, "is a folder"), ("no/where", True, "can't be written")],
)
def test_a_place_that_can_not_be_written_is_refused_before_the_work(name, force, words, tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=words):
        atomic.check_new(tmp_path / name, force=force)
    atomic.check_new(tmp_path / "there", force=True)
    atomic.check_new(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there"]
