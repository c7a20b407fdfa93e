"""Caffe's files that are broken or made to do harm: refused in one line, in little memory."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest

from alexnet_jax import load_weights
from alexnet_jax.weights import WeightsError
from alexnet_jax.weights.protobuf import MOST_FIELDS

from .caffe_writer import field, fill, network, varint
from .networks import caffe_state, refused


def number(place, value):
    return varint(place << 3) + varint(value)


def layer(*blobs, name=b"conv1"):
    return field(100, field(1, name) + field(2, b"Convolution") + b"".join(field(7, one) for one in blobs))


def shape(*sides):
    return field(7, field(1, b"".join(map(varint, sides))))


FLOAT = struct.pack("<f", 1.0)
START = field(1, b"AlexNet")  # a network's name, as every file begins
DAMAGED = "cut off or damaged"
HOSTILE = {
    "a name alone": (START, "it has no layers with weights"),
    "a text that begins with an empty line": (b"\n\n# layer\n", DAMAGED),
    "layers without blobs": (START + layer(), "it has no layers with weights"),
    "a name of 2^40 bytes": (field(1, b"x", 1 << 40), DAMAGED),
    "a layer of 2^63 bytes": (START + field(100, b"x", 1 << 63), DAMAGED),
    "a layer longer than the file": (START + layer(shape(1) + field(5, FLOAT))[:-1], DAMAGED),
    "a blob longer than its layer": (START + field(100, field(7, b"", 4) + b"") + bytes(8), DAMAGED),
    "values of 2^50 bytes": (START + layer(shape(1 << 48) + field(5, FLOAT, 1 << 50)), DAMAGED),
    "a length without an end": (START + b"\xa2\x06" + b"\xff" * 10, DAMAGED),
    "a length of 11 bytes": (START + b"\xa2\x06" + b"\x80" * 10 + b"\x00", DAMAGED),
    "a number without an end": (START + b"\x28\xff", DAMAGED),
    "8 bytes that are 7": (START + b"\x49" + bytes(7), DAMAGED),
    "4 bytes that are 3": (START + b"\x4d" + bytes(3), DAMAGED),
    "field 0": (START + b"\x02\x00", DAMAGED),
    "a group": (START + b"\x4b\x4c", DAMAGED),
    "wire type 6": (START + b"\x4e", DAMAGED),
    "a number for a name": (START + field(100, number(1, 5)), DAMAGED),
    "a number for a layer": (START + number(100, 5), DAMAGED),
    "a number for values": (START + layer(shape(1) + number(5, 5)), DAMAGED),
    "values of 3 bytes": (START + layer(shape(1) + field(5, b"abc")), DAMAGED),
    "doubles of 4 bytes": (START + layer(shape(1) + field(8, FLOAT)), DAMAGED),
    "a shape of 2^40": (START + layer(shape(1 << 40) + field(5, FLOAT)), "a shape that makes no sense"),
    "a shape whose product overflows": (
        START + layer(shape(*[1 << 30] * 3) + field(5, FLOAT)),
        "conv1[0] has shape (1073741824, 1073741824, 1073741824) and 1 values",
    ),
    "a shape below 0": (START + layer(shape(2**64 - 1, 2**64 - 1) + field(5, FLOAT)), "makes no sense"),
    "nine dimensions": (START + layer(shape(*[1] * 9) + field(5, FLOAT)), "makes no sense"),
    "four numbers that are more": (
        START + layer(b"".join(number(n, 60_000) for n in (1, 2, 3, 4)) + field(5, FLOAT)),
        "and 1 values",
    ),
    "a shape and no values": (START + layer(shape(96, 3, 11, 11)), "(96, 3, 11, 11) and 0 values"),
    "floats and doubles": (
        START + layer(shape(2) + field(5, FLOAT) + field(8, struct.pack("<d", 1))),
        "and 2 values",
    ),
    "a name of 2000 bytes": (
        START + layer(shape(1) + field(5, FLOAT), name=b"x" * 2000),
        "a name that makes no sense, 'xxx",
    ),
    "a name on two lines": (START + layer(shape(2) + field(5, FLOAT), name=b"a\nb\x00"), r"no sense, 'a\nb\x00'"),
    "the same layer twice": (START + layer(shape(1) + field(5, FLOAT)) * 2, "two of its layers are named 'conv1'"),
    "layers of both kinds": (
        START + layer(shape(1) + field(5, FLOAT)) + field(2, field(4, b"conv2")),
        "layers of both kinds",
    ),
    "layers of before 2014": (START + field(2, field(1, field(1, b"conv1"))), "upgrade_net_proto_binary"),
    "many fields": (START + b"\x28\x00" * (MOST_FIELDS + 1), "more than 32,768 fields"),
    "many layers": (START + b"\xa2\x06\x00" * (MOST_FIELDS + 1), "more than 32,768 fields"),
    "many blobs": (START + layer(*[b""] * (MOST_FIELDS + 1)), "more than 32,768 fields"),
    "many sides": (START + layer(shape(*[1] * (MOST_FIELDS + 1))), "more than 32,768 fields"),
    "many pieces": (START + layer(shape(1) + field(5, b"") * (MOST_FIELDS + 1)), "more than 32,768 fields"),
    "nothing of AlexNet": (
        START + layer(shape(1) + field(5, FLOAT), name=b"conv1_1"),
        "none of its arrays (conv1_1[0]) is one of an AlexNet's",
    ),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.caffemodel"


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(path, what):
    content, words = HOSTILE[what]
    path.write_bytes(content)
    refused(path, words)


VALUES = {
    "NaN": (np.nan, "conv1[0] has 1 values that are not finite"),
    "infinity": (np.inf, "conv1[0] has 1 values that are not finite"),
    "beyond float32": (1e300, "conv1[0] has 1 values that are not finite"),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_that_are_not_finite(path, what):
    spec, _, arrays = caffe_state()
    value, words = VALUES[what]
    arrays["conv1"][0].flat[3] = 0
    changed = arrays["conv1"][0].astype(np.float64)
    changed.flat[3] = value
    path.write_bytes(fill(network(spec, 7), {**arrays, "conv1": (changed, arrays["conv1"][1])}).SerializeToString())
    refused(path, words, variant=spec)


def test_every_cut_is_refused(path):
    """Also between two layers, where what remains is a message of its own."""
    spec, _, arrays = caffe_state()
    content = fill(network(spec, 7), arrays).SerializeToString()
    for end in [*range(40), *range(40, len(content), 397), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError):
            load_weights(path, variant=spec)


@pytest.mark.slow
def test_a_large_file_costs_no_memory_to_refuse(path):
    """A process that may use little more memory than it does: 1 GiB of values that are refused by their shape."""
    size = 1 << 30
    inner = shape(7) + varint(5 << 3 | 2) + varint(size)
    middle = field(1, b"conv1") + varint(7 << 3 | 2) + varint(len(inner) + size) + inner
    head = START + varint(100 << 3 | 2) + varint(len(middle) + size) + middle
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    code = (
        "import resource, sys\n"
        "from alexnet_jax.weights.files import open_source\n"
        "import pathlib\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        f"limit = pages * resource.getpagesize() + {size} + (100 << 20)\n"  # the file itself is mapped
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"open_source(pathlib.Path({str(path)!r}))\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("asks Linux for the memory of a process")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "conv1[0] has shape (7,) and 268,435,456 values" in done.stderr, done.stderr
