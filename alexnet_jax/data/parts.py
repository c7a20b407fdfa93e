"""The pieces of a preparation: what is to be made, part by part, so that it can go on after any end.

A split's images are cut into parts of `Plan.per_part` of the source's images. A part is
written under another name and takes its place when it is whole; what else is known of it
(`About`) follows as `unfinished/<part>.npz`. A part that has both is done, whoever made it
and however its maker ended. All sums are of integers, so neither the number of threads
nor an interruption changes a bit of the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import socket
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from alexnet_jax.data.prepared import FORMAT, MANIFEST, UNFINISHED, DataError
from alexnet_jax.data.sources import Source

PER_PART = 4096


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a prepared folder.

    Attributes:
      format: of the prepared folder.
      source: the source's name.
      fingerprint: the source's.
      classes: the classes' names.
      counts: the source's images by split, broken ones included.
      image_size: pixels of the images' sides.
      resize_rule: see `alexnet_jax.models.resize`.
      encoding: "raw" or "jpeg".
      quality: of the JPEG files; None for raw.
      max_pixels: larger images are not decoded.
      per_part: images of the source in a part.
      notes: what the source said of itself.
    """

    format: int
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    image_size: int
    resize_rule: str
    encoding: str
    quality: int | None
    max_pixels: int
    per_part: int
    notes: tuple[str, ...]

    def parts(self) -> list[Part]:
        """Every part, in order."""
        found = []
        for split, count in self.counts.items():
            for index, start in enumerate(range(0, count, self.per_part)):
                found.append(Part(split, index, start, min(start + self.per_part, count)))
        return found


@dataclasses.dataclass(frozen=True)
class Part:
    """The images `start` to `stop` of a split of the source."""

    split: str
    index: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"{self.split}-{self.index:05d}.bin"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass
class About:
    """What is known of a part.

    Attributes:
      checksum: of its file.
      labels: (n,), int32, of the images in it.
      names: where they came from.
      sizes: (n,), int32, bytes of each.
      digests: (n, 16), uint8, a hash of each image's file.
      skipped: (name, reason) of those left out.
      image_sum: (S, S, 3), uint32, the sum of the images.
      products: (3, 3), float64 integers, the sum over all pixels of the products of RGB values.
    """

    checksum: str
    labels: np.ndarray
    names: list[str]
    sizes: np.ndarray
    digests: np.ndarray
    skipped: list[tuple[str, str]]
    image_sum: np.ndarray
    products: np.ndarray

    def save(self, path: pathlib.Path) -> None:
        """Writes it, whole or not at all."""
        text = json.dumps({"checksum": self.checksum, "names": self.names, "skipped": self.skipped})
        arrays = {key: value for key, value in vars(self).items() if isinstance(value, np.ndarray)}
        with replacing(path, path.parent) as file:
            np.savez(file, allow_pickle=False, text=np.frombuffer(text.encode(), np.uint8), **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> About:
        """Reads it."""
        with path.open("rb") as file, np.load(file) as stored:
            arrays = dict(stored)
        text = json.loads(arrays.pop("text").tobytes())
        skipped = [(name, reason) for name, reason in text["skipped"]]
        return cls(checksum=text["checksum"], names=text["names"], skipped=skipped, **arrays)


class CannotWriteError(DataError):
    """The folder can't be written."""


class Work:
    """The folder `unfinished` of a preparation: its plan and what is known of its parts."""

    def __init__(self, out: pathlib.Path):
        self.out = out
        self.folder = out / UNFINISHED

    def check_empty(self) -> None:
        """Refuses a folder that holds anything but a preparation.

        Raises:
          DataError: it does.
        """
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"{self.out} is a file: choose another folder")
        if not self.folder.is_dir() and self.out.is_dir() and any(self.out.iterdir()):
            raise DataError(f"{self.out} is not empty: choose another folder, or delete it")

    def begin(self, plan: Plan) -> Plan:
        """Writes the plan, or checks that the earlier one is the same; returns the one that counts.

        Where the source is mounted, and what it said of itself, may differ.

        Raises:
          DataError: the folder was begun with another plan.
        """
        path = self.folder / "plan.json"
        if path.is_file():
            earlier = self.plan()
            changed = different(earlier, plan, ignore=("source", "notes", "per_part"))
            if changed:
                raise DataError(
                    f"{self.out} holds an unfinished preparation with other settings ({'; '.join(changed)}): "
                    "go back to those, or delete it"
                )
            return earlier
        with replacing(path, self.folder) as file:
            file.write(json.dumps(dataclasses.asdict(plan), indent=1).encode())
        return plan

    def plan(self) -> Plan:
        """The plan that the folder was begun with.

        Raises:
          DataError: there is none, or one of another version of this program.
        """
        path = self.folder / "plan.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise DataError(f"{self.out} was begun in format {values['format']}, not {FORMAT}: delete it")
            return Plan(**{**values, "classes": tuple(values["classes"]), "notes": tuple(values["notes"])})
        except DataError:
            raise
        except OSError as error:
            if (self.out / MANIFEST).is_file():
                raise DataError(f"{self.out} is finished already") from None
            raise DataError(f"{self.out} holds no preparation that can go on ({error})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): delete {self.out} and prepare it anew") from None

    def about(self, part: Part) -> About | None:
        """What is known of a part; None if it is not done."""
        try:
            found = About.load(self._sidecar(part))
            size = (self.out / part.file).stat().st_size
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        return found if size == int(found.sizes.sum(dtype=np.int64)) else None

    def finish_part(self, part: Part, about: About, partial: pathlib.Path) -> None:
        """Puts a part's file at its place, on the disk, and then says that it is done."""
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, self.out / part.file)
        about.save(self._sidecar(part))

    def _sidecar(self, part: Part) -> pathlib.Path:
        return self.folder / f"{part.file}.npz"

    def partial(self, part: Part) -> pathlib.Path:
        """Where a part's file is written before it takes its place."""
        return self.folder / f"{part.file}.{_owner()}.partial"

    def sweep(self, parts: Sequence[Part]) -> None:
        """Removes what killed processes left of these parts."""
        for part in parts:
            for path in self.folder.glob(f"{part.file}.*partial"):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, shard: tuple[int, int] = (1, 1), *, wait: bool = False) -> Iterator[None]:
        """Holds the folder, or one shard of it, against other processes; ends with the process.

        Shards of one number share the folder; anything else has it alone.

        Raises:
          DataError: another process holds it, and `wait` is false.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            if shard[1] > 1:
                for path in self.folder.glob("lock-*"):
                    if not path.name.endswith(f"-of-{shard[1]}"):
                        with contextlib.ExitStack() as probe:  # another division, if it is at work now
                            self._hold(probe, path.name, shared=False, wait=wait)
                self._hold(held, f"lock-{shard[0]}-of-{shard[1]}", shared=False, wait=wait)
            self._hold(held, "lock", shared=shard[1] > 1, wait=wait)
            yield

    def _hold(self, held: contextlib.ExitStack, name: str, *, shared: bool, wait: bool) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        file = held.enter_context((self.folder / name).open("w"))
        told = False
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not wait:
                    raise DataError(f"another process is preparing {self.out}: let it finish, or stop it") from None
            except OSError:  # a file system without locks
                return
            if not told:
                print(f"waiting for another process, which prepares {self.out}", file=sys.stderr)
                told = True
            time.sleep(0.2)


def make_plan(
    source: Source,
    *,
    size: int,
    rule: str,
    encoding: str,
    quality: int,
    max_pixels: int,
    per_part: int = PER_PART,
) -> Plan:
    """The plan for a source."""
    return Plan(
        format=FORMAT,
        source=source.name,
        fingerprint=source.fingerprint,
        classes=tuple(source.classes),
        counts={split: len(examples) for split, examples in source.splits.items()},
        image_size=size,
        resize_rule=rule,
        encoding=encoding,
        quality=quality if encoding == "jpeg" else None,
        max_pixels=max_pixels,
        per_part=per_part,
        notes=tuple(source.notes),
    )


def different(earlier: Plan, now: Plan, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """What differs between two plans, in words."""
    found = []
    for field in dataclasses.fields(Plan):
        then, this = getattr(earlier, field.name), getattr(now, field.name)
        if then != this and field.name not in ignore:
            short = field.name in ("classes", "fingerprint", "notes")
            found.append(f"other {field.name}" if short else f"{field.name} {then!r} there, {this!r} now")
    return found


def _owner() -> str:
    """Tells the files of this process from those of others, also on other machines."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def replacing(path: pathlib.Path, folder: pathlib.Path) -> Iterator[Any]:
    """A binary file that takes its place, on the disk, when the block ends well; written in `folder` until then."""
    partial = folder / f"{path.name}.{_owner()}.partial"
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class Kept(NamedTuple):
    """An image that goes into a part: where it came from, its label, a hash of its file, the bytes it takes."""

    name: str
    label: int
    digest: bytes
    size: int


class PartWriter:
    """Writes a part's file piece by piece and keeps count of it."""

    def __init__(self, file: Any, size: int):
        self._file = file
        self._hash = xxhash.xxh3_128()
        self._labels: list[int] = []
        self._sizes: list[int] = []
        self._digests: list[bytes] = []
        self._names: list[str] = []
        self._skipped: list[tuple[str, str]] = []
        self._image_sum = np.zeros((size, size, 3), np.uint32)  # 16 million images of 255 fit
        self._products = np.zeros((3, 3))

    def skip(self, name: str, reason: str) -> None:
        """An image that is left out."""
        self._skipped.append((name, reason))

    def add(self, content: bytes | memoryview, kept: Sequence[Kept]) -> None:
        """The bytes of some images, one after another."""
        self._file.write(content)
        self._hash.update(content)
        self._labels += [image.label for image in kept]
        self._sizes += [image.size for image in kept]
        self._digests += [image.digest for image in kept]
        self._names += [image.name for image in kept]

    def add_moments(self, image_sum: np.ndarray, products: np.ndarray) -> None:
        """The sums over some images, integers."""
        self._image_sum += image_sum
        self._products += products

    def about(self) -> About:
        """What became of the part."""
        return About(
            checksum=self._hash.hexdigest(),
            labels=np.array(self._labels, np.int32),
            names=self._names,
            sizes=np.array(self._sizes, np.int32),
            digests=np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, 16),
            skipped=self._skipped,
            image_sum=self._image_sum,
            products=self._products,
        )


@contextlib.contextmanager
def full_disk_in_words(out: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"the disk of {out} is full ({error.strerror}): free some space and run the same command again; "
                "what is done is kept"
            ) from None
        raise CannotWriteError(f"{out} can't be written ({error})") from None
