"""A data set that TensorFlow Datasets has prepared, in ArrayRecord form; TensorFlow is never imported.

Preparing takes TensorFlow (the extra `tfds-build`), reading doesn't. Images come as the
bytes that the set holds (`tfds.decode.SkipDecoding`), so they are decoded as all others are.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import Examples, Source
from alexnet_jax.data.sources._files import check_classes, fingerprint, split_by_hash

VAL_NAMES = ("validation", "val", "valid")
_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")


class _Records:
    """`Examples` of a data source of TFDS."""

    def __init__(self, data: Any, split: str, image: str, label: str, classes: int):
        self._data, self._split = data, split
        self._image, self._label, self._classes = image, label, classes

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        return f"{self._split}/{index}"

    def load(self, index: int) -> tuple[bytes | np.ndarray, int]:
        try:
            example = self._data[index]
        except Exception as error:  # the reader is native code, and the decoders are TFDS's
            raise OSError(f"can't be read ({type(error).__name__}: {error})") from None
        image, label = example[self._image], int(example[self._label])
        if not 0 <= label < self._classes:
            raise OSError(f"has the label {label}, but the set has {self._classes} classes")
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
                raise OSError(f"is an array {image.shape} of {image.dtype}, not (H, W, 3) of uint8")
            image = np.broadcast_to(image, (*image.shape[:2], 3))
        return image, label


def open_tfds(name: str, *, val_fraction: float | None = None) -> Source:
    """A prepared set of TensorFlow Datasets, from its usual folder or TFDS_DATA_DIR.

    Splits: "train" is training; "validation", "val" or "valid" is validation, "test" is
    test. Without a validation split, and without val_fraction, validation is "test".

    Args:
      name: NAME[:VERSION], or NAME/CONFIG[:VERSION].
      val_fraction: the share of training images that becomes validation, drawn by a hash of
        their places in the set.

    Raises:
      DataError: there is no such set, it isn't prepared (the message has the command), it is
        in TFRecord form, or has no images with labels.
    """
    source = f"tfds:{name}"
    if not _NAME.fullmatch(name):
        raise DataError(f"{source!r} is no name of a set: write tfds:NAME or tfds:NAME/CONFIG, maybe with :1.2.3")
    import tensorflow_datasets as tfds

    with _quiet():
        builder = _builder(tfds, source, name)
        prepared = builder.is_prepared()
    command = f"`tfds build {name} --file_format=array_record`"
    if not prepared:
        by_hand = ", after the downloads by hand that its page describes" if _by_hand(builder) else ""
        raise DataError(
            f"{source} is not prepared in {os.path.dirname(str(builder.data_path))}: run `pip install "
            f"'alexnet-jax[tfds-build]'`, then {command}{by_hand}; TFDS_DATA_DIR names another folder"
        )
    image, label, classes = _features(tfds, source, builder.info)
    check_classes(source, classes)
    counts = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
    if "train" not in counts:
        raise DataError(
            f"{source} has no split 'train', only {', '.join(counts) or 'empty ones'}: it can't be trained on"
        )

    decoders = None
    if isinstance(builder.info.features[image], tfds.features.Image):
        decoders = {image: tfds.decode.SkipDecoding()}

    def examples(split: str) -> _Records:
        try:
            data = builder.as_data_source(split=split, decoders=decoders)
        except NotImplementedError:
            raise DataError(
                f"{source} is prepared in {builder.info.file_format.value} form in {builder.data_path}, which takes "
                "TensorFlow to read: run `pip install 'alexnet-jax[tfds-build]'`, then "
                f"{command[:-1]} --overwrite`, which prepares it anew"
            ) from None
        return _Records(data, split, image, label, len(classes))

    splits: dict[str, Examples] = {"train": examples("train")}
    notes: list[str] = []
    vals = [split for split in VAL_NAMES if split in counts]
    if vals and val_fraction is not None:
        raise DataError(f"{source} has a validation split, {vals[0]!r}: leave val_fraction ({val_fraction}) out")
    if "test" in counts:
        test = examples("test")
        if _labelled(test):
            splits["test"] = test
        else:
            notes.append("The split 'test' is not used: it has no labels.")
    if vals:
        splits["val"] = examples(vals[0])
    elif val_fraction is not None:
        train = splits["train"]
        names = (train.name(index) for index in range(len(train)))
        splits["train"], splits["val"], more = split_by_hash(source, train, names, None, classes, val_fraction)
        notes += more
    elif "test" in splits:
        splits["val"] = splits.pop("test")
        notes.append("Validation is the split 'test': choose nothing by it, or give a val_fraction such as 0.1.")
    else:
        raise DataError(
            f"{source} has no validation split, only {', '.join(counts)}: "
            "give the share of training images to use, such as --val-fraction 0.1 (config key data.val_fraction)"
        )
    return Source(source, classes, splits, _fingerprint(builder), tuple(notes))


def _builder(tfds: Any, source: str, name: str) -> Any:
    try:
        return tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError:
        whole, _, version = name.partition(":")
        bare, known = whole.partition("/")[0], tfds.list_builders(with_community_datasets=False)
        other = None
        if version:
            with contextlib.suppress(DataError):
                other = _builder(tfds, source, whole).version
        if other:
            text = f"{source}: version {version} is not prepared, {other} is: write tfds:{whole}:{other}"
        elif bare in known:
            text = (
                f"{source} is neither prepared nor can this version of tensorflow_datasets prepare it: try tfds:{bare}"
            )
        else:
            near = difflib.get_close_matches(bare, known, n=1)
            text = f"tensorflow_datasets knows no set {bare!r}" + (f": did you mean tfds:{near[0]}?" if near else "")
            text += "; a set of your own must be prepared in TFDS_DATA_DIR"
        raise DataError(text) from None
    # Of another version, of a config that isn't there, or by code that needs what isn't installed.
    except (AssertionError, ValueError, RuntimeError, ImportError, OSError) as error:
        line = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise DataError(f"{source} can't be opened by tensorflow_datasets ({type(error).__name__}: {line})") from None


def _by_hand(builder: Any) -> bool:
    return bool(getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None))


def _features(tfds: Any, source: str, info: Any) -> tuple[str, str, tuple[str, ...]]:
    """The names of the image and the label, and the classes."""
    features = info.features
    for image, label in (info.supervised_keys or (None, None), ("image", "label")):
        if not isinstance(image, str) or not isinstance(label, str) or image not in features or label not in features:
            continue
        classes = features[label]
        shape = features[image].shape  # of a nested feature it is a dict
        pictures = isinstance(features[image], tfds.features.Image) or (isinstance(shape, tuple) and len(shape) == 3)
        if pictures and isinstance(classes, tfds.features.ClassLabel) and classes.num_classes:
            return image, label, tuple(classes.names)
    raise DataError(
        f"{source} has no image with a class label: its features are {', '.join(features)}"
        + (f", of which it pairs {info.supervised_keys}" if info.supervised_keys else "")
    )


def _labelled(examples: _Records) -> bool:
    """Whether a split has labels: TFDS gives -1 where the publisher gives none."""
    try:
        examples.load(0)
    except OSError as error:
        return "has the label -1" not in str(error)
    return True


def _fingerprint(builder: Any) -> str:
    with os.scandir(builder.data_path) as entries:
        return fingerprint([(builder.info.full_name, 0), *((entry.name, entry.stat().st_size) for entry in entries)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's warnings about a set that isn't there: the error says it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
