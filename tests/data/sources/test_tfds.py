"""Sets that TensorFlow Datasets has prepared, with TensorFlow blocked from import.

All of it happens in one other process, since importing TFDS takes seconds: it prepares small
sets in ArrayRecord form, opens them, and prints what it found.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from .miniature import encoded

PROGRAM = r"""
import base64, json, os, pathlib, shutil, sys

# Finders that don't see it. (None in sys.modules would make TFDS believe that it is loaded.)
class Blind:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "tensorflow" else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Blind(finder) for finder in sys.meta_path]

import numpy as np
import tensorflow_datasets as tfds
from alexnet_jax.data.sources import open_source
from tests_miniature import encoded

root = pathlib.Path(os.environ["TFDS_DATA_DIR"])
NAMES = ["kit fox, Vulpes", "purée"]

def prepare(name, splits, keys=("image", "label"), image=None, label=None, order=False):
    def info(self):
        features = {"image": image or tfds.features.Image(), "label": label or tfds.features.ClassLabel(names=NAMES),
                    "file_name": tfds.features.Text()}
        if order:
            features["picture"], features["kind"] = features.pop("image"), features.pop("label")
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys)
    def examples(self, split, count, unlabelled):
        for i in range(count):
            picture = encoded(i) if image is None else np.full((4, 5, 3), i, np.uint8)
            row = {"image": picture, "label": -1 if unlabelled else i % 2, "file_name": f"{i}.jpg"}
            if order:
                row["picture"], row["kind"] = row.pop("image"), row.pop("label")
            yield i, row
    def generators(self, manager):
        return {split: self._generate_examples(split, abs(count), count < 0) for split, count in splits.items()}
    body = {"VERSION": tfds.core.Version("1.0.0"), "_info": info, "_split_generators": generators,
            "_generate_examples": examples, "__module__": __name__}
    with tfds.core.registered.skip_registration():  # so that it is opened from its files, as another program does
        kind = type(name, (tfds.core.GeneratorBasedBuilder,), body)
    kind(file_format="array_record").download_and_prepare()

tfds.disable_progress_bar()
prepare("Three", {"train": 10, "validation": 4, "test": 3})
prepare("TestOnly", {"train": 40, "test": 3})
prepare("Unlabelled", {"train": 10, "validation": 4, "test": -3})
prepare("TrainOnly", {"train": 40})
prepare("NoTrain", {"validation": 4})
prepare("Keyed", {"train": 4, "val": 2}, keys=("picture", "kind"), order=True)
prepare("Numbers", {"train": 4, "validation": 2}, label=tfds.features.Scalar(np.int64))
prepare("Arrays", {"train": 4, "validation": 2}, image=tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8))
old = root / "old_form" / "1.0.0"
shutil.copytree(root / "three" / "1.0.0", old)
for path in list(old.iterdir()):
    if "array_record" in path.name:
        path.rename(old / path.name.replace("array_record", "tfrecord").replace("three", "old_form"))
about = json.loads((old / "dataset_info.json").read_text())
about["fileFormat"], about["name"] = "tfrecord", "old_form"
for split in about["splits"]:
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
(old / "dataset_info.json").write_text(json.dumps(about))
damaged = root / "damaged" / "1.0.0"
shutil.copytree(root / "three" / "1.0.0", damaged)
about = json.loads((damaged / "dataset_info.json").read_text())
about["name"] = "damaged"
(damaged / "dataset_info.json").write_text(json.dumps(about))
for path in list(damaged.iterdir()):
    if "array_record" in path.name:
        data = bytearray(path.read_bytes())
        data[1000:1100] = bytes(100)
        path.rename(damaged / path.name.replace("three", "damaged"))
        (damaged / path.name.replace("three", "damaged")).write_bytes(data)

def plain(image):
    return base64.b64encode(image).decode() if isinstance(image, bytes) else image.tolist()

found = {}
for key, (name, fraction) in json.load(sys.stdin).items():
    try:
        source = open_source(name, val_fraction=fraction)
    except ValueError as error:
        found[key] = {"error": str(error), "kind": type(error).__name__}
        continue
    splits = {}
    for split, examples in source.splits.items():
        splits[split] = rows = []
        for index in range(len(examples)):
            try:
                image, label = examples.load(index)
                rows.append([examples.name(index), plain(image), label])
            except OSError as error:
                rows.append([examples.name(index), str(error), None])
    found[key] = {"classes": source.classes, "notes": source.notes, "splits": splits, "fingerprint": source.fingerprint,
                  "name": source.name}
try:
    import tensorflow
except ImportError:
    found["blocked"] = True
found["loaded"] = [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
print(json.dumps(found))
"""

CASES = {
    "three": ("tfds:three", None),
    "version": ("tfds:three:1.0.0", None),
    "wildcard": ("tfds:three:1.*.*", None),
    "other version": ("tfds:three:2.0.0", None),
    "fraction beside val": ("tfds:three", 0.1),
    "test only": ("tfds:test_only", None),
    "test only, fraction": ("tfds:test_only", 0.3),
    "unlabelled": ("tfds:unlabelled", None),
    "train only": ("tfds:train_only", None),
    "train only, fraction": ("tfds:train_only", 0.3),
    "bad fraction": ("tfds:train_only", 1.0),
    "no train": ("tfds:no_train", None),
    "keyed": ("tfds:keyed", None),
    "numbers": ("tfds:numbers", None),
    "arrays": ("tfds:arrays", None),
    "old form": ("tfds:old_form", None),
    "damaged": ("tfds:damaged", None),
    "not prepared": ("tfds:mnist", None),
    "config": ("tfds:imagenette/320px-v2", None),
    "by hand": ("tfds:imagenet2012:5.1.0", None),
    "no such version": ("tfds:mnist:9.9.9", None),
    "no such config": ("tfds:mnist/nonesuch", None),
    "unknown": ("tfds:mnst", None),
    "no name": ("tfds:../three", None),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the other process found, by case."""
    root = tmp_path_factory.mktemp("tfds")
    shutil.copy(pathlib.Path(__file__).with_name("miniature.py"), root / "tests_miniature.py")
    environment = os.environ | {"TFDS_DATA_DIR": str(root / "sets")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=environment,
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def names(rows):
    return [name for name, _, _ in rows]


def test_tensorflow_was_blocked_and_never_asked_for(found):
    assert found["blocked"]
    assert found["loaded"] == []


def test_the_bytes_come_as_they_were_given(found):
    case = found["three"]
    assert case["classes"] == ["kit fox, Vulpes", "purée"]
    assert not case["notes"]
    assert case["name"] == "tfds:three"
    for split, count in (("train", 10), ("val", 4), ("test", 3)):
        rows = case["splits"][split]
        tfds_name = {"val": "validation"}.get(split, split)
        assert names(rows) == [f"{tfds_name}/{index}" for index in range(count)]
        # TFDS shuffles when it prepares.
        wanted = {base64.b64encode(encoded(index)).decode(): index % 2 for index in range(count)}
        assert {image: label for _, image, label in rows} == wanted


def test_versions(found):
    assert found["version"]["splits"] == found["wildcard"]["splits"] == found["three"]["splits"]
    assert found["other version"]["error"].endswith("2.0.0 is not prepared, 1.0.0 is: write tfds:three:1.0.0")


def test_test_stands_in_for_validation(found):
    case = found["test only"]
    assert names(case["splits"]["val"]) == ["test/0", "test/1", "test/2"]
    assert "test" not in case["splits"]
    assert "Validation is the split 'test'" in case["notes"][0]


@pytest.mark.parametrize(("key", "test"), [("test only, fraction", True), ("train only, fraction", False)])
def test_val_fraction(found, key, test):
    splits = found[key]["splits"]
    assert sorted(names(splits["train"]) + names(splits["val"])) == sorted(f"train/{index}" for index in range(40))
    assert 4 < len(splits["val"]) < 21
    assert ("test" in splits) == test
    assert splits["val"] == [row for row in splits["train"] + splits["val"] if row[0] in names(splits["val"])]


def test_an_unlabelled_test_split_is_left_out(found):
    assert list(found["unlabelled"]["splits"]) == ["train", "val"]
    assert found["unlabelled"]["notes"] == ["The split 'test' is not used: it has no labels."]


def test_features_by_supervised_keys_and_arrays(found):
    assert sorted(label for _, _, label in found["keyed"]["splits"]["train"]) == [0, 0, 1, 1]
    rows = found["arrays"]["splits"]["train"]
    assert all(np.array(image).shape == (4, 5, 3) for _, image, _ in rows)
    assert all(np.array(image)[0, 0, 0] % 2 == label for _, image, label in rows)


def test_damage_is_an_error_of_the_image(found):
    rows = found["damaged"]["splits"]["train"]
    assert [text[:28] for _, text, label in rows if label is None] == ["can't be read (RuntimeError:"]
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("fraction beside val", ["has a validation split, 'validation'", "leave val_fraction"]),
        ("train only", ["no validation split", "--val-fraction 0.1 (config key data.val_fraction)"]),
        ("bad fraction", ["must be between 0 and 1"]),
        ("no train", ["has no split 'train', only validation"]),
        ("numbers", ["no image with a class label", "file_name"]),
        ("old form", ["in tfrecord form", "alexnet-jax[tfds-build]", "--file_format=array_record --overwrite`"]),
        (
            "not prepared",
            ["is not prepared", "alexnet-jax[tfds-build]", "`tfds build mnist --file_format=array_rec"],
        ),
        ("config", ["`tfds build imagenette/320px-v2 --file_format=array_record`"]),
        ("by hand", ["`tfds build imagenet2012:5.1.0 --file_format=array_record`", "downloads by hand"]),
        ("no such version", ["tfds:mnist:9.9.9 can't be opened", "only: 3.0.1"]),
        ("no such config", ["tfds:mnist/nonesuch"]),
        ("unknown", ["knows no set 'mnst'", "did you mean tfds:mnist?"]),
        ("no name", ["is no name of a set"]),
    ],
)
def test_what_is_refused(found, key, texts):
    case = found[key]
    assert case.get("kind") == "DataError", case
    assert "\n" not in case["error"]
    for text in texts:
        assert text in case["error"], case["error"]
