"""Caffe's files, read without it: the forms that there are, which network they say they are, and what is broken."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save as packed

from alexnet_jax import get_spec, load_weights, preprocess
from alexnet_jax.weights import WeightsError, open_weights
from alexnet_jax.weights.protobuf import MOST_FIELDS

from . import caffe_writer
from .caffe_writer import blob, field, fill, message, network, prototxt
from .networks import assert_holds, caffe_state, held, refused, torch_state

NAMES = ("bvlc_alexnet", "caffenet")


@pytest.fixture(scope="module")
def net():
    """caffenet, narrow: spec, parameters, and Caffe's arrays by layer."""
    return caffe_state("caffenet")


@pytest.fixture
def save(tmp_path):
    def write(content, name="w.caffemodel"):
        content = content if isinstance(content, bytes) else content.SerializeToString()
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def say(tmp_path):
    """Writes a prototxt."""

    def write(text):
        (tmp_path / "deploy.prototxt").write_text(text if isinstance(text, str) else prototxt(text))
        return tmp_path / "deploy.prototxt"

    return write


def whole(net, **options):
    """A network with its blobs."""
    spec, _, arrays = net
    return fill(network(spec, 7, **options), arrays, old=options.get("old", False))


# The forms that there are


@pytest.mark.parametrize("train", [False, True], ids=["deploy", "train"])
@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", NAMES)
def test_a_caffemodel(save, name, old, train):
    net = caffe_state(name)
    found = open_weights(save(whole(net, old=old, train=train)), variant=net[0])
    assert_holds(found.model, net[1])
    assert (found.kind, found.mean_image) == ("Caffe's .caffemodel", None)


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
def test_other_writings_of_the_same_message(save, net, old):
    """Doubles, gradients beside the values, values that are not packed, no name, types or settings left out."""
    spec, params, _ = net
    made = whole(net, old=old)
    made.ClearField("name")
    for layer in made.layers or made.layer:
        for one in layer.blobs:
            one.diff.extend([1.5] * 10)
            if layer.name in ("conv2", "fc6"):
                one.double_data.extend(one.data)
                one.ClearField("data")
    assert_holds(load_weights(save(made), variant=spec), params)
    loose = caffe_writer.unpacked(made)
    assert len(loose) > 1.15 * made.ByteSize()
    assert_holds(load_weights(save(loose), variant=spec), params)
    for layer in list(made.layers or made.layer):
        layer.ClearField("type")
    assert_holds(load_weights(save(made), variant=spec), params)


def test_values_in_several_pieces(save, net):
    """Protocol Buffers joins what is given in pieces: here one blob is packed, then not, then packed."""
    spec, params, _ = net
    made = whole(net)
    one = made.layer[0].blobs[0]
    head, first, middle, last = (message("BlobProto") for _ in range(4))
    head.shape.CopyFrom(one.shape)
    for part, (start, end) in ((first, (0, 100)), (middle, (100, 200)), (last, (200, None))):
        part.data.extend(one.data[start:end])
    pieces = b"".join(x.SerializeToString() for x in (first, head))
    pieces += caffe_writer.unpacked(middle) + last.SerializeToString()
    content = made.SerializeToString().replace(one.SerializeToString(), pieces, 1)
    # The lengths around it, of the blob and the layer, are those of before: written anew here.
    rest = message("NetParameter", layer=made.layer[1:])
    layer = message("LayerParameter")
    layer.CopyFrom(made.layer[0])
    bias = layer.blobs[1]
    layer.ClearField("blobs")
    body = layer.SerializeToString() + field(7, pieces) + field(7, bias.SerializeToString())
    assert content != made.SerializeToString()
    assert_holds(load_weights(save(field(100, body) + rest.SerializeToString()), variant=spec), params)


def test_a_spec_that_takes_rgb_sees_the_same(save, net):
    spec, params, _ = net
    rgb = dataclasses.replace(spec, input=dataclasses.replace(spec.input, channel_order="rgb", mean=(1.0, 2.0, 3.0)))
    found = held(load_weights(save(whole(net)), variant=rgb))
    np.testing.assert_array_equal(found["conv1.kernel"], params["conv1"]["kernel"][:, :, ::-1])
    np.testing.assert_array_equal(found["conv2.kernel"], params["conv2"]["kernel"])


# Which network it is


def nearly(name):
    """A narrow network with conv1 of the full width: of the two variants, but nothing else fits."""
    spec, params, arrays = caffe_state(name)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((96, 3, 11, 11), np.float32), rng.standard_normal(96, np.float32)
    return spec, params, {**arrays, "conv1": first}


def told(path, **options):
    """The variant that a file is taken for, as the error says it."""
    with pytest.raises(WeightsError) as caught:
        load_weights(path, **options)
    assert "conv2[0] is 16×4×5×5, not 256×48×5×5" in str(caught.value)
    return str(caught.value).split(": as ")[1].partition(",")[0]


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_pool_and_norm_tells_the_variant(save, name, old):
    assert told(save(whole(nearly(name), old=old, train=True))) == name


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prototxt_tells_what_blobs_alone_do_not(save, say, name, old):
    net = nearly(name)
    bare = whole(net)
    for layer in list(bare.layer):
        if not layer.blobs:
            bare.layer.remove(layer)
    path = save(bare)
    with pytest.raises(WeightsError, match="are those of bvlc_alexnet, caffenet alike: say which with variant="):
        load_weights(path)
    description = say(network(net[0], 7, old=old))
    assert told(path, prototxt=description) == name
    assert told(path, prototxt=str(description), variant=name) == name


def test_a_prototxt_of_another_network(save, say, net):
    other = say(network(get_spec("bvlc_alexnet"), 7))
    with pytest.raises(WeightsError, match=r"deploy\.prototxt is of another network: conv[12] is conv .* in this file"):
        load_weights(save(whole(net)), variant=net[0], prototxt=other)


def test_a_prototxt_goes_with_caffe_alone(tmp_path, say, net):
    torch = tmp_path / "w.pth"
    torch.write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match=r"w\.pth: prototxt= goes with Caffe's \.caffemodel, which this is not"):
        load_weights(torch, prototxt=say(network(net[0], 7)))


def test_another_variant_is_refused_and_told(save, net):
    other = caffe_state("bvlc_alexnet")[0]
    path = save(whole(net))
    with pytest.raises(WeightsError) as caught:
        load_weights(path, variant=other)
    order = "relu → max pool 3, stride 2 → norm of 5 (α 0.0001, β 0.75, k 1) in the file"
    assert f"conv1 is conv 11, stride 4, padding 0, groups 1 → {order}, and conv" in str(caught.value)
    found = open_weights(path, variant=other, partial=True)  # the layers fit; what differs is said
    assert len(found.loaded) == 8
    assert order in found.kind


def settings_of(layer, **changes):
    def change(net):
        one = next(one for one in net.layer if one.name == layer)
        kind = {"ReLU": "relu", "LRN": "lrn", "InnerProduct": "inner_product", "Data": "transform"}
        parameters = getattr(one, f"{kind.get(one.type, one.type.lower())}_param")
        for name, value in changes.items():
            if isinstance(value, list):
                del getattr(parameters, name)[:]
                getattr(parameters, name).extend(value)
            else:
                setattr(parameters, name, value)

    return change


def insert(place, **fields):
    return lambda net: net.layer.insert(place, message("LayerParameter", **fields))


def rewire(net):
    next(one for one in net.layer if one.name == "conv4").bottom[0] = "conv2"


OTHERS = {  # what is changed, and the words for it
    "kernel": (settings_of("conv2", kernel_size=[7]), "conv2 is conv 7, "),
    "kernel_h": (settings_of("conv2", kernel_h=7), "conv2 is conv 7×5, "),
    "stride": (settings_of("conv1", stride=[3]), "conv1 is conv 11, stride 3, "),
    "stride_w": (settings_of("conv1", stride_h=4, stride_w=2), "stride 4×2, "),
    "pad": (settings_of("conv3", pad=[0, 1]), "padding 0×1, "),
    "group": (settings_of("conv5", group=1), "groups 1 → relu → max pool 3, stride 2 in the file"),
    "dilation": (settings_of("conv5", dilation=[2]), "groups 2, dilation 2"),
    "slope": (settings_of("relu3", negative_slope=0.1), "relu, 0.1 below 0"),
    "slope of fc6": (settings_of("relu6", negative_slope=0.1), "fc6 is matrix → relu, 0.1 below 0 in the file"),
    "local_size": (settings_of("norm1", local_size=3), "norm of 3 ("),
    "alpha": (settings_of("norm1", alpha=5e-4), "(α 0.0005, β 0.75, k 1)"),
    "beta": (settings_of("norm2", beta=0.5), "(α 0.0001, β 0.5, k 1)"),
    "k": (settings_of("norm2", k=2), "(α 0.0001, β 0.75, k 2)"),
    "norm_region": (settings_of("norm2", norm_region=1), "k 1), within maps"),
    "average": (settings_of("pool5", pool=1), "relu → avg pool 3, stride 2"),
    "stochastic": (settings_of("pool5", pool=2), "relu → stochastic pool 3, stride 2"),
    "pool's kernel": (settings_of("pool5", kernel_size=2), "relu → max pool 2, stride 2"),
    "pool's stride": (settings_of("pool5", stride_h=1), "max pool 3, stride 1×2"),
    "pool's pad": (settings_of("pool5", pad=1), "max pool 3, stride 2, padding 1"),
    "global": (settings_of("pool5", global_pooling=True), "max pool of everything"),
    "transpose": (settings_of("fc7", transpose=True), "fc7 is matrix, transposed"),
    "scale": (settings_of("data", scale=0.0078125), "the input is scaled by 0.0078125 in the file, and as it is here"),
    "a layer": (insert(4, name="bn", type="BatchNorm", bottom=["pool1"], top=["pool1"]), "stride 2 → BatchNorm"),
    "a layer at the start": (insert(1, name="p", type="Power", bottom=["data"], top=["data"]), "the input is Power in"),
    "wiring": (rewire, "conv4 is conv 3, stride 1, padding 1, groups 2 of 'conv2' → relu"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_network_that_computes_anything_else_is_refused(save, say, net, what):
    change, words = OTHERS[what]
    made = whole(net, train=True)
    change(made)
    with pytest.raises(WeightsError) as caught:
        load_weights(save(made), variant=net[0])
    assert words in str(caught.value)
    bare = message("NetParameter", layer=[one for one in whole(net).layer if one.blobs])
    for layer in made.layer:
        layer.ClearField("blobs")
    with pytest.raises(WeightsError) as caught:  # and so it is by the prototxt
        load_weights(save(bare), variant=net[0], prototxt=say(made))
    assert words in str(caught.value)


def test_what_makes_no_difference_at_test(save, net):
    """Dropout under another name, flattening, copies, and several losses."""
    made = whole(net, train=True)
    layers = {one.name: one for one in made.layer}
    layers["drop6"].top[0] = layers["fc7"].bottom[0] = "drop6"
    place = list(made.layer).index(layers["fc6"])
    layers["fc6"].bottom[0] = "flat"
    made.layer.insert(place, message("LayerParameter", name="flat", type="Flatten", bottom=["pool5"], top=["flat"]))
    made.layer.insert(place, message("LayerParameter", name="s", type="Split", bottom=["pool5"], top=["a", "b"]))
    made.layer[place + 1].bottom[0] = "b"
    settings_of("conv1", pad_h=0, pad_w=0, dilation=[1, 1], group=1)(made)
    assert_holds(load_weights(save(made), variant=net[0]), net[1])


def test_another_head(save, net):
    """As finetuning in Caffe leaves it: the head has another name."""
    spec, params, arrays = net
    made = whole(net)
    for layer in made.layer:
        if layer.name == "fc8":
            layer.name = "fc8_flickr"
    path = save(made)
    with pytest.raises(
        WeightsError, match=r"fc8\[0\] is missing; fc8\[1\] is missing; not expected: fc8_flickr\[0\], fc8_fl"
    ):
        load_weights(path, variant=spec)
    found = open_weights(path, variant=spec, partial=True, num_classes=3)
    assert found.loaded == tuple(name for name in arrays if name != "fc8")
    assert found.unused == ("fc8_flickr[0]", "fc8_flickr[1]")
    np.testing.assert_array_equal(held(found.model)["fc7.kernel"], params["fc7"]["kernel"])


# The text form

WRITINGS = {
    "one line": lambda text: text.replace("\n", " "),
    "comments": lambda text: "# a network\n" + text.replace("{", "{ # begins: } here\n"),
    "angle brackets": lambda text: text.replace("{", "<").replace("}", ">"),
    "colons": lambda text: text.replace(" {", ": {"),
    "commas": lambda text: text.replace("dim: 1\n", "dim: 1,\n").replace("dim: 3\n", "dim: 3;\n"),
    "lists": lambda text: text.replace("kernel_size: 5", "kernel_size: [5, 5]").replace("pad: 2", "pad: [2]"),
    "quotes": lambda text: text.replace('"conv1"', "'con' \"v1\""),
    "floats": lambda text: text.replace("alpha: 0.0001", "alpha: 1.0E-4f").replace("beta: 0.75", "beta: .75"),
    "hexadecimal": lambda text: text.replace("kernel_size: 11", "kernel_size: 0xb"),
    "unknown fields": lambda text: "state { phase: TEST level: -1 } a: [x, {b: 1}] " + text,
}


@pytest.mark.parametrize("how", WRITINGS)
def test_writings_of_a_prototxt(save, say, net, how):
    text = prototxt(network(net[0], 7))
    assert WRITINGS[how](text) != text
    bare = save(message("NetParameter", layer=[one for one in whole(net).layer if one.blobs]))
    assert_holds(load_weights(bare, variant=net[0], prototxt=say(WRITINGS[how](text))), net[1])
    other = caffe_state("bvlc_alexnet")[0]
    with pytest.raises(WeightsError, match=r"conv1 is conv 11, .* → norm of 5 \(α 0\.0001, β 0\.75, k 1\) in the file"):
        load_weights(bare, variant=other, prototxt=say(WRITINGS[how](text)))


BAD_TEXTS = {
    "empty": ("", "it describes no network"),
    "comments alone": ("# layer {}\n", "it describes no network"),
    "no layers": ('name: "AlexNet"', "it describes no network"),
    "another language": ("<html><body>404</body></html>", "line 1 is not of Protocol Buffers' text form"),
    "not closed": ('layer { name: "conv1"', "line 1 is not of"),
    "closed twice": ("layer { } }", "line 1 is not of"),
    "another bracket": ("layer { >", "line 1 is not of"),
    "no value": ("layer {\n name:\n}", "line 3 is not of"),
    "a message for a text": ("layer { name { } x }", "line 1 is not of"),
    "a text for a message": ("layer: 3", "line 1 is not of"),
    "words for a number": ("layer { convolution_param { pad: two } }", "line 1 is not of"),
    "a number of 5000 digits": (f"layer {{ convolution_param {{ pad: {'9' * 5000} }} }}", "line 1 is not of"),
    "an open quote": ('\n\nlayer { name: "conv1 }', "line 3 is not of"),
    "deep": ("a {" * 100_000, "line 1 is not of"),
    "deep lists": ("a: [" * 100_000, "line 1 is not of"),
    "many fields": ("a: 1 " * (MOST_FIELDS + 1), "is not of"),
    "both kinds": ("layer { } layers { }", "it has layers of both kinds"),
    "of before 2014": ("layers { layer { name: 'conv1' } }", "upgrade_net_proto_text"),
    "binary": (bytes(range(256)).decode("latin1"), "is not of"),
    "larger than any": (" " * ((1 << 20) + 1), "1,048,577 bytes are more than any prototxt has"),
}


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_broken_prototxts(save, say, net, what):
    text, words = BAD_TEXTS[what]
    path = save(whole(net))
    refused(path, words, variant=net[0], prototxt=say(text))
    refused(path, "deploy.prototxt: ", variant=net[0], prototxt=say(text))


def test_no_prototxt(save, net, tmp_path):
    refused(
        save(whole(net)), "none.prototxt: there is no such file", variant=net[0], prototxt=tmp_path / "none.prototxt"
    )


# The mean image


def mean_file(save, image, **options):
    """(R, R, 3) in RGB as Caffe's compute_image_mean writes it."""
    return save(blob(np.ascontiguousarray(image.transpose(2, 0, 1)[::-1])[None], **options), "mean.binaryproto")


@pytest.mark.parametrize("old", [False, True], ids=["shape", "four numbers"])
def test_a_mean_image(save, net, old):
    spec, side = net[0], net[0].input.resize
    image = np.random.default_rng(0).uniform(90, 130, (side, side, 3)).astype(np.float32)
    found = open_weights(save(whole(net)), variant=spec, mean=mean_file(save, image, old=old))
    np.testing.assert_array_equal(found.mean_image, image, strict=True)
    picture = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    ours = preprocess(picture, found.model, mean_image=found.mean_image)
    edge = (side - spec.input.size) // 2
    caffes = (picture[..., ::-1].astype(np.float32) - image[..., ::-1])[
        edge : edge + spec.input.size, edge : edge + spec.input.size
    ]
    np.testing.assert_allclose(ours[0], caffes, atol=1e-4)


def test_mean_images_that_do_not_fit(save, net):
    spec = net[0]
    path, image = save(whole(net)), np.ones((64, 64, 3), np.float32)
    with pytest.raises(WeightsError, match=r"the mean image has 64×64 pixels, and caffenet subtracts one of 148×148"):
        open_weights(path, variant=spec, mean=mean_file(save, image))
    cases = {
        "its shape is \\(1, 1, 64, 64\\), not that of a mean image": np.ones((1, 1, 64, 64)),
        "its shape is \\(64, 3\\), not": np.ones((64, 3)),
        "it has values that are not finite": np.full((1, 3, 64, 64), np.nan),
    }
    for words, value in cases.items():
        with pytest.raises(WeightsError, match=f"mean.binaryproto: {words}"):
            open_weights(path, variant=spec, mean=save(blob(value), "mean.binaryproto"))
    with pytest.raises(WeightsError, match=r"none\.binaryproto: there is no such file"):
        open_weights(path, variant=spec, mean=path.with_name("none.binaryproto"))
    torch, _, state = torch_state("torchvision")
    with pytest.raises(WeightsError, match="torchvision subtracts a mean pixel: leave mean= out"):
        open_weights(save(packed(state), "w.safetensors"), variant=torch, mean=mean_file(save, image))
