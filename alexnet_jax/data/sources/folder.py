"""Class folders of image files: train/CLASS/** and val/CLASS/**, or CLASS/** alone.

Classes are the folders' names, in the order of their code points, as torchvision's
ImageFolder has them. Below a class folder every file counts, whatever it is called.
"""

from __future__ import annotations

import pathlib
import unicodedata

import numpy as np

from alexnet_jax.data.prepared import MANIFEST, UNFINISHED, DataError
from alexnet_jax.data.sources import Examples, Source
from alexnet_jax.data.sources._files import (
    Found,
    add_class,
    check_classes,
    check_fraction,
    existing_folder,
    fingerprint,
    list_folder,
    looks_like_image,
    printable,
    some,
    split_by_hash,
)

VAL_NAMES = ("val", "valid", "validation")
_NOT_CLASSES = {"train", "training", "test", "testing", *VAL_NAMES}
_REMEDY = "give the share of training images to use, such as --val-fraction 0.1 (config key data.val_fraction)"


def open_folder(directory: str, *, val_fraction: float | None = None) -> Source:
    """A folder of class folders, in one of three forms:

        DIR/train/CLASS/**, DIR/val/CLASS/** (or valid, validation); maybe DIR/test/CLASS/**
        DIR/train/CLASS/**, with val_fraction; maybe DIR/test/CLASS/**
        DIR/CLASS/**, with val_fraction

    Args:
      directory: DIR.
      val_fraction: the share of training images that becomes validation: those whose path
        below DIR or DIR/train has a SHA-256 under it.

    Raises:
      DataError: the folder can't be used; the message says what to do.
    """
    source = f"folder:{directory}"
    root = existing_folder(source, directory)
    top = list_folder(str(root))
    vals = [name for name in VAL_NAMES if name in top.folders]
    where = printable(str(root))
    if len(vals) > 1:
        raise DataError(f"{where} has {' and '.join(vals)}: which is the validation split? Remove the other")
    if "train" not in top.folders:
        if vals:
            raise DataError(f"{where} has {vals[0]}/ but no train/: name the folder of the training images so")
        near = [name for name in top.folders if name.lower() in _NOT_CLASSES]
        if near:
            raise DataError(
                f"{where} has a folder {near[0]!r}, which looks like a split, not a class: "
                "name the splits train/ and val/ (and test/), in lower case"
            )
    if vals and val_fraction is not None:
        raise DataError(f"{source} has a validation split, {vals[0]}/: leave val_fraction ({val_fraction}) out")
    if not vals and val_fraction is None:
        raise DataError(f"{source} has no validation split (val/CLASS/...): {_REMEDY}, or make one")
    if val_fraction is not None:
        check_fraction(source, val_fraction)

    notes: list[str] = []
    base = "train" if "train" in top.folders else ""
    classes = class_names(source, root / base)
    trained = read_split(root, base, classes, notes)
    files = list(zip(trained.paths, trained.sizes, strict=True))
    splits: dict[str, Examples] = {"train": trained.examples(str(root))}
    if vals:
        validated = read_split(root, vals[0], classes, notes)
        files += zip(validated.paths, validated.sizes, strict=True)
        splits["val"] = validated.examples(str(root))
    if base and "test" in top.folders and _has_classes(root / "test", classes, notes):
        tested = read_split(root, "test", classes, notes)
        files += zip(tested.paths, tested.sizes, strict=True)
        splits["test"] = tested.examples(str(root))
    if val_fraction is not None:
        below = (path.removeprefix("train/") if base else path for path in trained.paths)
        labels = np.array(trained.labels, np.int32)
        train, val, more = split_by_hash(source, splits["train"], below, labels, classes, val_fraction)
        splits = {**splits, "train": train, "val": val}
        notes += more
    return Source(source, classes, splits, fingerprint(files), tuple(notes))


def class_names(source: str, directory: pathlib.Path) -> tuple[str, ...]:
    """The names of the class folders in a folder, in the order of the labels.

    Raises:
      DataError: there are none, one only, or one has a name that can't be used.
    """
    here = list_folder(str(directory))
    if not here.folders:
        raise DataError(
            f"{printable(str(directory))} has no class folders ({len(here.files)} files): "
            "put the images of each class into a folder of its own, named as the class"
        )
    made = [name for name in here.folders if any((directory / name / mark).exists() for mark in (MANIFEST, UNFINISHED))]
    if made:
        raise DataError(f"{printable(str(directory / made[0]))} is a prepared folder and no class: move it elsewhere")
    classes = tuple(sorted({_normal(name) for name in here.folders}))
    check_classes(source, classes)
    return classes


def read_split(root: pathlib.Path, split: str, classes: tuple[str, ...], notes: list[str]) -> Found:
    """Lists the images of a split, in the order of classes and then names.

    Args:
      root: DIR.
      split: the split's folder in it, "" for DIR itself, which is read as training images.
      classes: the names of the classes.
      notes: what is only worth reporting is added here.

    Raises:
      DataError: a training class is empty, the split has a class that is none, or lies flat.
    """
    directory = root / split if split else root
    where = printable(str(directory))
    here = list_folder(str(directory))
    training = split in ("", "train")
    if not training and here.files and (not here.folders or any(looks_like_image(name) for name in here.files)):
        raise DataError(
            f"{where} has {len(here.files)} files directly in it, such as {some(here.files, 1)}: their classes can't "
            f"be told. Move each into {split}/CLASS/, or remove {split}/ and {_REMEDY}. "
            "(ImageNet's own flat val/ is read by imagenet:DIR)"
        )
    unknown = [name for name in here.folders if _normal(name) not in set(classes)]
    if unknown:
        raise DataError(
            f"{where} has {len(unknown)} folders that are no classes of the training images: {some(unknown)}. "
            f"Rename or remove them, or add the classes to train/{_hint(here.files)}"
        )
    if here.files:
        notes.append(f"{len(here.files)} files beside the class folders of {where} are not used: {some(here.files)}.")
    found = Found()
    lacking, again = [], 0
    for label, name in enumerate(classes):
        count = 0
        for folder in [folder for folder in here.folders if _normal(folder) == name]:
            more, links = add_class(found, str(root), f"{split}/{folder}" if split else folder, label)
            count += more
            again += links
        if not count:
            lacking.append(name)
    if lacking and training:
        raise DataError(
            f"{where} has {len(lacking)} class folders without images: {some(lacking)}. Fill or remove them"
        )
    if len(lacking) == len(classes):
        raise DataError(f"{where} has no images: fill it, or remove it and {_REMEDY}")
    if lacking:
        notes.append(f"{where} has no images of {len(lacking)} of the {len(classes)} classes: {some(lacking)}.")
    if again:
        notes.append(f"{again} links below {where} lead to folders that are listed already, and are not followed.")
    return found


def _has_classes(directory: pathlib.Path, classes: tuple[str, ...], notes: list[str]) -> bool:
    """Whether test/ has labels: competitions' often has none."""
    if any(_normal(name) in classes for name in list_folder(str(directory)).folders):
        return True
    notes.append(f"{printable(str(directory))} is not used: it has no class folders.")
    return False


def _hint(files: list[str]) -> str:
    if "val_annotations.txt" in files:
        return (
            ". (Tiny ImageNet as it is downloaded: move each image of val/images to its class by val_annotations.txt)"
        )
    return ""


def _normal(name: str) -> str:
    # macOS may spell é as two code points where others use one; train/ and val/ may come from both.
    return unicodedata.normalize("NFC", name)
