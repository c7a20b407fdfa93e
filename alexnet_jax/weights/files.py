"""Opens a file or folder of weights by what it holds, whatever its name ends in."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import safetensors

from alexnet_jax.weights import caffe, torch_files
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.metadata import MEAN_IMAGE, read_classes, read_mean_image, read_spec
from alexnet_jax.weights.source import LARGEST_FILE, Entry, Source

# Of safetensors, by NumPy's names; others are refused when they are asked for.
_SAFE = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLAX_TYPES = ("float64", "float32", "float16", "bfloat16")
_TEXTS = {bytes([byte]) for byte in (*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB)}  # MessagePack's marks of a text
_DEEPEST, _MOST = 8, 4096  # levels of a Flax tree, and entries of one


def open_source(path: pathlib.Path, prototxt: pathlib.Path | None = None) -> Source:
    """The arrays of a file or run folder; of a file's values, none is read yet but in Flax's form.

    Args:
      path: the file or folder.
      prototxt: a description of the network, which goes with Caffe's files alone.

    Raises:
      WeightsError: there is nothing there, or nothing that can be used.
      CheckpointError: a run folder without a checkpoint that can be used.
    """
    if not (path.is_dir() or path.is_file()):
        raise WeightsError(f"{path}: there is no such file or folder")
    try:
        reader = _run if path.is_dir() else _reader(path)
        if reader is caffe.read:
            return caffe.read(path, prototxt)
        if prototxt is not None:
            raise WeightsError("prototxt= goes with Caffe's .caffemodel, which this is not: leave it out")
        return reader(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _reader(path: pathlib.Path) -> Any:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise WeightsError(f"{size:,} bytes are more than any AlexNet has ({LARGEST_FILE:,} at most)")
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"PK\x03\x04"):
        return torch_files.read_zip
    if start[:1] == b"\x80" and torch_files.OLD_START in start:
        return torch_files.read_old
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return _safetensors
    if start[:1] == b"\x80":  # of a MessagePack file, an empty map
        raise WeightsError(
            "a Python pickle that torch.save did not write; a pickle can run code, so it is not read: "
            "save the weights with torch.save(model.state_dict(), path)"
        )
    # A map of 1 to 15 entries whose first key is a text, or a longer one.
    if start[:1] in (b"\xde", b"\xdf") or (b"\x81" <= start[:1] <= b"\x8f" and start[1:2] in _TEXTS):
        return _flax
    if start.startswith(caffe.STARTS):
        return caffe.read
    raise WeightsError(
        "not a file of weights that is known: PyTorch's .pth and .pt, .safetensors, Caffe's .caffemodel and Flax's "
        ".msgpack are; or give a training run's folder"
    )


def _safetensors(path: pathlib.Path) -> Source:
    """The library checks the header: lengths, types, that no two arrays overlap and that nothing is missing."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            entries = {}
            for name in list(file.keys()):
                piece = file.get_slice(name)
                kind = piece.get_dtype()
                read = functools.partial(_safetensor, path, name)
                entries[name] = Entry(tuple(piece.get_shape()), _SAFE.get(kind, kind), read)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"this safetensors file is cut off or damaged ({error}): copy or download it again"
        ) from None
    if "spec" not in metadata:
        return Source("safetensors", entries, variant=metadata.get("variant"))
    mean_image = entries.pop(MEAN_IMAGE, None)
    return Source(
        "safetensors",
        entries,
        spec=read_spec(metadata["spec"]),
        classes=read_classes(metadata["classes"]) if "classes" in metadata else None,
        mean_image=None if mean_image is None else read_mean_image(mean_image),
    )


def _safetensor(path: pathlib.Path, name: str) -> np.ndarray:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)


def _flax(path: pathlib.Path) -> Source:
    """Flax's MessagePack form, as `flax.serialization.to_bytes` writes it; every announced length is bounded."""
    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=_flax_array,
            strict_map_key=False,
            max_array_len=_MOST,
            max_map_len=_MOST,
        )
    except WeightsError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"this Flax file is cut off or damaged ({type(error).__name__}): copy it again") from None
    if isinstance(tree, dict) and isinstance(tree.get("params"), dict):
        tree = tree["params"]
    entries: dict[str, Entry] = {}
    _flatten(tree, (), entries)
    return Source("Flax's MessagePack form", entries)


def _flax_array(code: int, data: bytes) -> Any:
    """An array (code 1), as (shape, name of its type, bytes), or a scalar (code 3)."""
    if code not in (1, 3):
        return None
    shape, name, values = msgpack.unpackb(data, max_array_len=_DEEPEST)
    if name not in _FLAX_TYPES:
        return None
    kind = np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    if len(shape) > _DEEPEST or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError
    return np.frombuffer(values, kind).reshape(shape)


def _flatten(tree: Any, path: tuple[str, ...], entries: dict[str, Entry]) -> None:
    if not isinstance(tree, dict):
        raise WeightsError(f"its entry {'.'.join(path)[:100]!r} is no array of floating-point numbers")
    for name, value in tree.items():
        here = (*path, str(name))
        if isinstance(value, np.ndarray):
            entries[".".join(here)] = Entry(value.shape, value.dtype.name, functools.partial(np.asarray, value))
        elif len(here) == _DEEPEST or len(entries) > _MOST:
            raise WeightsError("this tree is deeper or larger than any AlexNet's")
        else:
            _flatten(value, here, entries)


def _run(path: pathlib.Path) -> Source:
    """A training run's folder, or one checkpoint in it: the best by validation, or the one given."""
    from alexnet_jax.trained import open_trained  # with all that reads data; the others do without

    run = open_trained(path)
    entries = {}
    for layer, arrays in run.params.items():
        for name, value in arrays.items():
            read = functools.partial(np.asarray, value)
            entries[f"{layer}.{name}"] = Entry(value.shape, value.dtype.name, read)
    return Source(
        f"checkpoint {run.step} of a run ({run.chosen})",
        entries,
        spec=run.spec,
        classes=run.classes,
        mean_image=np.asarray(run.mean_image),
    )
