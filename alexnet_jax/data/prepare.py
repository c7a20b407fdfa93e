"""From a source to a prepared folder: every core, any interruption, the same bytes.

Threads decode and scale groups of images; the main thread takes the groups in order
and writes part files (see `parts`). What a part's images add to the statistics is kept
beside it, so the end of a preparation reads no image again.
"""

from __future__ import annotations

import collections
import errno
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import NamedTuple

import numpy as np
import simplejpeg
import xxhash

from alexnet_jax.data.decode import MAX_PIXELS, DecodeError, decode, quiet_pillow
from alexnet_jax.data.images import cores
from alexnet_jax.data.merge import finish, settings
from alexnet_jax.data.parts import PER_PART, Kept, Part, PartWriter, Plan, Work, full_disk_in_words, make_plan
from alexnet_jax.data.prepared import ENCODINGS, MANIFEST, UNFINISHED, DataError, read_manifest
from alexnet_jax.data.sources import Examples, Source
from alexnet_jax.nn import checks

QUALITY = 90
MAX_BROKEN = 0.01
_UNREADABLE = "can't be read"
_GROUP = 8  # images a thread takes at a time
_EXACT = 256  # so many products of two bytes have a sum that float32 holds exactly
# Not the image's fault: it may be good at the next try.
_NOT_THE_IMAGE = frozenset(
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "ENETUNREACH")
)

Progress = Callable[[int, int, int], None]


def prepare(
    source: Source,
    out: pathlib.Path,
    *,
    size: int,
    rule: str = "shorter_side",
    encoding: str = "raw",
    quality: int = QUALITY,
    shard: tuple[int, int] = (1, 1),
    max_broken: float = MAX_BROKEN,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    progress: Progress = lambda done, total, skipped: None,
    wait: bool = False,
    per_part: int = PER_PART,
) -> bool:
    """Makes a prepared folder, or goes on with one that was interrupted.

    Args:
      source: what to prepare.
      out: the folder.
      size: pixels of the images' sides.
      rule: how images are scaled, see `alexnet_jax.models.resize`.
      encoding: "raw" (uint8, the fastest to read) or "jpeg" (about a tenth of the disk).
      quality: of the JPEG files, 1 to 100; colours at half the resolution (4:2:0).
      shard: (I, N) makes the I-th of N shares of the parts, from 1; when all are done,
        `merge.merge` finishes the folder.
      max_broken: the share of images that may be skipped before it stops.
      max_pixels: larger images are skipped, not decoded.
      threads: how many; default: the cores.
      progress: called with the images that are done, all images of this shard, and
        those skipped.
      wait: wait for another process that prepares the same folder, instead of an error.
      per_part: images of the source in a part file.

    Returns:
      Whether the folder is finished; False after a shard.

    Raises:
      DataError: the source or the folder can't be used, too many images are broken, or
        the disk is full; the message says what to do. The same call then continues.
      ValueError: an argument out of range.
    """
    checks.choice(encoding, "encoding", ENCODINGS)
    checks.choice(rule, "the resize rule", ("shorter_side", "warp"))
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be from 1 to 100, got {quality}")
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard must be I/N with I from 1 to N, got {shard[0]}/{shard[1]}")
    if not 0 <= max_broken <= 1:
        raise ValueError(f"max_broken must be a share from 0 to 1, got {max_broken}")
    plan = make_plan(
        source, size=size, rule=rule, encoding=encoding, quality=quality, max_pixels=max_pixels, per_part=per_part
    )
    _check_classes(source)
    work = Work(out)
    with full_disk_in_words(out):
        if _finished(out, plan):
            return True
        work.check_empty()
        with work.lock(shard, wait=wait):
            if _finished(out, plan):  # by the one we waited for
                return True
            plan = work.begin(plan)
            parts = [part for number, part in enumerate(plan.parts()) if number % shard[1] == shard[0] - 1]
            work.sweep(parts)
            job = _Job(source, plan, work, max_broken, threads or cores(), progress)
            job.run(parts)
            if shard[1] > 1:
                return False
            finish(work)
    return True


def _finished(out: pathlib.Path, plan: Plan) -> bool:
    """Whether the folder is finished already, and made by this plan.

    Raises:
      DataError: it is finished, but something else.
    """
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_manifest(out)
    changed = [
        f"other {key}" if key in ("fingerprint", "classes") else f"{key} {manifest.get(key)!r} there, {value!r} now"
        for key, value in settings(plan).items()
        if manifest.get(key) != value
    ]
    if changed:
        raise DataError(
            f"{out} is a finished folder made from other images or with other settings ({'; '.join(changed)}): "
            "delete it to prepare it anew, or choose another folder"
        )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # killed in its very last moment
    return True


def _check_classes(source: Source) -> None:
    if len(source.classes) < 2:
        raise DataError(f"{source.name} has {len(source.classes)} class; telling classes apart needs at least two")
    for name in source.classes:
        try:
            bad = len(name.splitlines()) != 1 or not name.encode()
        except UnicodeEncodeError:
            bad = True
        if bad:
            raise DataError(f"{source.name} has a class named {name!r}: rename it in plain text of one line")
    if len(set(source.classes)) != len(source.classes):
        name = next(name for name, count in collections.Counter(source.classes).items() if count > 1)
        raise DataError(f"{source.name} has two classes named {name!r}: rename one")
    for split in ("train", "val"):
        if not len(source.splits.get(split, ())):
            raise DataError(f"{source.name} has no images to use as {split!r}")


class _Group(NamedTuple):
    """Some images of a part, converted."""

    kept: list[Kept]
    content: bytes | memoryview
    skipped: list[tuple[str, str]]
    image_sum: np.ndarray
    products: np.ndarray


class _Job:
    def __init__(self, source: Source, plan: Plan, work: Work, max_broken: float, threads: int, progress: Progress):
        self._source, self._plan, self._work = source, plan, work
        self._max_broken, self._threads, self._progress = max_broken, threads, progress
        self._skipped: list[tuple[str, str]] = []
        self._images = 0

    def run(self, parts: Sequence[Part]) -> None:
        """Makes those parts that are not done."""
        done, missing = 0, []
        self._images = sum(map(len, parts))
        for part in parts:
            about = self._work.about(part)
            # What could not be read may be readable by now.
            if about is None or any(reason.startswith(_UNREADABLE) for _, reason in about.skipped):
                missing.append(part)
            else:
                done += len(part)
                self._count_skipped(about.skipped)
        self._check_disk(missing)
        total = self._images
        self._progress(done, total, len(self._skipped))
        with (
            quiet_pillow(self._plan.max_pixels),
            ThreadPoolExecutor(self._threads, thread_name_prefix="prepare") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="sync") as syncing,
        ):
            groups = self._groups(pool, missing)
            last: Future | None = None
            try:
                for part in missing:
                    partial = self._work.partial(part)
                    with partial.open("wb") as file:
                        writer = PartWriter(file, self._plan.image_size)
                        for start in range(part.start, part.stop, _GROUP):
                            group = next(groups)
                            self._write(writer, group, statistics=part.split == "train")
                            self._count_skipped(group.skipped)
                            done += min(_GROUP, part.stop - start)
                            self._progress(done, total, len(self._skipped))
                    if last is not None:
                        last.result()
                    # Reaching the disk takes a while; the next part goes on meanwhile.
                    last = syncing.submit(self._work.finish_part, part, writer.about(), partial)
                if last is not None:
                    last.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if last is not None:
                    wait_for([last])
                self._work.sweep(missing)  # on a full disk the space is wanted
                raise

    def _groups(self, pool: ThreadPoolExecutor, parts: Sequence[Part]) -> Iterator[_Group]:
        """The groups of the parts in order, converted ahead by the threads."""
        ahead: collections.deque[Future[_Group]] = collections.deque()
        for part in parts:
            examples = self._source.splits[part.split]
            for start in range(part.start, part.stop, _GROUP):
                rows = range(start, min(start + _GROUP, part.stop))
                ahead.append(pool.submit(self._convert, examples, rows, part.split))
                if len(ahead) > 2 * self._threads + 2:
                    yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _convert(self, examples: Examples, rows: range, split: str) -> _Group:
        plan = self._plan
        pixels = np.empty((len(rows), plan.image_size, plan.image_size, 3), np.uint8)
        kept: list[Kept] = []
        encoded: list[bytes] = []
        skipped = []
        for row in rows:
            name = examples.name(row)
            try:
                content, label = examples.load(row)
                digest = xxhash.xxh3_128_digest(content if isinstance(content, bytes) else _bytes(content))
                image = decode(content, size=plan.image_size, rule=plan.resize_rule, max_pixels=plan.max_pixels)
            except OSError as error:
                if error.errno in _NOT_THE_IMAGE:
                    raise DataError(
                        f"{split} image {name} can't be read now ({error}): run the command again"
                    ) from None
                skipped.append((name, f"{_UNREADABLE}: {error.strerror or error}"))
                continue
            except DecodeError as error:
                skipped.append((name, str(error)))
                continue
            if not 0 <= label < len(plan.classes):
                raise DataError(
                    f"{split} image {name} of {plan.source} has the label {label}, but there are "
                    f"{len(plan.classes)} classes (0 to {len(plan.classes) - 1})"
                )
            pixels[len(kept)] = image
            if plan.encoding == "jpeg":
                encoded.append(simplejpeg.encode_jpeg(pixels[len(kept)], plan.quality, "RGB", "420"))
            kept.append(Kept(name, label, digest, len(encoded[-1]) if encoded else image.nbytes))
        found = pixels[: len(kept)]
        image_sum = found.sum(0, dtype=np.uint16)  # 8 images of 255 fit
        products = _products(found) if split == "train" else np.zeros((3, 3))
        joined = b"".join(encoded) if plan.encoding == "jpeg" else found.reshape(-1).data
        return _Group(kept, joined, skipped, image_sum, products)

    def _write(self, writer: PartWriter, group: _Group, *, statistics: bool) -> None:
        for name, reason in group.skipped:
            writer.skip(name, reason)
        if group.kept:
            writer.add(group.content, group.kept)
        if statistics:
            writer.add_moments(group.image_sum, group.products)

    def _count_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Stops when too many images are broken."""
        if not skipped:
            return
        self._skipped += skipped
        if len(self._skipped) > self._max_broken * self._images:
            total = self._images
            first = "; ".join(f"{name}: {reason}" for name, reason in self._skipped[:5])
            share = len(self._skipped) / total
            raise DataError(
                f"{len(self._skipped):,} of {total:,} images are broken so far, more than --max-broken "
                f"{self._max_broken:g} allows ({first}{'; …' if len(self._skipped) > 5 else ''}). Run the same "
                f"command with --max-broken {min(1, max(2 * share, 0.02)):.2g}, and it continues without them; "
                f"or mend or remove them, delete {self._work.out}, and begin anew"
            )

    def _check_disk(self, parts: Sequence[Part]) -> None:
        plan = self._plan
        each = plan.image_size**2 * 3
        if plan.encoding == "jpeg":
            each //= 6  # photographs take an eighth to a tenth at quality 90
        needed = sum(len(part) * (each + 200) + plan.image_size**2 * 12 for part in parts)
        free = shutil.disk_usage(self._work.out).free
        if needed > free:
            raise DataError(
                f"{self._work.out} needs about {_gigabytes(needed)} more, its disk has {_gigabytes(free)} free: "
                "free some, choose another --out, or take --encoding jpeg (about a tenth of raw)"
            )


def _bytes(image: np.ndarray) -> memoryview:
    return np.ascontiguousarray(image).data.cast("B")


def _products(images: np.ndarray) -> np.ndarray:
    """The sums over all pixels of the products of RGB values, exact integers in float64."""
    # Of values beside each other in memory, without a plane a colour: R·R, G·G, B·B, then R·G, G·B, then R·B.
    lines = images.reshape(-1, images.shape[2] * 3)
    rows = np.empty((_EXACT, lines.shape[1]), np.float32)
    found = np.zeros((3, 3))
    for start in range(0, len(lines), _EXACT):
        some = rows[: min(_EXACT, len(lines) - start)]
        some[...] = lines[start : start + _EXACT]
        for apart in range(3):
            width = lines.shape[1] - apart
            sums = np.einsum("rv,rv->v", some[:, :width], some[:, apart:])  # BLAS would start threads
            for c in range(3 - apart):
                found[c, c + apart] += sums[c::3].sum(dtype=np.float64)
    return found + np.triu(found, 1).T


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
