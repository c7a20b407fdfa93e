"""`decode` on the table of odd and bad files, against Pillow used plainly, and under many threads."""

from __future__ import annotations

import concurrent.futures
import io
import logging
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from alexnet_jax.data import decode as module
from alexnet_jax.data.decode import REFUSED, DecodeError, decode, quiet_pillow
from alexnet_jax.models import resize

from .bad_files import FILES, ON_DISK, Converted, Listed, write_all
from .image_files import JPEG, PNG, QUARTERS, TIFF, ico_of, picture, png, quarters, saved

SIZE = 32
PLACES = ((8, 8), (8, 24), (24, 8), (24, 24))  # the middles of the quarters


def outcome(content, **options):
    """The pixels, or the reason."""
    try:
        return decode(content, size=SIZE, rule="shorter_side", **options)
    except DecodeError as error:
        return str(error)


def photo(height, width, seed=0):
    """A smooth colour picture with edges and some noise, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] * (400 / max(height, width))
    base = [np.sin(x / (9 + 4 * c) + c) + np.cos(y / (7 + 5 * c)) + np.sign(x - 2 * y + 90 * c) for c in range(3)]
    return np.clip(np.stack(base, -1) * 40 + 127 + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FILES)
def test_converted_right_or_listed(name, capfd):
    case = FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = outcome(case.content)
    if isinstance(found, str):
        assert not isinstance(case.expected, Converted), found
        assert case.expected.reason in found
        assert "\n" not in found
        assert " at 0x" not in found
        assert len(found) < 200
    else:
        expected = case.expected
        if isinstance(expected, Listed):
            assert expected.or_read, "read, where it was to be listed"
            expected = Converted()
        assert (found.shape, found.dtype, found.flags.c_contiguous) == ((SIZE, SIZE, 3), np.uint8, True)
        for place, colour in zip(PLACES, expected.colours, strict=bool(expected.colours)):
            assert abs(found[place].astype(int) - colour).max() <= expected.within, (place, found[place], colour)
    assert capfd.readouterr() == ("", "")


def test_the_table_is_long_enough():
    assert len(FILES) + len(ON_DISK) >= 60
    assert len(set(FILES) | set(ON_DISK)) == len(FILES) + len(ON_DISK)
    for kind in (Converted, Listed):
        assert sum(isinstance(case.expected, kind) for case in FILES.values()) >= 30


def test_the_table_on_disk(tmp_path):
    expected = write_all(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(expected)
    assert (tmp_path / "pipe.jpg").is_fifo()
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        (tmp_path / "link_to_itself.jpg").read_bytes()
    assert "not an image" in outcome((tmp_path / "sparse.jpg").read_bytes())


@pytest.mark.parametrize("rule", ["shorter_side", "warp"])
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (256, 256), (90, 131)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_as_the_network_scales(shape, rule, format):
    """Bit for bit what `resize` makes of Pillow's own full decode."""
    content = saved(Image.fromarray(photo(*shape)), format)
    with Image.open(io.BytesIO(content)) as image:
        wanted = resize(np.asarray(image.convert("RGB")), 256, rule)
    np.testing.assert_array_equal(decode(content, size=256, rule=rule), wanted)
    grey = saved(Image.fromarray(photo(*shape)).convert("L"), format)
    with Image.open(io.BytesIO(grey)) as image:
        wanted = resize(np.asarray(image.convert("RGB")), 256, rule)
    np.testing.assert_array_equal(decode(grey, size=256, rule=rule), wanted)


@pytest.mark.parametrize("rule", ["shorter_side", "warp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_after_scaling_as_before(orientation, rule):
    image = Image.fromarray(photo(95, 150))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(image, "PNG", exif=exif), size=SIZE, rule=rule)
    turned = image if orientation == 1 else image.transpose(module._TRANSPOSES[orientation])
    assert abs(found.astype(int) - resize(np.asarray(turned), SIZE, rule)).max() <= 1


@pytest.mark.parametrize("rule", ["shorter_side", "warp"])
@pytest.mark.parametrize("shape", [(129, 190), (260, 381), (530, 1023)])  # a half, a quarter, an eighth
def test_large_jpegs_are_decoded_smaller(shape, rule, monkeypatch):
    content = saved(Image.fromarray(photo(*shape)), "JPEG", quality=92)
    drafted = []
    jpeg = type(Image.open(io.BytesIO(content)))
    draft = jpeg.draft
    monkeypatch.setattr(
        jpeg, "draft", lambda self, *a: drafted.append((a, draft(self, *a), self.size)) or drafted[-1][1]
    )
    found = decode(content, size=SIZE, rule=rule)
    with Image.open(io.BytesIO(content)) as image:
        full = resize(np.asarray(image), SIZE, rule)
    [(_, _, size)] = drafted
    assert 2 * SIZE <= min(size) <= min(shape) // 2 + 1
    difference = abs(found.astype(int) - full)
    assert difference.mean() < 1
    assert difference.max() < 16
    # Just below four times the target nothing is scaled on the way.
    small = saved(Image.fromarray(photo(127, 190)), "JPEG", quality=92)
    with Image.open(io.BytesIO(small)) as image:
        full = resize(np.asarray(image), SIZE, rule)
    np.testing.assert_array_equal(decode(small, size=SIZE, rule=rule), full)
    assert len(drafted) == 1


def test_arrays():
    values = photo(50, 70)
    np.testing.assert_array_equal(decode(values, size=SIZE, rule="warp"), resize(values, SIZE, "warp"))
    flipped = decode(values[:, ::-1][:SIZE, :SIZE], size=SIZE, rule="warp")
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, values[:, ::-1][:SIZE, :SIZE])
    for bad in (values / 255, values[..., 0], values[..., :2], values[:0]):
        with pytest.raises(DecodeError, match=r"an array of .* instead of uint8 \(height, width, 3\)"):
            decode(bad, size=SIZE, rule="warp")


def test_a_rule_that_does_not_exist():
    for content in (PNG, photo(9, 9)):
        with pytest.raises(
            ValueError, match="the resize rule must be one of 'shorter_side', 'warp', got 'pad'"
        ) as found:
            decode(content, size=SIZE, rule="pad")
        assert not isinstance(found.value, DecodeError)


def test_the_pixel_limit():
    assert outcome(PNG, max_pixels=32 * 32).shape == (SIZE, SIZE, 3)
    assert outcome(PNG, max_pixels=32 * 32 - 1) == "32 × 32 pixels are more than the limit of 1,023"
    # Above Pillow's own limit, where ours allows it: refused for want of pixels, not for their number.
    huge = png([bytes(100)], 20_000, 10_000, 8, 0)
    assert "20,000 × 10,000 pixels" in outcome(huge)
    assert outcome(huge, max_pixels=200_000_000).startswith("cut off")
    # Pillow's limit stays for what lies inside another file.
    inside = ico_of(png([bytes(100)], 20_000, 10_000, 8, 0))
    assert "more pixels than Pillow's limit" in outcome(inside)


def test_huge_headers_cost_no_memory():
    """In a fresh process, whose peak counts every allocation that was touched."""
    code = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from alexnet_jax.data.decode import decode, DecodeError
from data.bad_files import FILES
names = [name for name in FILES if "huge" in name or "bomb" in name]
def refuse(name):
    try:
        decode(FILES[name].content, size=32, rule="warp")
    except DecodeError:
        return
    raise AssertionError(name)
refuse("text.jpg")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in names:
    refuse(name)
print(len(names), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    tests = str(__file__).rpartition("/data/")[0]
    done = subprocess.run([sys.executable, "-c", code, tests], capture_output=True, text=True, check=True, timeout=60)
    count, kilobytes = map(int, done.stdout.split())
    assert count >= 10
    assert kilobytes < 20_000


def test_no_program_is_started(monkeypatch):
    started = []

    def start(*args, **kwargs):
        started.append(args)
        raise OSError("no program here")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    names = [name for name in FILES if "eps" in name]
    for name in names:
        assert isinstance(outcome(FILES[name].content), str)
    assert len(names) >= 4
    assert not started
    # It can fail: Pillow itself would.
    with pytest.raises(OSError, match="no program here"):
        Image.open(io.BytesIO(FILES["drawing.eps"].content)).load()
    assert started


def test_refused_formats_exist():
    Image.init()
    assert set(REFUSED) <= set(Image.ID)


def test_quiet_and_as_it_was():
    """Pillow's settings and Python's filters are those of before, whoever leaves last."""
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def other():
        with quiet_pillow(10**9):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet_pillow():
        thread.start()
        assert entered.wait(10)
        assert Image.MAX_IMAGE_PIXELS == 500_000_000
        with pytest.warns(UserWarning, match="not Pillow's"):
            warnings.warn("not Pillow's", UserWarning, stacklevel=1)
    held = Image.MAX_IMAGE_PIXELS, list(warnings.filters)  # the other thread is inside still
    leave.set()
    thread.join()
    assert held[0] == 500_000_000
    assert held[1] != before[1]
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
    with pytest.raises(DecodeError):
        decode(b"", size=SIZE, rule="warp")
    with pytest.raises(RuntimeError, match="inside"), quiet_pillow():
        raise RuntimeError("inside")
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_the_log_is_quiet_and_as_it_was(caplog):
    """What Pillow logs as an error comes back as the reason."""
    log = logging.getLogger("PIL")
    assert isinstance(outcome(FILES["samples.tif"].content), str)
    assert not caplog.records
    assert log.level == logging.NOTSET
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(FILES["samples.tif"].content))
    assert caplog.records


def test_the_users_limit_is_never_lowered(monkeypatch):
    for limit in (None, 10**10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with quiet_pillow():
            assert limit == Image.MAX_IMAGE_PIXELS
        assert limit == Image.MAX_IMAGE_PIXELS


def test_pillow_would_warn():
    """The table holds what Pillow warns of: under `-W error`, `decode` must not even see it."""
    warned = set()
    for name, case in FILES.items():
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                with Image.open(io.BytesIO(case.content)) as image:
                    if image.size[0] * image.size[1] < 10**6 and image.format != "EPS":
                        image.getexif()
                        image.convert("RGB")
            except Exception:
                continue
            finally:
                warned |= {name for each in heard if "PIL" in each.filename}
    assert len(warned) >= 4, warned


@pytest.mark.timeout(60)
def test_threads_agree():
    contents = [case.content for case in FILES.values()]
    alone = [outcome(content) for content in contents]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(outcome, contents * 4))
    assert not [(str(each.message), each.filename, each.lineno) for each in heard]
    for index, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[index % len(alone)])


def test_the_first_decode_in_threads():
    """Formats are registered once, whichever thread comes first, in a fresh process."""
    code = """
import concurrent.futures, sys
from PIL import Image
from alexnet_jax.data.decode import decode
content = sys.stdin.buffer.read()
assert "TIFF" not in Image.ID
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: decode(content, size=32, rule="warp").tobytes(), range(64)))
assert len(set(found)) == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], input=TIFF, check=True, timeout=60)


VALID = [
    (name, case.content)
    for name, case in FILES.items()
    if isinstance(case.expected, Converted) and len(case.content) < 20_000
]


@pytest.mark.timeout(60)
@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_damage_is_a_reason_or_a_picture(data):
    name, content = data.draw(st.sampled_from(VALID))
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, min(len(content) - 1, 200 if data.draw(st.booleans()) else len(content))))
        damaged[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    found = outcome(bytes(damaged[:cut]), max_pixels=1_000_000)
    assert isinstance(found, str) or found.shape == (SIZE, SIZE, 3), name


@pytest.mark.timeout(60)
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *sorted({case.content[:12] for case in FILES.values()})]))
def test_any_bytes(tail, start):
    found = outcome(start + tail, max_pixels=1_000_000)
    assert isinstance(found, str) or found.shape == (SIZE, SIZE, 3)


def test_every_cut_of_a_file_is_listed():
    """Or whole, where only what follows the pixels is missing."""
    for content, least in ((JPEG, len(JPEG)), (PNG, len(PNG) - 40)):
        whole = outcome(content)
        for end in range(len(content)):
            found = outcome(content[:end])
            assert isinstance(found, str) or end >= least, end
            if not isinstance(found, str):
                np.testing.assert_array_equal(found, whole)


def test_decode_changes_nothing_at_import():
    code = """
import warnings, PIL.Image as Image
from PIL import ImageFile
import alexnet_jax.models
before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.ID), list(warnings.filters)
import alexnet_jax.data.decode
assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.ID), list(warnings.filters))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_picture_of_the_table():
    """The table's own picture is what its colours say."""
    np.testing.assert_array_equal(np.asarray(picture()), quarters(QUARTERS))
