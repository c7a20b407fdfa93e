"""The prepared folder that a run's `data.source` means."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shlex

from alexnet_jax.data.parts import CannotWriteError
from alexnet_jax.data.prepare import Progress, prepare
from alexnet_jax.data.prepared import FORMAT, MANIFEST, DataError, Prepared, open_prepared
from alexnet_jax.data.sources import SOURCES, Source, open_source
from alexnet_jax.data.sources._files import Files, Subset

LARGEST = 10e9  # bytes that are put into the cache without asking


def prepared(
    source: str,
    *,
    size: int,
    rule: str,
    val_fraction: float | None = None,
    cache_dir: pathlib.Path | None = None,
    progress: Progress = lambda done, total, skipped: None,
) -> Prepared:
    """The prepared form of a source: an existing folder, or one made once and kept in the user's cache.

    Args:
      source: a source's string, or the folder of a prepared data set.
      size: pixels of the images' sides.
      rule: how images are scaled.
      val_fraction: see `open_source`.
      cache_dir: where made folders are kept.
      progress: see `prepare`.

    Raises:
      DataError: there is no such source or folder, a folder of another size or rule, or a
        source too large to be put into the cache unasked.
    """
    kind = source.partition(":")[0]
    kinds = {form.partition(":")[0] for form in SOURCES}
    if kind in kinds:
        directory = _made(source, size, rule, val_fraction, cache_dir, progress)
    else:
        directory = pathlib.Path(source).expanduser()
        if not directory.is_dir():
            raise DataError(
                f"config.data.source={source!r}: neither a source ({', '.join(SOURCES)}) nor an existing folder"
            )
        if val_fraction is not None:
            raise DataError(
                f"config.data.val_fraction={val_fraction:g}: {source} is a folder; give it to alexnet-jax prepare, "
                f"or set config.data.source=folder:{source} if it holds class folders"
            )
        if not (directory / MANIFEST).exists() and any(path.is_dir() for path in directory.glob("[!.]*/[!.]*")):
            raise DataError(
                f"{directory} is not a prepared data set: it has no {MANIFEST}. If it holds class folders of images, "
                f"set config.data.source=folder:{source}"
            )
    try:
        found = open_prepared(directory)
    except DataError as error:
        if kind in kinds:  # nobody made this folder by hand
            raise DataError(f"{error} (it is {directory}, in the cache)") from None
        raise
    remedies = {
        "image_size": ("config.data.image_size={}", "--size {}"),
        "resize_rule": ("a variant of config.model.name whose images are scaled by {}", "--resize {}"),
    }
    for key, wanted in (("image_size", size), ("resize_rule", rule)):
        there = found.manifest[key]
        if there != wanted:
            here, anew = remedies[key]
            raise DataError(
                f"{directory} was prepared with {key}={there!r}, this run needs {wanted!r}: "
                f"set {here.format(there)}, or prepare it anew with {anew.format(wanted)}"
            )
    return found


def _made(
    source: str,
    size: int,
    rule: str,
    val_fraction: float | None,
    cache_dir: pathlib.Path | None,
    progress: Progress,
) -> pathlib.Path:
    """The folder in the cache that holds a source, made if it is not there."""
    kind, _, place = source.partition(":")
    # What comes with the program does not change: its fingerprint is not worth opening it at every start.
    opened = None if kind == "digits" else open_source(source, val_fraction=val_fraction)
    path = pathlib.Path(place).expanduser().absolute()
    content = None if opened is None else [opened.fingerprint, opened.classes, str(path), _newest(opened)]
    identity = json.dumps([kind, content, size, rule, val_fraction, FORMAT])
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "alexnet-jax"
    root = (cache_dir or home).expanduser()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-")[-40:]
    directory = root / "prepared" / f"{plain}-{size}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (directory / MANIFEST).is_file():
        return directory
    opened = opened or open_source(source, val_fraction=val_fraction)
    needed = sum(map(len, opened.splits.values())) * size * size * 3
    if needed > LARGEST:
        fraction = "" if val_fraction is None else f" --val-fraction {val_fraction:g}"
        warp = "" if rule == "shorter_side" else f" --resize {rule}"
        raise DataError(
            f"{source} takes {needed / 1e9:,.0f} GB when prepared, too much to put into a cache unasked. Prepare it "
            f"where there is room: alexnet-jax prepare {shlex.quote(source)} --out DIR --size {size}{warp}{fraction} "
            "(--encoding jpeg takes a tenth), then set config.data.source=DIR"
        )
    try:
        prepare(opened, directory, size=size, rule=rule, progress=progress, wait=True)
    except CannotWriteError as error:
        raise DataError(f"{error}: set config.data.cache_dir") from None
    return directory


def _newest(source: Source) -> int:
    """When the newest of a source's files was written; 0 where that can't be told."""
    files = [examples for examples in source.splits.values() if isinstance(examples, (Files, Subset))]
    return max((examples.newest() for examples in files), default=0)
