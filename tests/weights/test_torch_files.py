"""PyTorch's files, read without it: both forms, and what is broken, hostile or not weights at all."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from alexnet_jax import load_weights
from alexnet_jax.weights import WeightsError
from alexnet_jax.weights.files import open_source
from alexnet_jax.weights.torch_files import LONGEST_PICKLE

from .networks import assert_holds, refused, torch_state
from .torch_writer import (
    FORMS,
    MACHINE,
    Call,
    Name,
    pickled,
    save_old,
    save_records,
    save_zip,
    zip_records,
)


@pytest.fixture(params=FORMS)
def save(request, tmp_path):
    """Writes a file in one of the forms."""
    return lambda thing, *arguments, **changes: FORMS[request.param](tmp_path / "w.pth", thing, *arguments, **changes)


@pytest.fixture(scope="module")
def net():
    return torch_state()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict(save, net, protocol):
    spec, params, state = net
    assert_holds(load_weights(save(state, protocol), variant=spec), params)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_inside_a_training_programs_checkpoint(save, net, key):
    spec, params, state = net
    momentum = {"state": {0: {"momentum_buffer": np.ones((3, 2), np.float32)}}, "param_groups": [{"lr": 0.1}]}
    state = {f"module.{name}": value for name, value in state.items()}
    assert_holds(load_weights(save({"epoch": 3, "optimizer": momentum, key: state}), variant=spec), params)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_floating_types_become_float32(save, net, dtype):
    spec, params, state = net
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    rounded = {
        layer: {k: v.astype(kind).astype(np.float32) for k, v in leaves.items()} for layer, leaves in params.items()
    }
    stored = {name: value.astype(kind) for name, value in state.items()}
    assert_holds(load_weights(save(stored), variant=spec), rounded)


def test_a_tensor_that_is_not_contiguous(save, net):
    name, state = "features.3.weight", net[2]
    backwards = np.ascontiguousarray(state[name].transpose(3, 2, 1, 0))  # the same values as its transposed view
    strides = tuple(step // 4 for step in backwards.transpose(3, 2, 1, 0).strides)
    path = save({name: backwards}, shape=state[name].shape, strides=strides)
    np.testing.assert_array_equal(open_source(path).entries[name].read(), state[name])


CALLS = [
    ("os", "system", ("touch {marker}",)),
    ("posix", "system", ("touch {marker}",)),
    ("builtins", "eval", ("open({marker!r}, 'w')",)),
    ("builtins", "exec", ("open({marker!r}, 'w')",)),
    ("subprocess", "Popen", (["touch", "{marker}"],)),
    ("torch", "load", ("{marker}",)),
    ("numpy.core.multiarray", "scalar", ()),
    ("torch._utils", "_rebuild_sparse_tensor", ()),
    ("torch._utils", "_rebuild_meta_tensor_no_storage", ()),
    ("torchvision.models.alexnet", "AlexNet", ()),
]


@pytest.mark.parametrize(("module", "name", "arguments"), CALLS, ids=[f"{c[0]}.{c[1]}" for c in CALLS])
def test_a_pickle_that_calls_code_is_refused_by_name(save, net, tmp_path, module, name, arguments):
    marker = str(tmp_path / "marker")
    arguments = tuple(
        a.format(marker=marker) if isinstance(a, str) else [b.format(marker=marker) for b in a] for a in arguments
    )
    path = save({**net[2], "extra": Call(Name(module, name), arguments)})
    refused(path, f"its pickle names '{module}.{name}'", variant=net[0])
    assert not (tmp_path / "marker").exists()


def test_the_writers_calls_do_run_elsewhere(tmp_path):
    marker = tmp_path / "marker"
    assert pickle.loads(pickled(Call(Name("os", "system"), (f"touch {marker}",)))[0]) == 0
    assert marker.exists()


# Instructions that call code by other ways than GLOBAL and REDUCE, or reserve memory that is only announced.
OPCODES = {
    "INST": b"(S'x'\nios\nsystem\n.",
    "OBJ": b"(ccollections\nOrderedDict\n)o.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x82\x01.",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40) + b".",
    "DUP": b"]2.",
}


@pytest.mark.parametrize("code", OPCODES)
def test_an_instruction_that_no_state_dict_needs(tmp_path, code):
    path = save_records(tmp_path / "w.pth", {"net/data.pkl": b"\x80\x02" + OPCODES[code]})
    refused(path, "cut off or damaged" if code == "BYTEARRAY8" else "its pickle has the instruction")


DAMAGED = {
    "empty": b"",
    "no stop": b"\x80\x02}",
    "an empty stack": b"\x80\x02.",
    "a tuple of nothing": b"\x80\x02\x85.",
    "no mark": b"\x80\x02}}u.",
    "no such memo": b"\x80\x02h\x07.",
    "a memo of 2^31": b"\x80\x02}r\xff\xff\xff\x7fh\x07.",
    "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "a number of 2^31 digits": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "a list as key": b"\x80\x02}]Ns.",
    "deep tuples as key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "a call of a dictionary": b"\x80\x02})R.",
    "a storage of nothing": b"\x80\x02)Q.",
    "not a pickle": b"\xff\xfe\x00",
    "text": b"features.0.weight",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_pickle(tmp_path, what):
    refused(save_records(tmp_path / "w.pth", {"net/data.pkl": DAMAGED[what]}), "its pickle is cut off or damaged")


def test_a_name_with_a_backslash(tmp_path):
    """Python's disassembler warns of it."""
    content = b"\x80\x02c\\ollections\nOrderedDict\n)R."
    refused(save_records(tmp_path / "w.pth", {"net/data.pkl": content}), "ollections")


def test_plain_data_is_no_state_dict(save):
    refused(save({"epoch": 3}), "it holds no state dict")
    refused(save([1, 2]), "it holds no state dict")


def test_an_entry_that_is_no_tensor(save, net):
    refused(save({**net[2], "epoch": 3}), "its entry 'epoch' is no tensor")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (1 << 20, 1 << 20), "strides": (0, 0)}, "the tensor was expanded"),
        ({"shape": (1 << 30,), "strides": (1,)}, "its storage only"),
        ({"offset": 1 << 40}, "its storage only"),
        ({"shape": (1 << 60, 1), "strides": (1, 1)}, "make no sense"),
        ({"shape": (-1,), "strides": (1,)}, "make no sense"),
        ({"strides": (-1, 1, 1, 1)}, "make no sense"),
        ({"shape": (True,), "strides": (1,)}, "make no sense"),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "make no sense"),
        ({"strides": ()}, "damaged"),
        ({"storage": None}, "damaged"),
    ],
)
def test_tensors_that_their_storages_do_not_hold(save, net, changes, words):
    refused(save({"features.0.weight": net[2]["features.0.weight"]}, **changes), words, variant=net[0])


def test_a_cut_file(save, net):
    spec, params, state = net
    whole = save(state).read_bytes()
    path = save(state)
    for length in [20, 40, 400, 1500, len(whole) // 2, len(whole) - 1000, len(whole) - 3]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut off|damaged|not there in full"):
            load_weights(path, variant=spec)
    path.write_bytes(whole)
    assert_holds(load_weights(path, variant=spec), params)


def test_a_changed_byte_of_a_record_is_noticed(tmp_path, net):
    spec, _, state = net
    path = save_zip(tmp_path / "w.pth", state)
    content = bytearray(path.read_bytes())
    place = content.find(state["features.3.weight"].tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    refused(path, "Bad CRC-32", variant=spec)


def test_compressed_records_are_refused(tmp_path, net):
    bomb = {**zip_records(net[2]), "net/data/0": bytes(64 << 20)}
    refused(save_records(tmp_path / "w.pth", bomb, zipfile.ZIP_DEFLATED), "its records are compressed")


def test_a_record_that_lies_about_its_size(tmp_path, net):
    path = save_zip(tmp_path / "w.pth", net[2])
    content = path.read_bytes()
    place = content.rfind(b"net/data.pkl") - 46  # in the archive's directory
    lied = content[: place + 24] + struct.pack("<I", 0xFFFFFF00) + content[place + 28 :]
    path.write_bytes(lied)
    refused(path, "its records are compressed")


def test_a_directory_that_points_before_the_file(tmp_path, net):
    """Found by changing bytes at random: the system refuses to seek there."""
    path = save_zip(tmp_path / "w.pth", net[2])
    content = path.read_bytes()
    path.write_bytes(content[:-6] + struct.pack("<I", 0x7FFFFF00) + content[-2:])
    refused(path, "the archive is cut off or damaged")


def test_a_pickle_of_a_size_that_none_has(tmp_path):
    path = save_records(tmp_path / "w.pth", {"net/data.pkl": bytes(LONGEST_PICKLE + 1)})
    refused(path, "no AlexNet needs that")


def test_names_in_the_archive_lead_nowhere(tmp_path, net):
    """They are looked up, never made into paths: a record elsewhere is not a tensor's."""
    spec, params, state = net
    records = zip_records(state)
    path = save_records(tmp_path / "w.pth", {**records, "../../escaped": b"x", "/etc/escaped": b"x"})
    assert_holds(load_weights(path, variant=spec), params)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]
    moved = {name.replace("net/data/0", "net/data/../0"): content for name, content in records.items()}
    refused(save_records(path, moved), "its storage '0' is not there in full", variant=spec)


def test_two_records_of_one_name(tmp_path, net):
    path = save_zip(tmp_path / "w.pth", net[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("net/data/0", b"")
    refused(path, "two of its records have the same name")


def test_other_archives(tmp_path):
    refused(save_records(tmp_path / "w.pth", {"a.npy": b""}), "this zip archive has no data.pkl")
    two = {"a/data.pkl": b"", "b/data.pkl": b""}
    refused(save_records(tmp_path / "w.pth", two), "this zip archive has no data.pkl")


def test_another_byte_order(tmp_path, net):
    path = save_records(tmp_path / "w.pth", {**zip_records(net[2]), "net/byteorder": b"big"})
    refused(path, "big-endian")
    refused(save_old(tmp_path / "w.pth", net[2], machine={**MACHINE, "little_endian": False}), "big-endian")


def test_a_plain_pickle(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"features.0.weight": [1.0]}))
    refused(path, "a pickle can run code, so it is not read")


def test_flipped_bytes_never_get_further_than_a_refusal(tmp_path, net):
    """Seeded; every outcome is the network's weights (a byte that says nothing of them) or a refusal in words."""
    spec, _, state = net
    rng = np.random.default_rng(0)
    for form, save in FORMS.items():
        path = save(tmp_path / f"{form}.pth", state)
        whole = path.read_bytes()
        # Where the structure is: its pickle, and in the zip form also the directory at its end.
        start = whole.find(b"features.0.weight")
        places = np.concatenate(
            [rng.integers(max(0, start - 200), start + 3000, 60), len(whole) - rng.integers(1, 1500, 30)]
        )
        outcomes = set()
        for place in places:
            content = bytearray(whole)
            content[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
            try:
                load_weights(path, variant=spec)
                outcomes.add("loaded")
            except WeightsError:
                outcomes.add("refused")
        assert "refused" in outcomes


def test_torch_is_not_imported(tmp_path, net):
    path = save_zip(tmp_path / "w.pth", net[2])
    code = "import sys; from alexnet_jax.weights.files import open_source; import pathlib\n"
    code += f"print(len(open_source(pathlib.Path({str(path)!r})).entries), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "16 False\n"


def test_the_memory_bound_can_fail():
    tracemalloc.start()
    try:
        io.BytesIO(bytes(64 << 20))
        assert tracemalloc.get_traced_memory()[1] > 32 << 20
    finally:
        tracemalloc.stop()
