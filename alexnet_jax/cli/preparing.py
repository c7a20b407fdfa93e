"""`alexnet-jax prepare`: from images as people have them to a folder to train on."""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alexnet_jax.cli.arguments import Parser, refuse

if TYPE_CHECKING:
    from alexnet_jax.data.prepared import Prepared


def prepare(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax prepare`: exit code 0, 1 (`--check` found damage), 2 (refused), 130 (Ctrl-C)."""
    try:
        options = _parser(program).parse_args(argv)
        _check_usage(options)
        if options.check:
            return _check(options.check)
        if options.merge:
            return _merge(options)
        return _prepare(options)
    except ValueError as error:
        return refuse(program, str(error))
    except KeyboardInterrupt:
        return refuse(program, "stopped; the same command continues", code=130)


def _parser(program: str) -> Parser:
    from alexnet_jax.data.decode import MAX_PIXELS
    from alexnet_jax.data.prepare import MAX_BROKEN, QUALITY
    from alexnet_jax.data.prepared import ENCODINGS
    from alexnet_jax.data.sources import SOURCES

    parser = Parser(
        prog=program,
        description="Makes a data set ready to train on: square images of one size, their statistics, a manifest. "
        "Interrupted at any moment, the same command continues.",
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help=", ".join(SOURCES))
    add("--out", type=pathlib.Path, metavar="DIR", help="the folder to make")
    add("--size", type=int, default=256, metavar="PIXELS", help="side of the images (default: 256)")
    add(
        "--resize",
        default="shorter_side",
        choices=("shorter_side", "warp"),
        help="scale the shorter side and take the centre (the paper, default), or warp the whole image (Caffe)",
    )
    add("--encoding", default="raw", choices=ENCODINGS, help="raw: the fastest (default); jpeg: a tenth of the disk")
    add("--quality", type=int, default=None, metavar="1-100", help=f"of --encoding jpeg (default: {QUALITY})")
    add(
        "--val-fraction",
        type=float,
        metavar="SHARE",
        help="share of the training images to validate on, where the "
        "source has no validation images; picked by a hash of each name",
    )
    add("--shard", metavar="I/N", help="only the I-th of N shares, from 1; on several machines, then --merge")
    add(
        "--max-broken",
        type=float,
        default=MAX_BROKEN,
        metavar="SHARE",
        help="stop when more than this share of the "
        f"images is broken (default: {MAX_BROKEN:g}); up to it they are skipped and listed",
    )
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"larger images are skipped, not decoded (default: {MAX_PIXELS:,})",
    )
    add("--threads", type=int, metavar="N", help="default: one a core")
    add("--preview", action="store_true", help="also draw DIR/preview.png: images, views, mean image, colours")
    add("--merge", nargs="+", type=pathlib.Path, metavar="DIR", help="finish --out from folders of shards")
    add("--check", type=pathlib.Path, metavar="DIR", help="verify the checksums of a finished folder")
    return parser


def _check_usage(options: argparse.Namespace) -> None:
    modes = [name for name in ("source", "merge", "check") if getattr(options, name)]
    if len(modes) != 1:
        raise ValueError("give one of SOURCE, --merge DIR …, --check DIR; see --help")
    if modes == ["check"] and (options.out or options.preview or options.shard):
        raise ValueError("--check takes nothing else")
    if options.shard and options.preview:
        raise ValueError("--preview goes with the whole or with --merge, not with --shard")
    if modes != ["check"] and options.out is None:
        raise ValueError("--out DIR is missing: the folder to make")
    for name in ("size", "max_pixels", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise ValueError(f"--quality {options.quality}: must be from 1 to 100")
    if options.quality is not None and options.encoding != "jpeg":
        raise ValueError(f"--quality {options.quality} goes with --encoding jpeg")
    if not 0 <= options.max_broken <= 1:
        raise ValueError(f"--max-broken {options.max_broken:g}: must be a share from 0 to 1, such as 0.01 for 1 %")
    if options.val_fraction is not None and not 0 < options.val_fraction < 1:
        raise ValueError(f"--val-fraction {options.val_fraction:g}: must be a share between 0 and 1, such as 0.1")


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return (1, 1)
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or not 1 <= int(index) <= int(count):
        raise ValueError(f"--shard {text}: must be I/N with I from 1 to N, such as 1/4")
    return int(index), int(count)


def _prepare(options: argparse.Namespace) -> int:
    from alexnet_jax.data.prepare import QUALITY
    from alexnet_jax.data.prepare import prepare as run
    from alexnet_jax.data.sources import open_source
    from alexnet_jax.training.progress import Counter

    shard = _shard(options.shard)
    kind, _, place = options.source.partition(":")
    if kind == "folder" and options.out.resolve().is_relative_to(pathlib.Path(place).expanduser().resolve()):
        raise ValueError(f"--out {options.out} lies in {options.source}, and would be taken for a class: move it out")
    print(f"{'source':<10} {options.source}", flush=True)
    source = open_source(options.source, val_fraction=options.val_fraction)
    counts = ", ".join(f"{len(examples):,} {split}" for split, examples in source.splits.items())
    print(f"{'':<10} {counts} images, {len(source.classes):,} classes")
    for note in source.notes:
        print(f"{'note':<10} {note}")
    with Counter("images") as counter:
        finished = run(
            source,
            options.out,
            size=options.size,
            rule=options.resize,
            encoding=options.encoding,
            quality=options.quality or QUALITY,
            shard=shard,
            max_broken=options.max_broken,
            max_pixels=options.max_pixels,
            threads=options.threads,
            progress=counter,
        )
    print(f"{'speed':<10} {counter.summary()}")
    if not finished:
        print(f"{'shard':<10} {options.shard} is done; when all are: alexnet-jax prepare --merge DIR … --out DIR")
        return 0
    return _report(options)


def _merge(options: argparse.Namespace) -> int:
    from alexnet_jax.data.merge import merge

    merge(options.merge, options.out)
    return _report(options)


def _check(directory: pathlib.Path) -> int:
    from alexnet_jax.data.prepared import check
    from alexnet_jax.training.progress import Counter

    with Counter("MB") as counter:
        wrong = check(directory, progress=lambda done, total: counter(done // 10**6, total // 10**6, 0))
    for line in wrong:
        print(line, file=sys.stderr)
    verdict = f"{len(wrong)} files are wrong: delete it and prepare it anew" if wrong else "every checksum is right"
    print(f"{directory}: {verdict}")
    return 1 if wrong else 0


def _report(options: argparse.Namespace) -> int:
    """What a person should know of a finished folder."""
    from alexnet_jax.data.prepared import open_prepared

    data = open_prepared(options.out)
    manifest = data.manifest
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(
        f"{'prepared':<10} {options.out}: {counts} images of {data.image_size} pixels, {len(data.classes):,} classes, "
        f"{manifest['encoding']}, {size / 1e9:,.2f} GB"
    )
    if manifest["skipped"]:
        first = manifest["skipped"][0]
        print(
            f"{'skipped':<10} {len(manifest['skipped']):,} broken images, listed in manifest.json; "
            f"the first is {first['name']}: {first['reason']}"
        )
    if manifest["duplicates"]["count"]:
        pair = " = ".join(f"{split}: {name}" for split, name in manifest["duplicates"]["first"][0].items())
        print(
            f"{'duplicates':<10} {manifest['duplicates']['count']:,} held-out images are training images too, so the "
            f"error will look better than it is; listed in manifest.json ({pair})"
        )
    for note in manifest["notes"]:
        print(f"{'note':<10} {note}")
    if options.preview:
        _preview(data, options.out / "preview.png")
    if data.image_size >= 72:  # below, most networks have no room
        where = str(options.out) if os.sep in str(options.out) else f"./{options.out}"
        model = "" if manifest["resize_rule"] == "shorter_side" else " --config.model.name=bvlc_alexnet"
        print(
            f"{'train':<10} python train.py --config.data.source={shlex.quote(where)}{model} "
            f"--config.data.image_size={data.image_size} --config.data.crop_size={data.image_size * 7 // 8}"
        )
    return 0


def _preview(data: Prepared, path: pathlib.Path) -> None:
    from alexnet_jax import figures
    from alexnet_jax.data.views import Augmentation
    from alexnet_jax.models import InputSpec

    size = data.image_size
    contract = InputSpec(size=max(1, size * 7 // 8), resize=size, mean_image="centre")  # the paper's 224 of 256
    figures.data_preview(data, contract, Augmentation(flip=True, colour_noise="paper"), path)
    print(f"{'preview':<10} {path}")
