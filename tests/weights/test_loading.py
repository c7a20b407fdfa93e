"""load_weights: variants told, refused or given; everything wrong in one error; parts of a network."""

from __future__ import annotations

import json
import logging

import jax
import msgpack
import numpy as np
import pytest
from flax import nnx
from flax.serialization import msgpack_serialize, to_bytes
from models.builders import shapes
from safetensors.numpy import save_file

import alexnet_jax
from alexnet_jax import create_model, get_spec, load_weights
from alexnet_jax.weights import WeightsError, open_weights

from .networks import assert_holds, flat, held, network, torch_state
from .torch_writer import save_zip


@pytest.fixture
def save(tmp_path):
    def write(arrays, **metadata):
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "w.safetensors", metadata or None)
        return tmp_path / "w.safetensors"

    return write


def test_it_is_a_public_name():
    assert "load_weights" in alexnet_jax.__all__
    assert callable(alexnet_jax.load_weights)


# Which file it is


def test_safetensors_with_our_names_and_with_pytorchs(save):
    spec, params, state = torch_state("torchvision")
    assert_holds(load_weights(save(flat(params)), variant=spec), params)
    assert_holds(load_weights(save(state), variant=spec), params)
    source2012, params = network("source2012")
    assert_holds(load_weights(save(flat(params)), variant=source2012), params)


def test_flax_msgpack(tmp_path):
    spec, params = network("paper")
    path = tmp_path / "w.msgpack"
    state = nnx.state(load_weights_from(path, to_bytes(params), spec))
    for thing in (
        params,
        {"params": params, "step": 3},
        nnx.to_pure_dict(state),
        jax.tree.map(jax.numpy.asarray, params),
    ):
        assert_holds(load_weights_from(path, to_bytes(thing), spec), params)


def load_weights_from(path, content, spec):
    path.write_bytes(content)
    return load_weights(path, variant=spec)


def test_the_name_of_a_file_says_nothing(tmp_path):
    spec, params, state = torch_state()
    assert_holds(load_weights(save_zip(tmp_path / "w.safetensors", state), variant=spec), params)
    assert_holds(load_weights(str(tmp_path / "w.safetensors"), variant=spec), params)


UNKNOWN = {
    "empty": b"",
    "text": b"conv1.kernel 1 2 3",
    "Caffe's mean image": b"\x08\x01\x10\x03\x18\x02\x20\x02",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "a safetensors header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_unknown_files(tmp_path, what):
    (tmp_path / "w").write_bytes(UNKNOWN[what])
    with pytest.raises(WeightsError, match=r"/w: not a file of weights that is known: PyTorch's"):
        load_weights(tmp_path / "w")


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match="there is no such file or folder"):
        load_weights(tmp_path / "w")


def test_a_file_larger_than_any(tmp_path):
    with (tmp_path / "w").open("wb") as file:
        file.truncate((2 << 30) + 1)
    with pytest.raises(WeightsError, match="more than any AlexNet has"):
        load_weights(tmp_path / "w")


def safe(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def piece(start, end, shape, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


BAD_SAFETENSORS = {
    "overlapping": safe({"a": piece(0, 8, [2]), "b": piece(4, 12, [2])}, bytes(12)),
    "past the end": safe({"a": piece(0, 1 << 40, [1 << 38])}, bytes(8)),
    "not its shape": safe({"a": piece(0, 8, [1 << 38])}, bytes(8)),
    "overflowing": safe({"a": piece(0, 8, [1 << 40, 1 << 40])}, bytes(8)),
    "left over": safe({"a": piece(0, 8, [2])}, bytes(16)),
    "no JSON": safe(b"{" + bytes(30)),
    "unknown type": safe({"a": piece(0, 8, [2], "F33")}, bytes(8)),
}


@pytest.mark.parametrize("what", BAD_SAFETENSORS)
def test_broken_safetensors(tmp_path, what):
    (tmp_path / "w").write_bytes(BAD_SAFETENSORS[what])
    with pytest.raises(WeightsError, match="this safetensors file is cut off or damaged"):
        load_weights(tmp_path / "w")


def bad_array(shape, name, values):
    return msgpack.packb({"conv1": {"kernel": msgpack.ExtType(1, msgpack.packb((shape, name, values)))}})


BAD_FLAX = {
    "cut": msgpack_serialize({"conv1": {"kernel": np.ones(100)}})[:-5],
    "a map of 2^32": b"\xdf\xff\xff\xff\xff",
    "a list of 2^32": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "bytes of 2^32": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "deep": b"\x81\xa1a" * 10_000 + b"\x01",
    "nine levels": b"\x81\xa1a" * 9 + b"\x01",
    "another shape": bad_array([1 << 40], "float32", bytes(8)),
    "less than nothing": bad_array([-1], "float32", bytes(8)),
    "objects": bad_array([1], "object", bytes(8)),
    "a number": b"\x81\xa1a\x01",
    "trailing": msgpack_serialize({"a": np.ones(2)}) + b"x",
}


@pytest.mark.parametrize("what", BAD_FLAX)
def test_broken_flax_files(tmp_path, what):
    (tmp_path / "w").write_bytes(BAD_FLAX[what])
    with pytest.raises(
        WeightsError, match=r"/w: (this Flax file is cut|its entry 'a|its entry 'conv1|this tree is deeper)"
    ):
        load_weights(tmp_path / "w", variant="paper")


# Which variant it is


def zeros(name, num_classes=3):
    """A full-size variant's arrays by our names, that cost no memory."""
    return {
        f"{layer}.{leaf}": np.broadcast_to(np.float16(0), shape)
        for layer, leaves in shapes(get_spec(name), num_classes).items()
        for leaf, shape in leaves.items()
    }


ALIKE = {"paper", "source2012", "bvlc_alexnet", "caffenet"}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Files of the full-size networks that have to be told apart, in float16."""
    folder = tmp_path_factory.mktemp("full")

    def write(name):
        path = folder / name
        if not path.exists():
            save_file({k: np.ascontiguousarray(v) for k, v in zeros(name).items()}, path)
        return path

    return write


@pytest.mark.parametrize("name", ["single", "one_tower", "half", "torchvision", "cifar"])
def test_names_and_shapes_tell_a_variant(full, name):
    model = load_weights(full(name))
    assert (model.spec, model.num_classes) == (get_spec(name), 3)


def test_where_shapes_cannot_tell_the_candidates_are_named(full):
    with pytest.raises(
        WeightsError, match="those of paper, source2012, bvlc_alexnet, caffenet alike: say which with var"
    ):
        load_weights(full("paper"))
    assert load_weights(full("paper"), variant="caffenet").spec == get_spec("caffenet")


def test_metadata_tells_it(save, full):
    path = save(zeros("paper"), variant="source2012")
    assert load_weights(path).spec == get_spec("source2012")
    with pytest.raises(WeightsError, match="it says that it is 'source2012', not 'caffenet'"):
        load_weights(path, variant="caffenet")
    with pytest.raises(WeightsError, match="names the variant 'vgg', which there is not"):
        load_weights(save({"conv1.bias": np.ones(3)}, variant="vgg"))


def test_an_unknown_variant(save):
    with pytest.raises(ValueError, match="did you mean 'caffenet'"):
        load_weights(save({}), variant="cafenet")


def test_nothing_of_an_alexnet(save):
    with pytest.raises(WeightsError, match=r"none of its arrays \(layer4\.0\.weight\) is one of an AlexNet's"):
        load_weights(save({"layer4.0.weight": np.ones(3)}))


# What is wrong with it


def test_everything_wrong_is_in_one_error(save):
    spec, _, state = torch_state()
    del state["features.0.bias"], state["classifier.4.weight"]
    state["features.3.weight"] = state["features.3.weight"][:, :-1]
    state["classifier.1.bias"] = np.ones((2, 2), np.float32)
    state["features.6.bias"] = state["features.6.bias"].astype(np.int32)
    state |= {"features.1.running_mean": np.ones(3), "zz\nz": np.ones(3)}
    with pytest.raises(WeightsError) as caught:
        load_weights(save(state), variant=spec)
    message = str(caught.value)
    for words in (
        "features.0.bias is missing",
        "classifier.4.weight is missing",
        "features.3.weight is 16×7×5×5, not 16×8×5×5",
        "classifier.1.bias is 2×2, not 16",
        "features.6.bias is of type",
        "not expected: features.1.running_mean, 'zz\\nz'",
        "partial=True",
    ):
        assert words in message
    assert "\n" not in message
    for fine in ("features.0.weight", "features.8.", "classifier.6."):
        assert fine not in message


def test_another_class_count_than_the_files(save):
    spec, _, state = torch_state()
    assert load_weights(save(state), variant=spec, num_classes=7).num_classes == 7
    with pytest.raises(WeightsError, match=r"classifier\.6\.weight is 7×16, not 10×16; classifier\.6\.bias is 7, n"):
        load_weights(save(state), variant=spec, num_classes=10)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        load_weights(save(state), variant=spec, num_classes=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(save, value):
    spec, params = network()
    arrays = {name: array.astype(np.float64) for name, array in flat(params).items()}
    arrays["fc7.kernel"].flat[[3, 5]] = value
    arrays["conv2.bias"][1] = value
    with pytest.raises(WeightsError, match=r"conv2\.bias has 1 values that are not finite; fc7\.kernel has 2 values"):
        load_weights(save(arrays), variant=spec)


# Parts


def test_convolutions_alone(save):
    spec, params = network()
    convs = {layer: leaves for layer, leaves in params.items() if layer.startswith("conv")}
    path = save(flat(convs))
    with pytest.raises(WeightsError, match=r"fc6\.kernel is missing"):
        load_weights(path, variant=spec)
    found = open_weights(path, variant=spec, partial=True, num_classes=4, rngs=3)
    assert found.loaded == ("conv1", "conv2", "conv3", "conv4", "conv5")
    assert found.fresh[0] == "fc6 (fc6.kernel is missing; fc6.bias is missing)"
    fresh = held(create_model(spec, num_classes=4, rngs=3))
    for name, value in held(found.model).items():
        np.testing.assert_array_equal(value, flat(convs).get(name, fresh[name]), err_msg=name)
    assert load_weights(path, variant=spec, partial=True).num_classes == 1000


def test_another_class_count(save):
    spec, params, state = torch_state()
    found = open_weights(save({**state, "extra": np.ones(2)}), variant=spec, partial=True, num_classes=4)
    assert found.fresh == ("fc8 (classifier.6.weight is 7×16, not 4×16; classifier.6.bias is 7, not 4)",)
    assert found.unused == ("classifier.6.bias", "classifier.6.weight", "extra")
    assert found.lines() == (
        ("loaded", "conv1, conv2, conv3, conv4, conv5, fc6, fc7 (safetensors)"),
        ("afresh", found.fresh[0]),
        ("not used", "classifier.6.bias, classifier.6.weight, extra"),
    )
    del params["fc8"]
    assert {name: value.shape for name, value in held(found.model).items()}["fc8.kernel"] == (16, 4)
    for name, value in flat(params).items():
        np.testing.assert_array_equal(held(found.model)[name], value)


def test_a_layer_is_taken_whole_or_not(save):
    spec, _, state = torch_state()
    del state["features.3.bias"]
    found = open_weights(save(state), variant=spec, partial=True)
    assert found.fresh == ("conv2 (features.3.bias is missing)",)
    assert found.unused == ("features.3.weight",)
    assert found.model.num_classes == 7


def test_a_head_that_only_announces_many_classes_reserves_nothing(save):
    spec, _, state = torch_state()
    state["classifier.6.bias"] = np.ones(1 << 20, np.float32)
    found = open_weights(save(state), variant=spec, partial=True)
    assert found.model.num_classes == 1000
    assert [entry.partition(" ")[0] for entry in found.fresh] == ["fc8"]


def test_no_layer_fits(save):
    spec, _ = network()
    with pytest.raises(WeightsError, match=r"no layer of half can be taken: .*conv1\.kernel is missing"):
        load_weights(save({"other": np.ones(3)}), variant=spec, partial=True)


def test_the_log_says_what_was_loaded(save, caplog):
    spec, _, state = torch_state()
    with caplog.at_level(logging.INFO, "alexnet_jax.weights"):
        load_weights(save(state), variant=spec, partial=True, num_classes=4)
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        *("loaded: conv1, conv2, conv3, conv4, conv5, fc6, fc7", "afresh: fc8"),
        "not used: classifier.6.bias, classifier.6.weight",
    ]
