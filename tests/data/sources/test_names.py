"""How a source is named."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import SOURCES, open_source


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digit", "did you mean 'digits'"),
        ("foldr:/x", "did you mean 'folder:DIR'"),
        ("ImageNet:/x", "did you mean 'imagenet:DIR'"),
        ("cifar:/x", "did you mean 'cifar10:DIR'"),
        ("tdfs:mnist", r"did you mean 'tfds:NAME[:VERSION]'"),
        ("zzz", "there is no data source 'zzz'; known: digits, folder:DIR"),
        ("", "there is no data source ''"),
        ("folder", "write folder:DIR"),
        ("imagenet:", "write imagenet:DIR"),
        ("tfds:", "write tfds:NAME"),
        ("digits:8", "there is no data source 'digits:8': write digits"),
    ],
)
def test_what_is_no_name(name, text):
    with pytest.raises(DataError, match=re.escape(text)):
        open_source(name)


def test_a_folder_without_its_kind(tmp_path):
    with pytest.raises(DataError, match=f"did you mean 'folder:{tmp_path}'"):
        open_source(str(tmp_path))


def test_digits_have_a_validation_split():
    assert "digits" in SOURCES
    with pytest.raises(DataError, match="leave val_fraction"):
        open_source("digits", val_fraction=0.1)


def test_nothing_heavy_is_imported_before_it_is_asked_for(tmp_path):
    program = """
import sys
from alexnet_jax.data.sources import open_source
from alexnet_jax.data.prepared import DataError
for kind in ("folder", "imagenet", "cifar10"):
    try:
        open_source(f"{kind}:{sys.argv[1]}")
    except DataError:
        pass
    else:
        sys.exit("opened")
heavy = {"scipy", "tensorflow_datasets", "tensorflow", "sklearn"} & set(sys.modules)
sys.exit(", ".join(heavy) or None)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
