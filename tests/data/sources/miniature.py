"""A miniature ImageNet, as dirty as the real one, in each of the layouts that people have.

Three classes of two training images and two validation images each. What the real one has
and this has too: a CMYK JPEG, a PNG named .JPEG, a grey JPEG, ILSVRC ids in another order than WordNet
ids, synsets in meta.mat that are no leaves, archives in no order, words with commas and
with é. The order by ILSVRC id moves every class, so a label that wasn't translated is wrong.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import random
import tarfile

import numpy as np
import scipy.io
from PIL import Image

# (ILSVRC id, WordNet id, words, children). Sorted by WordNet id the leaves are 3, 1, 2.
SYNSETS = (
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n07753592", "purée, banana", 0),
    (3, "n01440764", "tench, Tinca tinca", 0),
    (4, "n00001740", "entity", 2),
    (5, "n02075296", "carnivore", 1),
)
WNIDS = ("n01440764", "n02119789", "n07753592")
CLASSES = ("n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis", "n07753592 purée, banana")
IDS = {wnid: number for number, wnid, _, _ in SYNSETS}


@dataclasses.dataclass(frozen=True)
class Miniature:
    """The images.

    Attributes:
      train: by WordNet id, then by file name.
      val: WordNet id and bytes by file name.
    """

    train: dict[str, dict[str, bytes]]
    val: dict[str, tuple[str, bytes]]


def encoded(seed: int, mode: str = "RGB", form: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An image file of noise."""
    bands = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode=None if mode != "CMYK" else mode).save(file, form)
    return file.getvalue()


def make() -> Miniature:
    """The images of the miniature, the same at each call."""
    train = {
        wnid: {f"{wnid}_{number}.JPEG": encoded(10 * label + number, size=(30 + number, 40)) for number in (7, 10026)}
        for label, wnid in enumerate(WNIDS)
    }
    train["n01440764"]["n01440764_7.JPEG"] = encoded(1, "CMYK")
    train["n02119789"]["n02119789_7.JPEG"] = encoded(2, form="PNG")
    train["n07753592"]["n07753592_7.JPEG"] = encoded(3, "L")
    order = (2, 0, 1, 1, 0, 2)
    val = {
        f"ILSVRC2012_val_{number:08}.JPEG": (WNIDS[label], encoded(100 + number, "CMYK" if number == 4 else "RGB"))
        for number, label in enumerate(order, 1)
    }
    return Miniature(train, val)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to an archive."""
    about = tarfile.TarInfo(name)
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def tar_of(members: dict[str, bytes]) -> bytes:
    """An archive, its members in no order, the same at each call."""
    names = sorted(members)
    random.Random(1).shuffle(names)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            add(tar, name, members[name])
    return file.getvalue()


def meta_mat(counts: dict[str, int], synsets=SYNSETS) -> bytes:
    """data/meta.mat of the development kit."""
    kinds = [
        ("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object), ("num_children", object),
        ("children", object), ("wordnet_height", object), ("num_train_images", object),
    ]  # fmt: skip
    rows = np.empty((len(synsets), 1), kinds)
    for place, (number, wnid, words, children) in enumerate(synsets):
        below, images = np.arange(1.0, children + 1), float(counts.get(wnid, 0))
        rows[place, 0] = (float(number), wnid, words, "a gloss", float(children), below, float(children > 0), images)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": rows})
    return file.getvalue()


def write_kit(root: pathlib.Path, images: Miniature, *, archive: bool = True) -> None:
    """The development kit, as ILSVRC2012_devkit_t12.tar.gz or as a folder."""
    truth = "".join(f"{IDS[wnid]}\n" for _, (wnid, _) in sorted(images.val.items()))
    files = {
        "ILSVRC2012_devkit_t12/readme.txt": b"readme",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat({wnid: len(files) for wnid, files in images.train.items()}),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    if archive:
        with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
            for name, data in files.items():
                add(tar, name, data)
    else:
        write(root, files)


def write(root: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes files, and the folders they take."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def official(root: pathlib.Path, images: Miniature, *, kit_archive: bool = True) -> None:
    """The official archives, and the development kit."""
    root.mkdir(parents=True, exist_ok=True)
    classes = {f"{wnid}.tar": tar_of(files) for wnid, files in images.train.items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of({name: data for name, (_, data) in images.val.items()}))
    write_kit(root, images, archive=kit_archive)


def kaggle(root: pathlib.Path, images: Miniature) -> None:
    """Kaggle's layout; as there, test/ has no labels."""
    data = "ILSVRC/Data/CLS-LOC"
    files = {f"{data}/train/{wnid}/{name}": d for wnid, some in images.train.items() for name, d in some.items()}
    files |= {f"{data}/val/{name}": d for name, (_, d) in images.val.items()}
    files |= {f"{data}/test/ILSVRC2012_test_00000001.JPEG": encoded(5)}
    rows = [f"{name.removesuffix('.JPEG')},{wnid} 1 2 30 20 {wnid} 3 4 5 6 " for name, (wnid, _) in images.val.items()]
    rows.reverse()
    files["LOC_val_solution.csv"] = "\n".join(["ImageId,PredictionString", *rows, ""]).encode()
    files["LOC_synset_mapping.txt"] = "".join(f"{line}\n" for line in CLASSES).encode()
    write(root, files)


def class_folders(root: pathlib.Path, images: Miniature, *, words: bool = True) -> None:
    """Class folders of both splits; with words, the development kit too."""
    files = {f"train/{wnid}/{name}": d for wnid, some in images.train.items() for name, d in some.items()}
    files |= {f"val/{wnid}/{name}": d for name, (wnid, d) in images.val.items()}
    write(root, files)
    if words:
        write_kit(root, images)


LAYOUTS = {
    "archives": official,
    "archives, kit unpacked": lambda root, images: official(root, images, kit_archive=False),
    "kaggle": kaggle,
    "class folders": class_folders,
}
"""What writes each layout into a folder."""
