"""What says which class an image of ImageNet has: the development kit, and Kaggle's tables."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import pathlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources._files import printable, some

KIT = "ILSVRC2012_devkit_t12"
META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
OFFICIAL = "image-net.org has it, for registered users, on the page of the 2012 challenge"
KAGGLE = "Kaggle's imagenet-object-localization-challenge has it"
WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"(?:.*\D)?(\d+)\.\w+")


@dataclasses.dataclass(frozen=True)
class Kit:
    """The development kit.

    Attributes:
      wnids: the WordNet id of each leaf, by its ILSVRC2012_ID.
      words: of each leaf, by WordNet id.
      counts: of each leaf's training images, by WordNet id.
      truth: the ILSVRC2012_ID of each validation image, in the order of the files' numbers.
    """

    wnids: Mapping[int, str]
    words: Mapping[str, str]
    counts: Mapping[str, int]
    truth: tuple[int, ...]


def find_kit(root: pathlib.Path) -> Kit | None:
    """The kit in a folder: its archive, or unpacked as ILSVRC2012_devkit_t12/ or data/; None where there is none.

    Raises:
      DataError: it is damaged or not complete.
    """
    for folder in (root / KIT, root):
        if (folder / META).is_file() or (folder / TRUTH).is_file():
            for name in (META, TRUTH):
                if not (folder / name).is_file():
                    raise DataError(f"{folder} lacks {name}: unpack {KIT}.tar.gz again")
            return _kit(str(folder), *(_bytes(folder / name) for name in (META, TRUTH)))
    for name in (f"{KIT}.tar.gz", f"{KIT}.tar"):
        if (root / name).is_file():
            return _kit(str(root / name), *_unpacked(root / name))
    return None


def _unpacked(path: pathlib.Path) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    with _reading(str(path), OFFICIAL), tarfile.open(path) as tar:
        for member in tar:
            for name in (META, TRUTH):
                if member.isreg() and f"/{member.name}".endswith(f"/{name}"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    for name in (META, TRUTH):
        if name not in found:
            raise DataError(f"{path} holds no {name}: {OFFICIAL}")
    return found[META], found[TRUTH]


def _kit(where: str, meta: bytes, truth: bytes) -> Kit:
    import scipy.io

    wnids: dict[int, str] = {}
    words, counts = {}, {}
    with _reading(f"{where}: {META}", OFFICIAL):
        # Fields by name; synsets with children are inner nodes of WordNet's tree, not classes.
        for synset in scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"].reshape(-1):
            if int(synset["num_children"]):
                continue
            number, wnid = int(synset["ILSVRC2012_ID"]), str(synset["WNID"])
            if number in wnids or wnid in words:
                raise DataError(f"{where}: {META} has {wnid} or its number {number} twice: {OFFICIAL}")
            wnids[number], words[wnid] = wnid, str(synset["words"])
            counts[wnid] = int(synset["num_train_images"])
    with _reading(f"{where}: {TRUTH}", OFFICIAL):
        numbers = tuple(int(line) for line in truth.split())
    strange = sorted(set(numbers) - set(wnids))
    if strange:
        raise DataError(
            f"{where}: {TRUTH} names {len(strange)} ids that are no leaves of {META}: {some(map(str, strange))}"
        )
    return Kit(wnids, words, counts, numbers)


def truth_labels(where: str, names: Iterable[str], kit: Kit) -> dict[str, int]:
    """The label of each validation image: its place among the sorted WordNet ids.

    Line n of the ground truth is the image of number n, wherever that lies in an archive or
    folder, and holds an ILSVRC2012_ID, which is translated.

    Args:
      where: the archive's or folder's name.
      names: of the images, such as "ILSVRC2012_val_00000001.JPEG".
      kit: the development kit.

    Raises:
      DataError: the numbers aren't those of the ground truth's lines.
    """
    place = {wnid: label for label, wnid in enumerate(sorted(kit.wnids.values()))}
    names, labels, seen = list(names), {}, set()
    if len(names) != len(kit.truth):
        raise DataError(
            f"{where} has {len(names)} images, {TRUTH} has {len(kit.truth)} lines: one isn't complete; {OFFICIAL}"
        )
    for name in names:
        match = _NUMBER.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(kit.truth) or number in seen:
            raise DataError(f"{where}: {name!r} has no number of its own from 1 to {len(kit.truth)}")
        seen.add(number)
        labels[name] = place[kit.wnids[kit.truth[number - 1]]]
    return labels


def read_mapping(path: pathlib.Path) -> dict[str, str]:
    """Words by WordNet id, of Kaggle's LOC_synset_mapping.txt: "n01440764 tench, Tinca tinca" a line.

    Raises:
      DataError: a line is of another form, or the file can't be read.
    """
    found = {}
    with _reading(str(path), KAGGLE):
        for line in _bytes(path).decode("utf-8").splitlines():
            wnid, _, words = line.strip().partition(" ")
            if not WNID.fullmatch(wnid):
                raise DataError(f"{path}: the line {line!r} doesn't begin with a WordNet id: {KAGGLE}")
            found[wnid] = words.strip()
    return found


def read_solution(path: pathlib.Path) -> dict[str, str]:
    """WordNet ids by image, of Kaggle's LOC_val_solution.csv: the first class of each row's boxes.

    Raises:
      DataError: a row is of another form, or the file can't be read.
    """
    found = {}
    with _reading(str(path), KAGGLE):
        rows = csv.DictReader(io.StringIO(_bytes(path).decode("utf-8")))
        for row in rows:
            wnid = row["PredictionString"].split(" ")[0]
            if not WNID.fullmatch(wnid):
                raise DataError(f"{path}: {row['ImageId']!r} has {wnid!r} where a WordNet id belongs: {KAGGLE}")
            found[row["ImageId"]] = wnid
    return found


def _bytes(path: pathlib.Path) -> bytes:
    with _reading(str(path), "check its permissions"):
        return path.read_bytes()


@contextlib.contextmanager
def _reading(what: str, remedy: str) -> Iterator[None]:
    """Turns what goes wrong with a file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # what tarfile, gzip, scipy.io and csv raise on damaged files has no common base
        text = printable(str(error)).replace("\n", " ")
        raise DataError(f"{what} can't be read ({type(error).__name__}: {text}): {remedy}") from None
