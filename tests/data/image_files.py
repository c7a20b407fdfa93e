"""Image files made by hand: formats, damages and oddities that Pillow does not write."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

QUARTERS = ((200, 40, 40), (40, 160, 60), (50, 70, 200), (220, 210, 90))  # in reading order
GREYS = (32, 96, 160, 224)
WHITE = (255, 255, 255)


def quarters(colours, side=32, dtype=np.uint8) -> np.ndarray:
    """(side, side, ...): the colours as quarters."""
    values = np.asarray(colours, dtype).reshape(2, 2, -1).repeat(side // 2, 0).repeat(side // 2, 1)
    return values[..., 0] if values.shape[-1] == 1 else values


def picture(mode="RGB") -> Image.Image:
    return Image.fromarray(quarters(QUARTERS)).convert(mode)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


JPEG = saved(picture(), "JPEG", quality=95, subsampling=0)
PNG = saved(picture(), "PNG")
GIF = saved(picture().quantize(8), "GIF")
TIFF = saved(picture(), "TIFF")
BMP = saved(picture(), "BMP")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
NOISE_JPEG, NOISE_PNG = saved(NOISE, "JPEG", quality=95), saved(NOISE, "PNG")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: bytes | list[bytes], width: int, height: int, depth: int, colour: int, before=(), after=()) -> bytes:
    """A PNG by hand: packed rows, and other chunks before and after the pixels."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", pixels), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def png_of(values: np.ndarray, depth: int, colour: int, before=(), after=()) -> bytes:
    height, width = values.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in values]
    else:
        bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
        rows = [np.packbits(row).tobytes() for row in bits.reshape(height, -1).astype(np.uint8)]
    return png(rows, width, height, depth, colour, before, after)


def tiff(
    pixels: bytes, width: int, height: int, bits: int, *, samples=1, kind=1, white_is_zero=False, order="<", loop=False
):
    """An uncompressed TIFF by hand of one strip."""
    photometric = 2 if samples == 3 else 0 if white_is_zero else 1
    extra = struct.pack(order + "HHH", bits, bits, bits)
    fields = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
    ]
    fields += [(273, 4, 1, 0), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, len(pixels)), (339, 3, 1, kind)]
    directory_end = 8 + 2 + 12 * len(fields) + 4
    body = struct.pack(order + "H", len(fields))
    for tag, type_, count, value in fields:
        if tag == 273:
            value = directory_end + len(extra)
        if tag == 258 and samples == 3:
            packed = struct.pack(order + "I", directory_end)
        else:
            packed = struct.pack(order + ("H2x" if type_ == 3 else "I"), value)
        body += struct.pack(order + "HHI", tag, type_, count) + packed
    body += struct.pack(order + "I", 8 if loop else 0)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8) + body + extra + pixels


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def jpeg_sized(width: int, height: int) -> bytes:
    return patched(JPEG, JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def without_adobe(content: bytes) -> bytes:
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 16 :]


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    return content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:]


def cmyk_jpeg() -> bytes:
    return saved(
        Image.fromarray(quarters([(*(255 - c for c in colour), 0) for colour in QUARTERS]), "CMYK"), "JPEG", quality=95
    )


def ycck_jpeg() -> bytes:
    """CMYK as Adobe writes it: the inks' complement as YCbCr, marked with transform 2."""
    inks = Image.fromarray(255 - quarters(QUARTERS)).convert("YCbCr")
    planes = np.dstack([np.asarray(inks), np.full((32, 32), 255, np.uint8)])
    content = saved(Image.fromarray(255 - planes, "CMYK"), "JPEG", quality=95)  # Pillow inverts what it stores
    return patched(content, content.index(b"Adobe") + 11, b"\2")


def rotated(orientation: int, format: str = "JPEG") -> bytes:
    """Stored so that EXIF's orientation makes it the picture again."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes
    stored = picture() if orientation == 1 else picture().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    return saved(stored, format, exif=exif, **options)


def animated(format: str, **options) -> bytes:
    first = picture()
    return saved(first, format, save_all=True, append_images=[Image.new("RGB", first.size)] * 2, duration=50, **options)


def webp_canvas(width: int, height: int) -> bytes:
    data = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def ico_of(content: bytes) -> bytes:
    """An icon that claims 32 × 32 and holds another file."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(content), 22) + content


def exif_of(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)


def many_scans() -> bytes:
    """Small in bytes, long to decode: a refining scan, repeated."""
    content = saved(picture(), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 300 + content[-2:]


def interlaced_png() -> bytes:
    """Adam7's seven passes over the picture."""
    rgb, data = quarters(QUARTERS), b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        data += b"".join(b"\0" + row.tobytes() for row in rgb[top::down, left::right])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 1)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def packed_12(values: np.ndarray) -> bytes:
    bits = (values.reshape(-1, 1) >> np.arange(12)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def flipped_bmp() -> bytes:
    return saved(picture().transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP")


ARITHMETIC_JPEG = base64.b64decode(
    """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i
Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj
Y2NjY2NjY2P/yQARCAAgACADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+05AbMKOi6h/vIkXDAkxEXVHRh+N7
0YU7bW4L/9k="""
)  # the picture, by libjpeg with arithmetic coding, which Pillow does not write
