"""Files as they lie in folders of images: odd ones that must come out right, bad ones that must be listed.

Most show the same picture, four quarters of the colours `QUARTERS`.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, features

from .image_files import (
    ARITHMETIC_JPEG,
    BMP,
    GIF,
    GREYS,
    JPEG,
    NOISE,
    NOISE_JPEG,
    NOISE_PNG,
    PNG,
    QUARTERS,
    TIFF,
    WHITE,
    animated,
    chunk,
    cmyk_jpeg,
    exif_of,
    flipped_bmp,
    ico_of,
    interlaced_png,
    jpeg_sized,
    many_scans,
    packed_12,
    patched,
    picture,
    png,
    png_of,
    quarters,
    rotated,
    saved,
    tiff,
    webp_canvas,
    with_segment,
    without_adobe,
    ycck_jpeg,
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """The colours of the quarters that come out, within `within`; an empty tuple is any."""

    colours: tuple[tuple[int, int, int], ...] = QUARTERS
    within: int = 6


@dataclasses.dataclass(frozen=True)
class Listed:
    """A part of the reason; with `or_read`, the picture where Pillow was built to read it."""

    reason: str
    or_read: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    content: bytes
    expected: Converted | Listed


def grey(values=GREYS) -> Converted:
    return Converted(tuple((value,) * 3 for value in values), within=3)


def _jpegs() -> dict[str, Case]:
    listed, middle, scan = Listed, len(NOISE_JPEG) // 2, JPEG.index(b"\xff\xda")
    cases = {
        "jpeg.jpg": Case(JPEG, Converted()),
        "jpeg_named.png": Case(JPEG, Converted()),
        "progressive.jpg": Case(saved(picture(), "JPEG", quality=95, progressive=True), Converted()),
        "subsampled.jpg": Case(saved(picture(), "JPEG", quality=90), Converted(within=12)),
        "grey.jpg": Case(saved(Image.fromarray(quarters([(g,) for g in GREYS])), "JPEG", quality=95), grey()),
        "arithmetic.jpg": Case(ARITHMETIC_JPEG, Listed("damaged JPEG", or_read=True)),
        "cmyk.jpg": Case(cmyk_jpeg(), Converted(within=10)),
        "cmyk_no_adobe.jpg": Case(without_adobe(cmyk_jpeg()), Converted(within=10)),
        "ycck.jpg": Case(ycck_jpeg(), Converted(within=10)),
        "cut_start.jpg": Case(JPEG[:2], listed("not an image")),
        "cut_header.jpg": Case(JPEG[:4], listed("cut off")),
        "cut_app0.jpg": Case(JPEG[:20], listed("JPEG")),
        "cut_tables.jpg": Case(JPEG[:100], listed("cut off")),
        "cut_frame.jpg": Case(JPEG[: JPEG.index(b"\xff\xc0") + 6], listed("cut off")),
        "cut_before_scan.jpg": Case(JPEG[:scan], listed("JPEG")),
        "cut_scan_header.jpg": Case(JPEG[: scan + 6], listed("cut off")),
        "cut_scan.jpg": Case(NOISE_JPEG[:middle], listed("cut off: image file is truncated")),
        "cut_last_byte.jpg": Case(JPEG[:-1], listed("cut off")),
        "trailing_garbage.jpg": Case(JPEG + bytes(range(256)) * 20, Converted()),
        # libjpeg goes on after damage in a scan, and Pillow does not say so.
        "garbage_in_scan.jpg": Case(patched(NOISE_JPEG, middle, bytes(range(1, 200))), Converted(())),
        "random_after_start.jpg": Case(b"\xff\xd8\xff\xe0" + np.random.default_rng(1).bytes(3000), listed("cut off")),
        "huge_header.jpg": Case(jpeg_sized(65500, 65500), listed("65,500 × 65,500 pixels are more than the limit of")),
        "no_width.jpg": Case(jpeg_sized(0, 32), listed("damaged JPEG")),
        "12_bit.jpg": Case(patched(JPEG, JPEG.index(b"\xff\xc0") + 4, b"\x0c"), listed("cannot handle 12-bit layers")),
        "too_many_scans.jpg": Case(many_scans(), listed("scans, more than 200")),
        "corrupt_exif.jpg": Case(
            with_segment(JPEG, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))), Converted()
        ),
        "short_exif.jpg": Case(with_segment(JPEG, 0xE1, b"Exif\0\0II"), Converted()),
        "exif_orientation_99.jpg": Case(with_segment(JPEG, 0xE1, exif_of(99)), Converted()),
        "malformed_mpo.jpg": Case(with_segment(JPEG, 0xE2, b"MPF\0II*\0\x08\0\0\0" + bytes(12)), Converted()),
        "mpo.mpo": Case(
            saved(picture(), "MPO", save_all=True, append_images=[NOISE], quality=95), Converted(within=12)
        ),
    }
    for orientation in range(1, 9):
        cases[f"orientation_{orientation}.jpg"] = Case(rotated(orientation), Converted())
    return cases


def _pngs() -> dict[str, Case]:
    rgb, middle = quarters(QUARTERS), len(NOISE_PNG) // 2
    wide = (rgb.astype(int) << 8) + 200  # 16 bits: the lower eight must not matter
    wide_grey = (quarters([(g,) for g in GREYS]).astype(int) << 8) + 200
    clear_red = ((255, 255, 255), *QUARTERS[1:])
    alpha = quarters([0, 255, 128, 255])
    blended = (WHITE, QUARTERS[1], tuple((c * 128 + 255 * 127) // 255 for c in QUARTERS[2]), QUARTERS[3])
    indices, palette = quarters([(i,) for i in range(4)]), (b"PLTE", bytes(c for q in QUARTERS for c in q))
    steps = quarters([(0,), (1,), (2,), (3,)])
    greys = quarters([(g,) for g in GREYS])
    bomb = zlib.compress(bytes(2_500_000), 9)
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000), 9))
    long_text = (b"iTXt", b"Comment\0\0\0\0\0" + b"x" * 2_000_000)
    idat = PNG.index(b"IDAT")
    fctl = struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 1, 1, 0, 0)
    return {
        "png.png": Case(PNG, Converted()),
        "png_named.jpg": Case(PNG, Converted()),
        "interlaced.png": Case(interlaced_png(), Converted()),
        "cut_signature.png": Case(PNG[:7], Listed("not an image")),
        "cut_header.png": Case(PNG[:20], Listed("cut off")),
        "cut_after_header.png": Case(PNG[:33], Listed("cut off: a PNG that ends too early")),
        "cut_middle.png": Case(NOISE_PNG[:middle], Listed("cut off")),
        "cut_pixels.png": Case(PNG[: idat + 20], Listed("cut off")),
        "cut_last_byte.png": Case(PNG[:-1], Converted()),
        "bad_header_crc.png": Case(patched(PNG, 30, b"\0\0\0"), Listed("damaged PNG")),
        # The pixels' checksum is zlib's, which "bad_pixels.png" violates; Pillow leaves PNG's out.
        "bad_pixel_crc.png": Case(patched(PNG, len(PNG) - 16, b"\0\0\0\0"), Converted()),
        "bad_pixels.png": Case(patched(NOISE_PNG, middle, bytes(50)), Listed("damaged PNG")),
        "huge_header.png": Case(
            png([bytes(100)], 60_000, 60_000, 8, 2), Listed("60,000 × 60,000 pixels are more than")
        ),
        "bomb.png": Case(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", bomb),
            Listed("20,000 × 20,000 pixels are more than"),
        ),
        "text_bomb.png": Case(png_of(rgb, 8, 2, before=[text]), Listed("MAX_TEXT_CHUNK")),
        "long_text.png": Case(png_of(rgb, 8, 2, before=[long_text]), Converted()),
        "16_bit_rgb.png": Case(png_of(wide, 16, 2), Converted(within=1)),
        "16_bit_grey.png": Case(png_of(wide_grey, 16, 0), grey()),
        "16_bit_rgba.png": Case(png_of(np.dstack([wide, alpha.astype(int) * 257]), 16, 6), Converted(blended)),
        "16_bit_grey_transparent.png": Case(
            png_of(wide_grey, 16, 0, [(b"tRNS", struct.pack(">H", 96 * 256 + 200))]), grey((32, 255, 160, 224))
        ),
        "16_bit_rgb_transparent.png": Case(
            png_of(wide, 16, 2, [(b"tRNS", struct.pack(">HHH", *wide[0, 0]))]), Converted(clear_red)
        ),
        "rgb_transparent.png": Case(
            png_of(rgb, 8, 2, [(b"tRNS", struct.pack(">HHH", *QUARTERS[0]))]), Converted(clear_red)
        ),
        "grey_transparent.png": Case(
            png_of(greys, 8, 0, [(b"tRNS", struct.pack(">H", 96))]), grey((32, 255, 160, 224))
        ),
        "4_bit_grey_transparent.png": Case(
            png_of(steps * 4, 4, 0, [(b"tRNS", struct.pack(">H", 4))]), grey((0, 255, 136, 204))
        ),
        "2_bit_grey_transparent.png": Case(
            png_of(steps, 2, 0, [(b"tRNS", struct.pack(">H", 2))]), grey((0, 85, 255, 255))
        ),
        "1_bit.png": Case(png_of(quarters([(0,), (1,), (1,), (0,)]), 1, 0), grey((0, 255, 255, 0))),
        "1_bit_transparent.png": Case(
            png_of(quarters([(0,), (1,), (1,), (0,)]), 1, 0, [(b"tRNS", b"\0\0")]), grey((255,) * 4)
        ),
        "rgba.png": Case(saved(Image.fromarray(np.dstack([rgb, alpha])), "PNG"), Converted(blended)),
        "grey_alpha.png": Case(
            saved(Image.fromarray(np.dstack([greys, alpha]), "LA"), "PNG"), grey((255, 96, 207, 224))
        ),
        "palette.png": Case(png_of(indices, 8, 3, [palette]), Converted()),
        "palette_2_bit.png": Case(png_of(indices, 2, 3, [palette]), Converted()),
        "palette_transparent.png": Case(
            png_of(indices, 8, 3, [palette, (b"tRNS", b"\0\xff\xff\xff")]), Converted(clear_red)
        ),
        "palette_half_transparent.png": Case(
            png_of(indices, 8, 3, [palette, (b"tRNS", b"\0\xff\x80\xff")]), Converted(blended)
        ),
        "palette_short.png": Case(png_of(indices, 8, 3, [(b"PLTE", palette[1][:6])]), Converted(())),
        "orientation_6.png": Case(rotated(6, "PNG"), Converted()),
        "orientation_after_pixels.png": Case(
            png_of(np.rot90(rgb), 8, 2, after=[(b"eXIf", exif_of(6)[6:])]), Converted()
        ),
        "animated.png": Case(animated("PNG"), Converted()),
        "bad_animation.png": Case(png_of(rgb, 8, 2, before=[(b"acTL", bytes(8)), (b"fcTL", fctl)]), Converted()),
        "1x1.png": Case(png([bytes((10, 200, 30))], 1, 1, 8, 2), Converted(((10, 200, 30),) * 4, 1)),
        "1x5000.png": Case(png([bytes((10, 200, 30))] * 5000, 1, 5000, 8, 2), Converted(((10, 200, 30),) * 4, 1)),
        "5000x1.png": Case(png([bytes((10, 200, 30)) * 5000], 5000, 1, 8, 2), Converted(((10, 200, 30),) * 4, 1)),
    }


def _tiffs() -> dict[str, Case]:
    greys = quarters([(g,) for g in GREYS])
    wide, rgb = (greys.astype(np.uint16) << 8) + 200, (quarters(QUARTERS).astype(np.uint16) << 8) + 200
    floats, longs = greys.astype("<f4"), greys.astype("<i4") * 1_000_000
    flipped = Image.fromarray(quarters(QUARTERS)[:, ::-1])
    samples = patched(TIFF, TIFF.index(struct.pack("<HHIH", 277, 3, 1, 3)) + 8, b"\xff")
    return {
        "samples.tif": Case(samples, Listed("TIFF")),
        "tiff.tif": Case(TIFF, Converted()),
        "tiff_named.jpg": Case(TIFF, Converted()),
        "packed.tif": Case(saved(picture(), "TIFF", compression="tiff_lzw"), Converted()),
        "cut.tif": Case(TIFF[:200], Listed("cut off")),
        "cut_directory.tif": Case(TIFF[:12], Listed("damaged TIFF")),
        "packed_cut.tif": Case(saved(NOISE, "TIFF", compression="tiff_adobe_deflate")[:3000], Listed("TIFF")),
        "loop.tif": Case(tiff(greys.tobytes(), 32, 32, 8, loop=True), grey()),
        "white_is_zero.tif": Case(tiff((255 - greys).tobytes(), 32, 32, 8, white_is_zero=True), grey()),
        "16_bit_little.tif": Case(tiff(wide.astype("<u2").tobytes(), 32, 32, 16), grey()),
        "16_bit_big.tif": Case(tiff(wide.astype(">u2").tobytes(), 32, 32, 16, order=">"), grey()),
        "16_bit_white_is_zero.tif": Case(
            tiff((0xFFFF - wide).astype("<u2").tobytes(), 32, 32, 16, white_is_zero=True), grey()
        ),
        "16_bit_rgb.tif": Case(tiff(rgb.astype("<u2").tobytes(), 32, 32, 16, samples=3), Converted(within=1)),
        "12_bit.tif": Case(tiff(packed_12((greys.astype(int) << 4) + 9), 32, 32, 12), grey()),
        "16_bit_signed.tif": Case(tiff((greys.astype("<i2") - 128).tobytes(), 32, 32, 16, kind=2), Listed("signed")),
        "float.tif": Case(tiff(floats.tobytes(), 32, 32, 32, kind=3), Listed("floating-point pixels")),
        "32_bit.tif": Case(tiff(longs.tobytes(), 32, 32, 32, kind=2), Listed("pixels of more than 16 bits")),
        "32_bit_small_values.tif": Case(
            tiff(greys.astype("<i4").tobytes(), 32, 32, 32, kind=2), Listed("pixels of more than")
        ),
        "huge_header.tif": Case(tiff(bytes(64), 100_000, 90_000, 8), Listed("100,000 × 90,000 pixels are more than")),
        "cmyk.tif": Case(saved(picture("CMYK"), "TIFF"), Converted()),
        "lab.tif": Case(saved(Image.new("LAB", (32, 32), (128, 128, 128)), "TIFF"), Converted(((119,) * 3,) * 4, 20)),
        "orientation_2.tif": Case(saved(flipped, "TIFF", tiffinfo={274: 2}), Converted()),
        "packed_orientation_2.tif": Case(
            saved(flipped, "TIFF", tiffinfo={274: 2}, compression="tiff_lzw"), Converted()
        ),
    }


def _others() -> dict[str, Case]:
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"
    gif_clear = picture().quantize(8)
    clear = gif_clear.getpixel((0, 0))
    clear_red = (WHITE, *QUARTERS[1:])
    alpha = Image.fromarray(np.dstack([quarters(QUARTERS), quarters([0, 255, 255, 255])]))
    fits = b"".join(
        card.ljust(80)
        for card in (b"SIMPLE  = T", b"BITPIX  = 8", b"NAXIS   = 2", b"NAXIS1  = 8", b"NAXIS2  = 8", b"END")
    )
    # IPTC's records: the picture's layers, size, compression, and as data another file.
    fields = [(3, 60, b"\1\0"), (3, 20, b"\0\x20"), (3, 30, b"\0\x20"), (3, 120, b"\1"), (8, 10, page)]
    iptc = b"".join(struct.pack(">BBBH", 0x1C, record, field, len(data)) + data for record, field, data in fields)
    cases = {
        "empty.jpg": Case(b"", Listed("empty file")),
        "one_byte.jpg": Case(b"\xff", Listed("not an image that Pillow reads")),
        "zeros.jpg": Case(bytes(5000), Listed("not an image")),
        "text.jpg": Case(b"Subject: not a picture\nat all\n" * 40, Listed("not an image that Pillow reads")),
        "page.jpg": Case(b"<!DOCTYPE html><html><body>404 Not Found</body></html>", Listed("not an image")),
        "drawing.svg": Case(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', Listed("not an image")),
        "paper.pdf": Case(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n", Listed("not an image")),
        "archive.jpg": Case(b"PK\x03\x04" + bytes(100), Listed("not an image")),
        "packed.jpg": Case(gzip.compress(JPEG, mtime=0), Listed("not an image")),
        "drawing.eps": Case(page, Listed("EPS is not read: Pillow would start Ghostscript")),
        "drawing_eps_named.jpg": Case(page, Listed("EPS is not read")),
        "dos.eps": Case(
            struct.pack("<IIIIIII", 0xC6D3D0C5, 32, len(page), 0, 0, 0, 0) + page, Listed("EPS is not read")
        ),
        "holds_eps.iim": Case(iptc, Listed("not an image")),
        "sky.fits": Case(fits.ljust(2880), Listed("FITS is not read: it unpacks to any size")),
        "gif.gif": Case(GIF, Converted()),
        "animated.gif": Case(animated("GIF"), Converted()),
        "transparent.gif": Case(saved(gif_clear, "GIF", transparency=clear), Converted(clear_red)),
        "cut.gif": Case(saved(NOISE.quantize(256), "GIF")[:2000], Listed("cut off")),
        "cut_header.gif": Case(GIF[:11], Listed("cut off: a GIF that ends too early")),
        "huge_header.gif": Case(
            patched(GIF, 6, struct.pack("<HH", 65535, 65535)), Listed("65,535 × 65,535 pixels are more than")
        ),
        "bmp.bmp": Case(BMP, Converted()),
        "cut.bmp": Case(BMP[:1000], Listed("cut off")),
        "upside_down.bmp": Case(patched(flipped_bmp(), 22, struct.pack("<i", -32)), Converted()),
        "huge_header.bmp": Case(
            patched(BMP, 18, struct.pack("<ii", 50_000, 40_000)), Listed("50,000 × 40,000 pixels are more than")
        ),
        "huge_header.ppm": Case(b"P6 60000 60000 255\n" + bytes(100), Listed("60,000 × 60,000 pixels are more than")),
        "16_bit.pgm": Case(
            b"P5 32 32 65535\n" + ((quarters([(g,) for g in GREYS]).astype(int) << 8) + 200).astype(">u2").tobytes(),
            grey(),
        ),
        "1_bit.pbm": Case(b"P1 4 4\n1 1 0 0\n1 1 0 0\n0 0 1 1\n0 0 1 1\n", grey((0, 255, 255, 0))),
        "float.pfm": Case(b"Pf\n2 2\n-1.0\n" + bytes(16), Listed("floating-point pixels")),
        "huge_header.psd": Case(
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 29_000, 29_000, 8, 3) + bytes(100),
            Listed("29,000 × 29,000"),
        ),
        "icon.ico": Case(saved(alpha, "ICO", sizes=[(32, 32)]), Converted(clear_red)),
        "icon_of_bomb.ico": Case(
            ico_of(png([bytes(100)], 60_000, 60_000, 8, 2)), Listed("more pixels than Pillow's limit")
        ),
        "icon_cut.ico": Case(saved(alpha, "ICO", sizes=[(32, 32)])[:40], Listed("cut off")),
        "targa.tga": Case(saved(picture(), "TGA"), Converted()),
        "cut.tga": Case(saved(picture(), "TGA")[:500], Listed("cut off")),
    }
    if features.check("webp"):
        cases |= {
            "webp.webp": Case(saved(picture(), "WEBP", lossless=True), Converted()),
            "lossy.webp": Case(saved(picture(), "WEBP", quality=95), Converted(within=12)),
            "transparent.webp": Case(saved(alpha, "WEBP", lossless=True), Converted(clear_red)),
            "animated.webp": Case(animated("WEBP", lossless=True), Converted()),
            "orientation_8.webp": Case(rotated(8, "WEBP"), Converted(within=14)),
            "cut.webp": Case(saved(NOISE, "WEBP", lossless=True)[:2000], Listed("damaged WEBP")),
            "huge_header.webp": Case(webp_canvas(2**24, 255), Listed("16,777,216 × 255 pixels are more than")),
        }
    if features.check("jpg_2000"):
        content = saved(picture(), "JPEG2000")
        size = content.index(b"\xff\x51") + 6
        huge = patched(content, content.index(b"ihdr") + 4, struct.pack(">II", 70_000, 70_000))
        cases |= {
            "jpeg2000.jp2": Case(content, Converted()),
            "cut.jp2": Case(saved(NOISE, "JPEG2000")[:2000], Listed("JPEG2000")),
            "huge_header.jp2": Case(patched(huge, size, struct.pack(">II", 70_000, 70_000)), Listed("70,000 × 70,000")),
        }
    return cases


FILES: dict[str, Case] = _jpegs() | _pngs() | _tiffs() | _others()


# What needs a disk: recipes that make something odd at a path, and a part of the reason.


def _unreadable(path: pathlib.Path) -> None:
    path.write_bytes(JPEG)
    path.chmod(0)  # root reads it all the same: see to it that the reader is someone else


ON_DISK: dict[str, tuple[Callable[[pathlib.Path], object], Converted | Listed]] = {
    "link_to_itself.jpg": (lambda path: path.symlink_to(path.name), Listed("Too many levels of symbolic links")),
    "link_to_nothing.jpg": (lambda path: path.symlink_to("nothing.jpg"), Listed("No such file")),
    "directory.jpg": (lambda path: path.mkdir(), Listed("directory")),
    "pipe.jpg": (lambda path: os.mkfifo(path), Listed("is a pipe")),  # opening it waits for a writer
    "unreadable.jpg": (_unreadable, Listed("Permission denied")),
    "sparse.jpg": (lambda path: (path.write_bytes(b""), os.truncate(path, 4096)), Listed("not an image")),
    "name with spaces, ünïcode and 'quotes'.jpg": (lambda path: path.write_bytes(JPEG), Converted()),
}


def write_all(folder: pathlib.Path) -> dict[str, Converted | Listed]:
    """Writes every file of the table into a folder; what is expected of each, by name."""
    for name, case in FILES.items():
        (folder / name).write_bytes(case.content)
    for name, (make, _) in ON_DISK.items():
        make(folder / name)
    return {name: case.expected for name, case in FILES.items()} | {name: e for name, (_, e) in ON_DISK.items()}
