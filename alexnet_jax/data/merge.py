"""The end of a preparation: from its parts to a finished folder."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.data.parts import About, Part, Plan, Work, different, full_disk_in_words, replacing
from alexnet_jax.data.prepared import MANIFEST, DataError, Statistics, file_checksum

_NAMED = 20  # duplicates listed by name


def merge(folders: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Finishes a folder from shards that were prepared there, or in folders of their own.

    Parts from other folders are linked where the file system allows it, or copied and
    their checksums verified; the other folders stay as they are.

    Args:
      folders: where the shards are; `out` itself may be one of them.
      out: the folder to finish.

    Raises:
      DataError: shards that do not belong together, or one that is not done.
    """
    works = [Work(folder) for folder in folders]
    plans = [work.plan() for work in works]
    for folder, plan in zip(folders, plans, strict=True):
        changed = different(plans[0], plan, ignore=("source", "notes"))
        if changed:
            raise DataError(f"{folders[0]} and {folder} do not belong together: {'; '.join(changed)}")
    target = Work(out)
    with full_disk_in_words(out):
        if out.resolve() not in [folder.resolve() for folder in folders]:
            target.check_empty()
        with target.lock():
            for part in target.begin(plans[0]).parts():
                if target.about(part) is not None:
                    continue
                for work in works:
                    about = work.about(part)
                    if about is not None:
                        _bring(part, about, work, target)
                        break
            finish(target)


def _bring(part: Part, about: About, source: Work, target: Work) -> None:
    partial = target.partial(part)
    partial.unlink(missing_ok=True)
    try:
        os.link(source.out / part.file, partial)
    except OSError:
        shutil.copyfile(source.out / part.file, partial)
        if file_checksum(partial) != about.checksum:
            partial.unlink()
            raise DataError(f"{source.out / part.file} is damaged: prepare that shard anew") from None
    target.finish_part(part, about, partial)


def finish(work: Work) -> None:
    """Writes everything but the images from what is known of the parts; the manifest last.

    Raises:
      DataError: a part is not done, or no image is left to train on.
    """
    plan = work.plan()
    known: list[tuple[Part, About]] = []
    missing = []
    moments = _Moments(plan.image_size)
    for part in plan.parts():
        about = work.about(part)
        if about is None:
            missing.append(part.file)
            continue
        if part.split == "train":
            moments.add(about)
        about.image_sum = np.zeros(0)  # the largest thing in it, not needed any more
        known.append((part, about))
    if missing:
        raise DataError(
            f"{work.out}: {len(missing):,} of {len(missing) + len(known):,} parts are not done, from {missing[0]} on: "
            "run the shards that are missing, then merge again"
        )
    splits: dict[str, Any] = {}
    digests: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for split in plan.counts:
        of_split = [(part, about) for part, about in known if part.split == split]
        splits[split] = _write_columns(work, split, of_split, sizes=plan.encoding == "jpeg")
        digests[split] = _joined([about.digests for _, about in of_split], (0, 16), np.uint8)
        names[split] = [name for _, about in of_split for name in about.names]
        if not splits[split]["count"] and split in ("train", "val"):
            raise DataError(f"{work.out}: not one image of {split!r} could be read; the source is broken")
    with replacing(work.out / "stats.npz", work.folder) as file:
        np.savez(file, **vars(moments.statistics()))
    with replacing(work.out / "classes.txt", work.folder) as file:
        file.write("".join(f"{name}\n" for name in plan.classes).encode())
    sums = {part.file: about.checksum for part, about in known if len(about.labels)}
    columns = ("labels.npy", "names.txt", *(("sizes.npy",) if plan.encoding == "jpeg" else ()))
    others = [work.out / name for name in ("classes.txt", "stats.npz", *(f"{s}_{c}" for s in splits for c in columns))]
    skipped = [
        {"split": part.split, "name": name, "reason": reason} for part, about in known for name, reason in about.skipped
    ]
    manifest = {
        "format": plan.format,
        "source": plan.source,
        **settings(plan),
        "splits": splits,
        "skipped": skipped,
        "duplicates": _duplicates(digests, names),
        "notes": [*plan.notes, *_missing_classes(plan, known)],
        "xxh3_128": dict(sorted((sums | {path.name: file_checksum(path) for path in others}).items())),
    }
    for part, about in known:
        if not len(about.labels):
            (work.out / part.file).unlink(missing_ok=True)
    with replacing(work.out / MANIFEST, work.folder) as file:
        file.write(json.dumps(manifest, indent=1).encode())
    shutil.rmtree(work.folder, ignore_errors=True)


def settings(plan: Plan) -> dict[str, Any]:
    """What a manifest says of its plan; folders with other values have another content."""
    return {
        "fingerprint": plan.fingerprint,
        "image_size": plan.image_size,
        "resize_rule": plan.resize_rule,
        "encoding": plan.encoding,
        "quality": plan.quality,
        "max_pixels": plan.max_pixels,
        "source_counts": plan.counts,
        "classes": list(plan.classes),
    }


def _joined(arrays: Sequence[np.ndarray], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(shape, dtype)


def _write_columns(work: Work, split: str, parts: Sequence[tuple[Part, About]], *, sizes: bool) -> dict[str, Any]:
    """Labels, names, and sizes of a split; returns its entry of the manifest."""
    labels = _joined([about.labels for _, about in parts], (0,), np.int32)
    with replacing(work.out / f"{split}_labels.npy", work.folder) as file:
        np.save(file, labels)
    if sizes:
        with replacing(work.out / f"{split}_sizes.npy", work.folder) as file:
            np.save(file, _joined([about.sizes for _, about in parts], (0,), np.int32))
    with replacing(work.out / f"{split}_names.txt", work.folder) as file:
        for _, about in parts:
            for name in about.names:
                # A name that is no Unicode is written as JSON's escapes of its bytes.
                file.write(json.dumps(name, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    files = [{"file": part.file, "count": len(about.labels)} for part, about in parts if len(about.labels)]
    return {"count": len(labels), "parts": files}


class _Moments:
    """The statistics, from sums of integers, so that the order of summation changes no bit."""

    def __init__(self, size: int):
        self._count = 0
        self._image_sum = np.zeros((size, size, 3), np.int64)
        self._products = np.zeros((3, 3))

    def add(self, about: About) -> None:
        self._count += len(about.labels)
        self._image_sum += about.image_sum
        self._products += about.products  # below 2**53 for 2 million images of 256 × 256 pixels

    def statistics(self) -> Statistics:
        mean_image = self._image_sum / self._count
        pixels = self._count * self._image_sum[..., 0].size
        mean = self._image_sum.sum((0, 1)) / pixels
        covariance = self._products / pixels - np.outer(mean, mean)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        eigenvalues = np.maximum(eigenvalues, 0)  # of grey images two are 0, or just below by rounding
        return Statistics(mean_image, mean, covariance, eigenvalues, eigenvectors)


def _duplicates(digests: dict[str, np.ndarray], names: dict[str, list[str]]) -> dict[str, Any]:
    """Files of other splits that training has too, by their hashes."""
    found: list[dict[str, str]] = []
    count = 0
    first_words = _first_words(digests["train"])
    order = np.argsort(first_words, kind="stable")
    for split in digests:
        if split == "train" or not len(order) or not len(digests[split]):
            continue
        places = np.searchsorted(first_words[order], _first_words(digests[split]))
        candidates = order[np.minimum(places, len(order) - 1)]
        for other in np.flatnonzero((digests["train"][candidates] == digests[split]).all(1)).tolist():
            count += 1
            if len(found) < _NAMED:
                found.append({"train": names["train"][candidates[other]], split: names[split][other]})
    return {"count": count, "first": found}


def _first_words(digests: np.ndarray) -> np.ndarray:
    """Eight of a digest's bytes as a number to sort by."""
    return np.ascontiguousarray(digests).view(np.uint64)[:, 0]


def _missing_classes(plan: Plan, known: Sequence[tuple[Part, About]]) -> list[str]:
    """Classes that a split has no image of."""
    found = []
    for split in ("train", "val"):
        seen = np.zeros(len(plan.classes), bool)
        for part, about in known:
            if part.split == split:
                seen[about.labels] = True
        if not seen.all():
            missing = [name for name, there in zip(plan.classes, seen, strict=True) if not there]
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            found.append(f"{split} has no image of {len(missing):,} of {len(plan.classes):,} classes: {shown}")
    return found
