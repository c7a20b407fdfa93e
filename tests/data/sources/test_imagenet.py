"""A miniature ImageNet in every layout, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import _devkit, open_source

from . import miniature


@pytest.fixture(scope="module")
def images():
    return miniature.make()


@pytest.fixture
def archives(tmp_path, images):
    """The official files."""
    miniature.official(tmp_path, images)
    return tmp_path


@pytest.fixture
def kaggle(tmp_path, images):
    """Kaggle's layout."""
    miniature.kaggle(tmp_path, images)
    return tmp_path


def everything(split):
    """(label, bytes) of each image, in order."""
    return [split.load(index)[::-1] for index in range(len(split))]


def expected(images):
    """What each split must hold, straight from the maker: classes by WordNet id, names in order."""
    train = [
        (label, images.train[wnid][name])
        for label, wnid in enumerate(sorted(images.train))
        for name in sorted(images.train[wnid])
    ]
    val = [
        (label, data)
        for label, wnid in enumerate(sorted(images.train))
        for _, (owner, data) in sorted(images.val.items())
        if owner == wnid
    ]
    return {"train": train, "val": val}


def refused(root, text):
    with pytest.raises(DataError, match=text) as caught:
        open_source(f"imagenet:{root}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", miniature.LAYOUTS)
def test_every_layout_gives_the_same(layout, tmp_path, images):
    miniature.LAYOUTS[layout](tmp_path, images)
    source = open_source(f"imagenet:{tmp_path}")
    assert source.classes == miniature.CLASSES
    assert source.name == f"imagenet:{tmp_path}"
    assert not source.notes
    assert {name: everything(split) for name, split in source.splits.items()} == expected(images)
    names = [split.name(index) for split in source.splits.values() for index in range(len(split))]
    assert len(set(names)) == 12
    assert names[0] == "train/n01440764/n01440764_10026.JPEG"


def test_the_fingerprint_is_of_the_images_not_of_the_layout(tmp_path, images):
    found = set()
    for number, write in enumerate(miniature.LAYOUTS.values()):
        write(tmp_path / str(number), images)
        found.add(open_source(f"imagenet:{tmp_path / str(number)}").fingerprint)
    assert len(found) == 1
    name = next(iter(images.val))
    changed = dataclasses.replace(images, val=images.val | {name: (miniature.WNIDS[0], images.val[name][1])})
    assert changed.val != images.val
    miniature.official(tmp_path / "relabelled", changed)
    assert open_source(f"imagenet:{tmp_path / 'relabelled'}").fingerprint not in found


def test_ids_taken_as_labels_would_be_seen(tmp_path, images, monkeypatch):
    """The fixture can tell: were ILSVRC ids used as they stand, labels would differ."""

    def untranslated(where, names, kit):
        return {name: kit.truth[index] - 1 for index, name in enumerate(sorted(names))}

    monkeypatch.setattr("alexnet_jax.data.sources.imagenet.truth_labels", untranslated)
    miniature.official(tmp_path, images)
    right = {data: label for label, data in expected(images)["val"]}
    found = everything(open_source(f"imagenet:{tmp_path}").splits["val"])
    assert len(found) == 6
    assert all(label != right[data] for label, data in found)


def test_the_miniature_is_as_dirty_as_it_says(images):
    def opened(wnid):
        return Image.open(io.BytesIO(images.train[wnid][f"{wnid}_7.JPEG"]))

    assert opened("n01440764").mode == "CMYK"
    assert opened("n02119789").format == "PNG"
    assert opened("n07753592").mode == "L"
    leaves = [(wnid, number) for number, wnid, _, children in miniature.SYNSETS if not children]
    assert [number for _, number in sorted(leaves)] == [3, 1, 2]
    with tarfile.open(fileobj=io.BytesIO(miniature.tar_of(dict.fromkeys(images.val, b"")))) as tar:
        assert tar.getnames() != sorted(tar.getnames())


def test_nothing_is_unpacked_and_threads_read_at_once(archives, images):
    before = sorted(os.listdir(archives))
    train = open_source(f"imagenet:{archives}").splits["train"]
    wanted, wrong = expected(images)["train"], []

    def read(seed):
        for index in np.random.default_rng(seed).integers(0, len(train), 300).tolist():
            if train.load(index)[::-1] != wanted[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(os.listdir(archives)) == before


def test_kaggle_from_the_folder_itself(kaggle, images):
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        shutil.move(kaggle / name, kaggle / "ILSVRC" / name)
    source = open_source(f"imagenet:{kaggle / 'ILSVRC'}")
    assert {name: everything(split) for name, split in source.splits.items()} == expected(images)


def test_class_folders_without_words(tmp_path, images):
    miniature.class_folders(tmp_path, images, words=False)
    assert open_source(f"imagenet:{tmp_path}").classes == miniature.WNIDS


def test_val_fraction_is_refused(archives):
    with pytest.raises(DataError, match=r"has a validation split.*0\.1"):
        open_source(f"imagenet:{archives}", val_fraction=0.1)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_a_missing_file_is_named(archives, name):
    (archives / name).unlink()
    refused(archives, rf"lacks {name}.*image-net\.org")


@pytest.mark.parametrize("name", ["LOC_val_solution.csv", "LOC_synset_mapping.txt"])
def test_a_missing_table_of_kaggle_is_named(kaggle, name):
    (kaggle / name).unlink()
    refused(kaggle, f"lacks {name}: Kaggle")


def test_nothing_there(tmp_path):
    refused(tmp_path, "no form of ImageNet")
    refused(tmp_path / "nonesuch", "nonesuch does not exist")


def test_archives_cut_anywhere_are_refused(archives):
    """At each block of the validation archive, inside and between members."""
    path = archives / "ILSVRC2012_img_val.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    for size in [*range(0, end + 1, 512), 100, end - 100]:
        path.write_bytes(whole[:size])
        refused(archives, r"img_val\.tar is cut off or damaged at byte \d+")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_training_archive_is_refused(archives, share):
    path = archives / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = max(member.offset_data + member.size for member in tar)
    path.write_bytes(whole[: int(share * last)])
    refused(archives, r"img_train\.tar is cut off or damaged")


def test_a_cut_archive_inside_the_archive_is_refused(archives, images):
    classes = {f"{wnid}.tar": miniature.tar_of(files) for wnid, files in images.train.items()}
    classes["n02119789.tar"] = classes["n02119789.tar"][:1024]
    (archives / "ILSVRC2012_img_train.tar").write_bytes(miniature.tar_of(classes))
    refused(archives, r"img_train\.tar is cut off or damaged")


def test_no_archive_at_all(archives):
    (archives / "ILSVRC2012_img_train.tar").write_bytes(b"<html>please log in</html>" * 100)
    refused(archives, r"img_train\.tar is cut off or damaged")


def test_an_archive_that_shrinks_later_is_an_error_of_the_image(archives):
    val = open_source(f"imagenet:{archives}").splits["val"]
    os.truncate(archives / "ILSVRC2012_img_val.tar", 600)
    with pytest.raises(OSError, match="has it changed"):
        everything(val)


def test_classes_that_differ_from_the_kit(archives, images):
    classes = {f"{wnid}.tar": miniature.tar_of(files) for wnid, files in images.train.items()}
    fewer = {name: data for name, data in classes.items() if name != "n02119789.tar"}
    (archives / "ILSVRC2012_img_train.tar").write_bytes(miniature.tar_of(fewer))
    refused(archives, r"lacks 1 classes.*leaves.*'n02119789'")
    (archives / "ILSVRC2012_img_train.tar").write_bytes(miniature.tar_of(classes | {"n09999999.tar": b""}))
    refused(archives, "unknown 1 classes.*'n09999999'")
    (archives / "ILSVRC2012_img_train.tar").write_bytes(
        miniature.tar_of(classes | {"n02119789.tar": miniature.tar_of({})})
    )
    refused(archives, "archive of class n02119789 is empty")


def kit_of(root, images, *, truth=None, synsets=miniature.SYNSETS, counts=None):
    """Rewrites the kit of a folder, unpacked, with another content."""
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink(missing_ok=True)
    miniature.write_kit(root, images, archive=False)
    data = root / _devkit.KIT
    if truth is not None:
        (data / _devkit.TRUTH).write_text(truth)
    counts = dict.fromkeys(miniature.WNIDS, 2) if counts is None else counts
    (data / _devkit.META).write_bytes(miniature.meta_mat(counts, synsets))


def test_a_ground_truth_of_another_length(archives, images):
    kit_of(archives, images, truth="1\n2\n3\n1\n2\n")
    refused(archives, "has 6 images.* 5 lines")


def test_an_id_that_is_no_leaf(archives, images):
    kit_of(archives, images, truth="1\n2\n3\n4\n2\n99\n")
    refused(archives, r"2 ids that are no leaves.*'4', '99'")
    kit_of(archives, images, truth="1\n2\n3\nx\n2\n1\n")
    refused(archives, "ground_truth.txt can't be read")


def test_an_id_given_twice(archives, images):
    kit_of(archives, images, synsets=(*miniature.SYNSETS, (3, "n03000000", "again", 0)))
    refused(archives, "n03000000 or its number 3 twice")


def test_other_counts_are_a_note(archives, images):
    kit_of(archives, images, counts={"n01440764": 1300, "n02119789": 2, "n07753592": 2})
    (note,) = open_source(f"imagenet:{archives}").notes
    assert "n01440764 has 2 of 1300" in note
    assert "n02119789" not in note


@pytest.mark.parametrize("names", [("ILSVRC2012_val_00000001.JPEG", "other_00000001.JPEG"), ("a.JPEG", "b.JPEG")])
def test_validation_images_without_a_number_of_their_own(archives, images, names):
    val = {name: data for name, (_, data) in images.val.items()}
    for old, new in zip(["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"], names, strict=True):
        val[new] = val.pop(old)
    (archives / "ILSVRC2012_img_val.tar").write_bytes(miniature.tar_of(val))
    refused(archives, "has no number of its own from 1 to 6")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "can't be read"),
        (b"MATLAB 5.0 MAT-file" + bytes(400), "can't be read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "can't be read"),
    ],
)
def test_a_damaged_meta_mat(archives, images, data, text):
    kit_of(archives, images)
    (archives / _devkit.KIT / _devkit.META).write_bytes(data)
    refused(archives, rf"meta\.mat {text}.*image-net\.org")


def test_a_cut_meta_mat(archives, images):
    kit_of(archives, images)
    path = archives / _devkit.KIT / _devkit.META
    whole = path.read_bytes()
    for size in range(0, len(whole) - 8, 97):
        path.write_bytes(whole[:size])
        refused(archives, r"meta\.mat|leaves")


def test_damaged_kits(archives):
    path = archives / "ILSVRC2012_devkit_t12.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(archives, r"devkit_t12\.tar\.gz can't be read")
    path.write_bytes(gzip.compress(miniature.tar_of({"readme.txt": b""})))
    refused(archives, r"holds no data/meta\.mat")


def test_half_a_kit(archives, images):
    kit_of(archives, images)
    (archives / _devkit.KIT / _devkit.TRUTH).unlink()
    refused(archives, r"lacks data/ILSVRC2012_validation_ground_truth\.txt")


def test_kaggle_tables_that_do_not_fit(kaggle):
    solution = kaggle / "LOC_val_solution.csv"
    whole = solution.read_text()
    solution.write_text("\n".join(whole.splitlines()[:-1]))
    refused(kaggle, "has 6 images.*has 5 rows.*'ILSVRC2012_val_00000001'")
    solution.write_text(whole.replace("n01440764 1 2", "n03000000 1 2"))
    refused(kaggle, "names classes.*'n03000000'")
    solution.write_text(whole.replace("n01440764 1 2", "tench 1 2"))
    refused(kaggle, "'tench' where a WordNet id")
    solution.write_text("a,b\n1,2\n")
    refused(kaggle, "LOC_val_solution.csv can't be read")
    solution.write_bytes(b"\xff\xfe")
    refused(kaggle, "LOC_val_solution.csv can't be read")
    solution.write_text(whole)
    (kaggle / "LOC_synset_mapping.txt").write_text("tench\n")
    refused(kaggle, "'tench' doesn't begin with a WordNet id")
    (kaggle / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    refused(kaggle, "has unknown 2 classes, going by LOC_synset_mapping.txt")


def test_kaggle_images_in_class_folders(kaggle):
    val = kaggle / "ILSVRC/Data/CLS-LOC/val"
    (val / "n01440764").mkdir()
    refused(kaggle, "has folders, such as 'n01440764'")


def test_class_folders_of_other_names(tmp_path, images):
    miniature.class_folders(tmp_path, images)
    shutil.rmtree(tmp_path / "train" / "n01440764")
    refused(tmp_path, r"lacks 1 classes.*'n01440764'")
    (tmp_path / "train" / "tench").mkdir()
    refused(tmp_path, "'tench'.*folder:DIR")
    shutil.rmtree(tmp_path / "val")
    refused(tmp_path, "no val/")


def test_a_flat_val(tmp_path, images):
    miniature.class_folders(tmp_path, images)
    shutil.rmtree(tmp_path / "val")
    miniature.write(tmp_path / "val", {name: data for name, (_, data) in images.val.items()})
    refused(tmp_path, "6 files directly in it")
