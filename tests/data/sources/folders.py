"""A folder of images as the tests make it, open it, and read it back."""

from __future__ import annotations

import pytest

from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import open_source

from .miniature import write


def tree(root, *names):
    """Files, each holding its own name."""
    write(root, {name: name.encode() for name in names})
    return root


def opened(root, **options):
    return open_source(f"folder:{root}", **options)


def refused(root, text, **options):
    with pytest.raises(DataError, match=text) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)


def content(split):
    """Label and name of each image, checked against the bytes."""
    found = []
    for index in range(len(split)):
        data, label = split.load(index)
        assert data.decode() == split.name(index)
        found.append((label, split.name(index)))
    return found
