"""from_pretrained: the published weights by name, fetched once into the user's cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

import jax
from flax import nnx

from alexnet_jax.models import AlexNet
from alexnet_jax.nn import checks
from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.loading import load_weights

MIRROR = "ALEXNET_JAX_MIRROR"
_RETRIES = 2  # of each address, after the first try
_ABANDONED = 24 * 3600  # seconds after which an unfinished download is nobody's


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights that its authors publish.

    Attributes:
      url: where.
      algorithm: the hash that they give, by hashlib's name.
      digest: its hexadecimal digits, or the first of them.
    """

    url: str
    algorithm: str
    digest: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


# By the variant's name. torchvision's file name carries the first eight digits of its SHA-256; Caffe's
# hashes are those in the readme.md of each model.
PUBLISHED = {
    "torchvision": Published("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "sha256", "7be5be79"),
    "bvlc_alexnet": Published(
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
        "sha1",
        "9116a64c0fbe4459d18f4bb6b56d647b63920377",
    ),
    "caffenet": Published(
        "http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel",
        "sha1",
        "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
    ),
}


def from_pretrained(
    name: str,
    *,
    num_classes: int | None = None,
    partial: bool = False,
    rngs: int | jax.Array | nnx.Rngs = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> AlexNet:
    """A network with the weights that its authors published, trained on ILSVRC-2012's 1000 classes.

    The file (about 240 MB) is fetched once and kept in `alexnet-jax/weights` under $XDG_CACHE_HOME, or
    ~/.cache. It takes its place there only when it is whole and has the published hash, so an
    interrupted or damaged download is never used, and processes may fetch at the same time; an attempt
    that fails is repeated twice. torchvision publishes eight digits of the hash only: a guard against
    damage, not against malice; that no file can run code, `load_weights` sees to.

    Args:
      name: "torchvision", "bvlc_alexnet" or "caffenet".
      num_classes, partial, rngs: as `load_weights` takes them; other classes need partial=True.
      cache_dir: another folder to keep the file in.

    Environment:
      ALEXNET_JAX_MIRROR: addresses (http, https) of folders that hold the files by their published
        names, separated by spaces; they are tried in this order, before the authors' own.

    Returns:
      The model, as `load_weights` returns it.

    Raises:
      ValueError: an unknown name.
      WeightsError: the file could not be fetched or kept; the message says where to put it by hand.
    """
    place = published_file(name, cache_dir)
    return load_weights(place, variant=name, num_classes=num_classes, partial=partial, rngs=rngs)


def published_file(name: str, cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where the file of published weights is, fetched if need be; arguments and errors as `from_pretrained`'s."""
    checks.choice(name, "the published weights", tuple(PUBLISHED))
    return fetch(PUBLISHED[name], _folder(cache_dir))


def _folder(cache_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    if cache_dir is not None:
        return pathlib.Path(cache_dir).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet-jax" / "weights"


def fetch(published: Published, folder: pathlib.Path) -> pathlib.Path:
    """The file in a folder, fetched if it is not there or not the published one.

    Raises:
      WeightsError: no address gave it, or it could not be written.
    """
    place = folder / published.file
    mirrors = os.environ.get(MIRROR, "").split()
    for mirror in mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise WeightsError(f"{MIRROR}: {mirror!r} is no address that begins with http:// or https://")
    try:
        there = _digest(place, published) if place.is_file() else None
        if there is not None and there.startswith(published.digest):
            return place
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".fetching-*"):
            with contextlib.suppress(FileNotFoundError):  # of another process that has just finished
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as beside:
            addresses = [*(f"{mirror.rstrip('/')}/{published.file}" for mirror in mirrors), published.url]
            failed = []
            for url in addresses:
                reason = _download(url, published, pathlib.Path(beside))
                if reason is None:
                    os.replace(pathlib.Path(beside) / published.file, place)
                    return place
                failed.append(f"{url} ({reason})")
    except OSError as error:
        raise WeightsError(
            f"{place} can't be read or written ({error}): make room or give rights there, or give cache_dir="
        ) from None
    wrong = f"; the file that is there now is another one ({published.algorithm} {there})" if there else ""
    raise WeightsError(
        f"{published.file} could not be fetched: {'; '.join(failed)}. Fetch {published.url} where there is a "
        f"network and put it at {place}, or set {MIRROR} to the address of a folder that holds it{wrong}"
    )


def _download(url: str, published: Published, folder: pathlib.Path) -> str | None:
    """Puts the file into a folder, or says why it can't."""
    import pooch  # only who downloads pays for it
    import requests

    http = pooch.HTTPDownloader(chunk_size=1 << 20, progressbar=sys.stderr.isatty())

    def download(url: str, output: str, pup: Any) -> None:
        http(url, output, pup)
        found = _digest(pathlib.Path(output), published)
        if not found.startswith(published.digest):
            raise ValueError(f"its {published.algorithm} is {found[: len(published.digest)]}, not {published.digest}")

    pup = pooch.create(
        folder, "", registry={published.file: None}, urls={published.file: url}, retry_if_failed=_RETRIES
    )
    try:
        pup.fetch(published.file, downloader=download)
    except (requests.RequestException, ValueError) as error:
        return str(error)
    return None


def _digest(path: pathlib.Path, published: Published) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, published.algorithm).hexdigest()
