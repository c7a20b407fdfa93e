"""Small valid files of weights, changed: the readers read or refuse them in one line, in little memory.

Seeded. `FUZZ_EXAMPLES=20000 python -m pytest -m slow tests/weights/test_fuzz.py` looks longer.
"""

from __future__ import annotations

import json
import os
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from flax.serialization import to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from alexnet_jax.weights import WeightsError
from alexnet_jax.weights.caffe import read_mean
from alexnet_jax.weights.files import open_source

from .caffe_writer import blob, fill, network, prototxt, unpacked
from .networks import caffe_state
from .torch_writer import save_old, save_records, save_zip, zip_records

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "700"))  # of each kind
SPEC, _, LAYERS = caffe_state()
# Few values, so that most changes hit something else.
TINY = {name: tuple(value.ravel()[:3].copy() for value in pair) for name, pair in LAYERS.items()}
STATE = {f"features.0.{leaf}": value for leaf, value in zip(("weight", "bias"), TINY["conv1"], strict=True)}
OURS = {f"conv1.{leaf}": value for leaf, value in zip(("kernel", "bias"), TINY["conv1"], strict=True)}


def read_model(path):
    source = open_source(path)
    source.differences(SPEC)
    for entry in source.entries.values():
        value = entry.read()
        assert (value.shape, value.dtype.name) == (entry.shape, entry.dtype)


def read_text(path):
    model = path.with_name("model")
    if not model.exists():
        model.write_bytes(caffe_models(path)[0])
    open_source(model, path).differences(SPEC)


def caffe_models(_):
    """Of both kinds, packed and not."""
    new, old = (fill(network(SPEC, 7, old=old, train=True), TINY, old=old) for old in (False, True))
    new.layer[1].blobs[0].double_data.extend(new.layer[1].blobs[0].data)
    new.layer[1].blobs[0].ClearField("data")
    return new.SerializeToString(), old.SerializeToString(), unpacked(old)


def pickle_in_archive(path, content):
    """With the right checksum, which would refuse every change otherwise."""
    save_records(path, zip_records(STATE) | {"net/data.pkl": content})


class Kind(NamedTuple):
    """What is changed, made beside a path; how it becomes a file; how that is read."""

    seeds: Callable[[pathlib.Path], tuple[Any, ...]]
    write: Callable[[pathlib.Path, bytes], object] = pathlib.Path.write_bytes
    read: Callable[[pathlib.Path], object] = read_model
    pieces: tuple[bytes, ...] = ()


KINDS = {
    "Caffe's model": Kind(caffe_models, pieces=(b"\x0a", b"\x2d", b"\x3a", b"\xa2\x06")),
    "Caffe's mean image": Kind(
        lambda _: tuple(blob(np.ones((1, 3, 2, 2), np.float32), old=old).SerializeToString() for old in (False, True)),
        read=read_mean,
        pieces=(b"\x0a", b"\x2d", b"\x3a"),
    ),
    "prototxt": Kind(
        lambda _: tuple(prototxt(network(SPEC, 7, old=old, train=True)) for old in (False, True)),
        write=lambda path, text: path.write_text(text),
        read=read_text,
    ),
    "PyTorch's archive": Kind(
        lambda path: (save_zip(path, STATE).read_bytes(),), pieces=(b"PK\x03\x04", b"PK\x01\x02")
    ),
    "PyTorch's pickle": Kind(
        lambda _: tuple(zip_records(STATE, protocol)["net/data.pkl"] for protocol in (2, 4)),
        write=pickle_in_archive,
        pieces=(b"R", b"(", b"t", b"}", b"q\x00", b"h\x00", b"cos\nsystem\n", b".", b"\x8a\xff", b"K\x00"),
    ),
    "PyTorch's old form": Kind(lambda path: (save_old(path, STATE).read_bytes(),), pieces=(b"R", b"(", b"t", b".")),
    "safetensors": Kind(
        lambda _: (save(OURS, {"classes": '["a", "b"]', "spec": json.dumps(SPEC.to_dict())}), save(STATE)),
        pieces=(b"{", b"}", b"[", b"]", b'"', b",", b"9", b"-1", b"\\u0000"),
    ),
    "Flax's": Kind(
        lambda _: (to_bytes({"params": {"conv1": dict(zip(("kernel", "bias"), TINY["conv1"], strict=True))}}),),
        pieces=(b"\xdf", b"\xdd", b"\xc6", b"\xc9", b"\xc7", b"\x80", b"\x90"),
    ),
}
BYTES = (b"\x00", b"\x7f", b"\x80", b"\xff", b"\xff" * 9 + b"\x01")
TEXT = st.text(st.sampled_from("{}<>[]:,;#'\"\\ \n0-.elx"), max_size=4)


@st.composite
def changed(draw, seeds, pieces):
    """A seed after a few changes: overwritten, put in, taken out, repeated, or cut off at the end."""
    found = draw(st.sampled_from(seeds))
    inserted = st.sampled_from(BYTES + pieces) | st.binary(min_size=1, max_size=4) if isinstance(found, bytes) else TEXT
    for _ in range(draw(st.integers(1, 4))):
        place, length, piece = draw(st.integers(0, len(found))), draw(st.integers(0, 40)), draw(inserted)
        found = draw(
            st.sampled_from(
                [
                    found[:place] + piece + found[place + len(piece) :],
                    found[:place] + piece + found[place:],
                    found[:place] + found[place + length :],
                    found[:place] + found[place : place + length] * 2 + found[place + length :],
                    found[:place],
                ]
            )
        )
    return found


def survives(path, read):
    """Whether a file is read; if not, it is refused in one line. Memory is in proportion to it."""
    message = ""
    tracemalloc.start()
    try:
        read(path)
    except WeightsError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert peak < 8 * path.stat().st_size + (16 << 20)
    return not message


def fuzz(path, what, examples):
    kind = KINDS[what]
    seeds, outcomes = kind.seeds(path), set()
    for seed in seeds:
        kind.write(path, seed)
        assert survives(path, kind.read)

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(seeds, kind.pieces))
    def test(content):
        kind.write(path, content)
        outcomes.add(survives(path, kind.read))

    test()
    assert False in outcomes  # some are refused


@pytest.mark.parametrize("what", KINDS)
def test_changed_files_are_read_or_refused(tmp_path, what):
    fuzz(tmp_path / "w", what, 40)


@pytest.mark.slow
@pytest.mark.parametrize("what", KINDS)
def test_many_changed_files_are_read_or_refused(tmp_path, what):
    fuzz(tmp_path / "w", what, EXAMPLES)
