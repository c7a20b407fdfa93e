"""From the bytes of an image file to a square RGB array, safe on anything that lies in a folder of images."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from alexnet_jax.models.inputs import RULES, resize, scale
from alexnet_jax.nn import checks

MAX_PIXELS = 100_000_000  # width × height
MAX_SCANS = 200  # of a progressive JPEG; encoders write about ten

# Formats of Pillow's that are not opened, and why.
REFUSED = {
    "EPS": "Pillow would start Ghostscript on it",
    "IPTC": "it may hold any other format",
    "FITS": "it unpacks to any size",
    "WMF": "it is drawn by Windows",
    "BUFR": "it is no picture",
    "GRIB": "it is no picture",
    "HDF5": "it is no picture",
    "MPEG": "it is a video",
    # Without a signature, and found in text or noise:
    "IM": "it can't be told from text",
    "IMT": "it can't be told from text",
    "SPIDER": "its pixels are floating-point",
}

_LOG = logging.getLogger("PIL")

# What EXIF's orientation asks for.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HOLDS_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1")


class DecodeError(ValueError):
    """An image can't be used; the message is a short reason in one line."""


def decode(content: bytes | np.ndarray, *, size: int, rule: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as a square of RGB; safe to call from several threads at once.

    Any format that Pillow reads, but for those in `REFUSED`, whatever the file is called.
    Of several frames the first counts. Grey becomes RGB; transparency lies over white;
    CMYK and YCCK JPEGs have Adobe's inverted values, marked or not; 16 bits lose their
    lower eight. EXIF's orientation is applied, after scaling: within a level of before.

    JPEGs of at least four times `size` on both sides are decoded at a half, a quarter or
    an eighth (DCT scaling), at twice `size` or more. On photographs of 1,500 to 8,300
    pixels scaled to 256 the result is within 10 levels of the full decode, 0.1 to 0.6 in
    the mean.

    Damage inside a JPEG's compressed pixels goes unnoticed where libjpeg carries on.

    Args:
      content: the bytes of an image file, or an array (H, W, 3) uint8 in RGB.
      size: pixels of the result's sides.
      rule: how the image becomes square, see `alexnet_jax.models.resize`.
      max_pixels: width × height above which a file is refused, from its header, before
        anything is decoded.

    Returns:
      (size, size, 3), uint8, C-contiguous; may be read-only or `content` itself.

    Raises:
      DecodeError: the image can't be used; the message says why.
      ValueError: no such rule.
    """
    checks.choice(rule, "the resize rule", RULES)
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[-1] != 3 or not content.size:
            raise DecodeError(f"an array of {content.dtype} {content.shape} instead of uint8 (height, width, 3)")
        return np.ascontiguousarray(resize(np.ascontiguousarray(content), size, rule))
    if not content:
        raise DecodeError("empty file")
    with quiet_pillow(max_pixels):
        image = _open(content, max_pixels)
        with image:
            extent = _draft(image, size)
            try:
                loaded = _loaded(image, content, drafted=extent is not None)
                orientation = _orientation(image)
                depth = content[24] if image.format == "PNG" else 8
                square = scale(_averageable(loaded, depth), size, rule, extent)
            except DecodeError:
                raise
            except Exception as error:
                raise _reason(image.format, error) from error
    if orientation in _TRANSPOSES:
        square = square.transpose(_TRANSPOSES[orientation])
    if square.mode != "RGB":
        square = square.convert("RGB")
    return np.asarray(square)


class _Quiet:
    """How many are inside `quiet_pillow`, and what the last of them restores."""

    lock = threading.Lock()
    inside = 0
    limit: int | None = None
    level = logging.NOTSET
    stack = contextlib.ExitStack()


@contextlib.contextmanager
def quiet_pillow(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """While inside, Pillow warns and logs nothing, and its own pixel limit is no lower than `max_pixels`.

    These are settings of the whole process, restored when the last of several threads
    leaves. `decode` enters by itself; a job of many images enters once around them. What
    the library under Pillow says of broken TIFFs goes to the process's error output still.
    """
    with _Quiet.lock:
        if not _Quiet.inside:
            _Quiet.stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            _Quiet.limit, _Quiet.level = Image.MAX_IMAGE_PIXELS, _LOG.level
            _LOG.setLevel(logging.CRITICAL + 1)
        _Quiet.inside += 1
        if Image.MAX_IMAGE_PIXELS is not None:
            # Pillow refuses above twice its limit. Ours comes first; Pillow's still guards images inside images.
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2)
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.inside -= 1
            if not _Quiet.inside:
                Image.MAX_IMAGE_PIXELS = _Quiet.limit
                _LOG.setLevel(_Quiet.level)
                _Quiet.stack.close()


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats to try, the frequent first and those without a signature last."""
    Image.init()
    frequent = ("JPEG", "PNG")
    return tuple(sorted(Image.ID, key=lambda name: (Image.OPEN[name][1] is None, name not in frequent)))


def _open(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The file, recognised and its header read.

    `Image.open` would do, but that it registers formats while other threads search them,
    asks in an order that it chooses, and forgets why a format gave up.
    """
    prefix, failure = content[:16], None
    if prefix[:4] == b"RIFF":  # older Pillows allocate the canvas before its size can be asked for
        _check_size(_webp_size(content[:30]), max_pixels)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if not (accepted := _accepted(accept, prefix)):
            continue
        try:
            if name in REFUSED or isinstance(accepted, str):
                raise DecodeError(f"{name} is not read: {REFUSED.get(name, 'Pillow was built without it')}")
            image = factory(io.BytesIO(content), "")
        except Exception as error:
            if accept is not None and failure is None:  # without a signature it was but a guess
                failure = error if isinstance(error, DecodeError) else _reason(name, error)
        else:
            _check_size(image.size, max_pixels)
            if "progressive" in image.info and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
                raise DecodeError(f"a JPEG of {scans:,} scans, more than {MAX_SCANS}")
            return image
    raise failure or DecodeError("not an image that Pillow reads")


def _accepted(accept: Callable[[bytes], bool | str] | None, prefix: bytes) -> bool | str:
    """Whether a file that starts so may be of a format; a string if Pillow was built without that."""
    try:
        return accept is None or accept(prefix)
    except Exception:  # shorter than its signature
        return False


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise DecodeError(f"{width:,} × {height:,} pixels are more than the limit of {max_pixels:,}")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of a WebP file of which these are the first 30 bytes; (0, 0) if it is none."""
    kind = head[8:16]
    if len(head) < 30:
        return 0, 0
    if kind == b"WEBPVP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"WEBPVP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"WEBPVP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def _draft(image: ImageFile.ImageFile, size: int) -> tuple[float, float] | None:
    """Has a large JPEG decoded smaller; width and height of the picture then."""
    if image.format not in ("JPEG", "MPO") or min(image.size) < 4 * size:
        return None
    drafted = image.draft(None, (2 * size, 2 * size))
    return drafted[1][2:] if drafted else None


def _loaded(image: ImageFile.ImageFile, content: bytes, *, drafted: bool) -> Image.Image:
    """The image with its pixels; a JPEG in RGB that has no flaw by a quicker way to the same pixels."""
    if image.format == "JPEG" and image.mode == "RGB" and not drafted:
        try:
            pixels = simplejpeg.decode_jpeg(content, "RGB")
        except ValueError:  # Pillow takes some of these, and has words for the others
            pass
        else:
            if pixels.shape[1::-1] == image.size:
                return Image.frombuffer("RGB", image.size, pixels, "raw", "RGB", 0, 1)
    image.load()
    return image


def _orientation(image: ImageFile.ImageFile) -> object:
    """EXIF's orientation of a loaded image, 1 where there is none that can be read."""
    # Pillow turns TIFFs by itself.
    if image.format == "TIFF" or not any(key in image.info for key in _HOLDS_ORIENTATION):
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:
        return 1


def _averageable(image: Image.Image, depth: int) -> Image.Image:
    """A loaded image of `depth` bits in the file, in mode "L" or "RGB"; itself where it is that already."""
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise DecodeError("floating-point pixels")
    if image.has_transparency_data:
        return _one_value_white(image, depth) if image.mode in ("1", "L", "RGB") else _over_white(image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """The upper eight bits of a grey image of 16."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]
    values = np.asarray(image)
    if bits > 16 or values.min() < 0 or values.max() > 0xFFFF:
        raise DecodeError("pixels of more than 16 bits, or signed")
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(262) == 0:  # white is zero: Pillow turns only 8 bits round
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _over_white(image: Image.Image) -> Image.Image:
    """An image with alpha, of its own or in its palette, over white, in mode "L" or "RGB"."""
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    white = Image.new(image.mode.removesuffix("A"), image.size, "white")
    white.paste(image.convert(white.mode), mask=image.getchannel("A"))
    return white


def _one_value_white(image: Image.Image, depth: int) -> Image.Image:
    """An image of which one grey value or colour is transparent, over white."""
    if image.mode == "1":
        image = image.convert("L")
    values = np.array(image)
    # The value is given in the file's bits, the pixels in eight.
    value = np.asarray(image.info["transparency"])
    value = value >> 8 if depth == 16 else value * (255 // (2**depth - 1))
    values[(values == value) if values.ndim == 2 else (values == value).all(-1)] = 255
    return Image.fromarray(values)


def _reason(name: str | None, error: Exception) -> DecodeError:
    """What a plugin of Pillow's raised, as a reason that is the same every time."""
    if isinstance(error, MemoryError):
        return DecodeError(f"damaged {name}: it asks for more memory than there is")
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError(f"{name} that holds an image of more pixels than Pillow's limit")
    if isinstance(error.__cause__ or error, (struct.error, IndexError)):
        return DecodeError(f"cut off: a {name} that ends too early")
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))[:160]
    if text in ("not identified by this driver", "cannot load this image", ""):
        text = "its header is incomplete"
    if "truncated" in text.lower():
        return DecodeError(f"cut off: {text}")
    return DecodeError(f"damaged {name}: {text}")
