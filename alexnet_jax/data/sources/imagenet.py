"""ImageNet (ILSVRC 2012, classification), in whichever form people have it.

The official files, as image-net.org gives them, none unpacked but the kit if you like:

    ILSVRC2012_img_train.tar             a tar file of tar files, one a class
    ILSVRC2012_img_val.tar
    ILSVRC2012_devkit_t12.tar.gz         or ILSVRC2012_devkit_t12/

Kaggle's (ImageNet Object Localization Challenge), unpacked:

    ILSVRC/Data/CLS-LOC/train/n01440764/..., ILSVRC/Data/CLS-LOC/val/...
    LOC_val_solution.csv, LOC_synset_mapping.txt

Class folders: train/n01440764/..., val/n01440764/...

A label is the place of the class's WordNet id among the sorted ids, as in every published
weight. The development kit numbers classes in another order (ILSVRC2012_ID; its readme.txt):
those numbers never become labels without translation, see `_devkit.truth_labels`.
"""

from __future__ import annotations

import collections
import pathlib
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import Source
from alexnet_jax.data.sources._devkit import (
    KAGGLE,
    KIT,
    META,
    OFFICIAL,
    WNID,
    find_kit,
    read_mapping,
    read_solution,
    truth_labels,
)
from alexnet_jax.data.sources._files import Found, check_classes, existing_folder, fingerprint, list_folder, some
from alexnet_jax.data.sources._tars import Archive, Members
from alexnet_jax.data.sources.folder import class_names, read_split

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
SOLUTION = "LOC_val_solution.csv"
MAPPING = "LOC_synset_mapping.txt"


def open_imagenet(directory: str, *, val_fraction: float | None = None) -> Source:
    """ImageNet in one of its layouts, see the module; archives come first where there are several.

    Args:
      directory: where the files are.
      val_fraction: must be None, for there is a validation split.

    Raises:
      DataError: a file is missing, damaged, or contradicts another; the message says which.
    """
    source = f"imagenet:{directory}"
    root = existing_folder(source, directory)
    if val_fraction is not None:
        raise DataError(f"{source} has a validation split: leave val_fraction ({val_fraction}) out")
    if (root / TRAIN_TAR).exists() or (root / VAL_TAR).exists():
        return _official(source, root)
    for base in (root / "ILSVRC", root):
        if (base / "Data" / "CLS-LOC").is_dir():
            return _kaggle(source, root, base / "Data" / "CLS-LOC")
    if (root / "train").is_dir():
        return _class_folders(source, root)
    raise DataError(
        f"{root} holds no form of ImageNet that is known: neither {TRAIN_TAR} and {VAL_TAR}, "
        "nor Kaggle's ILSVRC/Data/CLS-LOC, nor train/n01440764/... and val/n01440764/..."
    )


def _official(source: str, root: pathlib.Path) -> Source:
    for name in (TRAIN_TAR, VAL_TAR):
        if not (root / name).is_file():
            raise DataError(f"{root} lacks {name}: {OFFICIAL}")
    kit = find_kit(root)
    if kit is None:
        raise DataError(f"{root} lacks {KIT}.tar.gz (development kit, tasks 1 and 2) or {KIT}/: {OFFICIAL}")

    held = Archive(root / VAL_TAR)
    places = {name: (offset, size) for name, offset, size in held.members()}
    labels = truth_labels(str(held.path), places, kit)
    val = _Rows()
    for name in sorted(places, key=lambda name: (labels[name], name)):
        val.add(f"val/{name}", *places[name], labels[name])

    outer = Archive(root / TRAIN_TAR)
    inner = {name.removesuffix(".tar"): (offset, size) for name, offset, size in outer.members()}
    wnids = sorted(kit.words)
    _same_classes(f"{outer.path} (a member {wnids[0]}.tar for each class)", inner, wnids, f"the leaves of {META}")
    train = _Rows()
    for label, wnid in enumerate(wnids):
        before = len(train.names)
        for name, offset, size in sorted(outer.members(*inner[wnid])):
            train.add(f"train/{wnid}/{name}", offset, size, label)
        if len(train.names) == before:
            raise DataError(f"{outer.path}: the archive of class {wnid} is empty: {OFFICIAL}")

    notes = _other_counts(train.labels, wnids, kit.counts)
    files = [
        *zip(train.names, train.sizes, strict=True),
        *_by_class(wnids, val.names, val.sizes, val.labels),
    ]
    splits = {"train": train.members(outer), "val": val.members(held)}
    return Source(source, _named(source, wnids, kit.words), splits, fingerprint(files), tuple(notes))


def _kaggle(source: str, root: pathlib.Path, data: pathlib.Path) -> Source:
    tables = {}
    for name in (SOLUTION, MAPPING):
        # Beside ILSVRC/; DIR may be ILSVRC/ itself.
        found = [path for path in (root / name, data.parents[1] / name, data.parents[2] / name) if path.is_file()]
        if not found:
            raise DataError(f"{root} lacks {name}: {KAGGLE}")
        tables[name] = found[0]
    words, truth = read_mapping(tables[MAPPING]), read_solution(tables[SOLUTION])
    notes: list[str] = []
    wnids = _training_wnids(source, data)
    _same_classes(str(data / "train"), wnids, words, MAPPING)
    train = read_split(data, "train", wnids, notes)

    here = list_folder(str(data / "val"))
    if here.folders:
        raise DataError(
            f"{data / 'val'} has folders, such as {some(here.folders, 1)}; Kaggle's has images only: {KAGGLE}"
        )
    images = {name.rpartition(".")[0]: name for name in here.files}
    if images.keys() != truth.keys():
        raise DataError(
            f"{data / 'val'} has {len(images)} images, {tables[SOLUTION]} has {len(truth)} rows; "
            f"only one of them has {some(sorted(images.keys() ^ truth.keys()))}: {KAGGLE}"
        )
    place = {wnid: label for label, wnid in enumerate(wnids)}
    strange = sorted(set(truth.values()) - place.keys())
    if strange:
        raise DataError(f"{tables[SOLUTION]} names classes that {MAPPING} lacks: {some(strange)}: {KAGGLE}")
    val = Found()
    for label, name in sorted((place[truth[image]], name) for image, name in images.items()):
        val.add(str(data), f"val/{name}", label)

    files = [
        *zip(train.paths, train.sizes, strict=True),
        *_by_class(wnids, val.paths, val.sizes, val.labels),
    ]
    splits = {"train": train.examples(str(data)), "val": val.examples(str(data))}
    return Source(source, _named(source, wnids, words), splits, fingerprint(files), tuple(notes))


def _class_folders(source: str, root: pathlib.Path) -> Source:
    if not (root / "val").is_dir():
        raise DataError(
            f"{root} has train/ but no val/: make val/n01440764/..., "
            f"or put {TRAIN_TAR}, {VAL_TAR} and {KIT}.tar.gz there"
        )
    wnids = _training_wnids(source, root)
    kit = find_kit(root)
    words: Mapping[str, str] = {}
    if kit is not None:
        words = kit.words
        _same_classes(str(root / "train"), wnids, words, f"the leaves of {META}")
    elif (root / MAPPING).is_file():
        words = read_mapping(root / MAPPING)
        _same_classes(str(root / "train"), wnids, words, MAPPING)
    notes: list[str] = []
    train, val = read_split(root, "train", wnids, notes), read_split(root, "val", wnids, notes)
    if kit is not None:
        notes += _other_counts(train.labels, wnids, kit.counts)
    files = [*zip(train.paths, train.sizes, strict=True), *zip(val.paths, val.sizes, strict=True)]
    splits = {"train": train.examples(str(root)), "val": val.examples(str(root))}
    return Source(source, _named(source, wnids, words), splits, fingerprint(files), tuple(notes))


def _training_wnids(source: str, data: pathlib.Path) -> tuple[str, ...]:
    wnids = class_names(source, data / "train")
    strange = [name for name in wnids if not WNID.fullmatch(name)]
    if strange:
        raise DataError(
            f"{data / 'train'} has folders that are not named by WordNet ids (n01440764): {some(strange)}. "
            "Rename or remove them; class folders of other names are read by folder:DIR"
        )
    return wnids


def _same_classes(where: str, found: Iterable[str], wanted: Iterable[str], by: str) -> None:
    for names, fault in ((set(wanted) - set(found), "lacks"), (set(found) - set(wanted), "has unknown")):
        if names:
            raise DataError(f"{where} {fault} {len(names)} classes, going by {by}: {some(sorted(names))}")


def _other_counts(labels: Sequence[int], wnids: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    have = collections.Counter(labels)
    other = [
        f"{wnid} has {have[label]} of {counts[wnid]}" for label, wnid in enumerate(wnids) if have[label] != counts[wnid]
    ]
    if not other:
        return []
    more = f" and {len(other) - 3} more classes" if len(other) > 3 else ""
    return [f"Training images are not as many as {META} says: {', '.join(other[:3])}{more}."]


def _by_class(
    wnids: Sequence[str], names: Iterable[str], sizes: Iterable[int], labels: Iterable[int]
) -> list[tuple[str, int]]:
    """Names and sizes for the fingerprint, which depends on the labels then: val/n01440764/..."""
    return [
        (name.replace("/", f"/{wnids[label]}/", 1), size)
        for name, size, label in zip(names, sizes, labels, strict=True)
    ]


def _named(source: str, wnids: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    classes = tuple(f"{wnid} {words[wnid]}" if words.get(wnid) else wnid for wnid in wnids)
    check_classes(source, classes)
    return classes


class _Rows:
    """Members of an archive, gathered in little memory."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.offsets, self.sizes, self.labels = array("q"), array("q"), array("i")

    def add(self, name: str, offset: int, size: int, label: int) -> None:
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.labels.append(label)

    def members(self, archive: Archive) -> Members:
        offsets, sizes = np.array(self.offsets, np.int64), np.array(self.sizes, np.int64)
        return Members(archive, self.names, offsets, sizes, np.array(self.labels, np.int32))
