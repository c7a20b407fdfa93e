"""What `data.source` means: a folder, or a source that is prepared once into the user's cache."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from alexnet_jax.data import cached as module
from alexnet_jax.data.cached import prepared
from alexnet_jax.data.prepared import DataError
from alexnet_jax.data.sources import InMemory

from .conftest import pictures


@pytest.fixture
def toy(source, monkeypatch):
    """The small source under the name of the digits; the list of openings."""
    opened = []

    def open_source(name, *, val_fraction):
        opened.append((name, val_fraction))
        return source

    monkeypatch.setattr(module, "open_source", open_source)
    return opened


def test_a_source_is_prepared_once(toy, tmp_path):
    options = {"size": 6, "rule": "shorter_side", "cache_dir": tmp_path / "cache"}
    first = prepared("digits", **options)
    stamps = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    again = prepared("digits", **options)
    assert toy == [("digits", None)]
    assert again.directory == first.directory
    assert {path: path.stat().st_mtime_ns for path in first.directory.iterdir()} == stamps
    directories = {first.directory}
    for changed in ({"size": 5}, {"rule": "warp"}):
        found = prepared("digits", **{**options, **changed})
        assert found.directory not in directories
        directories.add(found.directory)
    assert len(toy) == 3


def test_the_cache_is_in_the_users_cache_folder(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = prepared("digits", size=6, rule="shorter_side")
    assert found.directory.is_relative_to(tmp_path / "xdg" / "alexnet-jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = prepared("digits", size=6, rule="shorter_side")
    assert found.directory.is_relative_to(tmp_path / "home" / ".cache" / "alexnet-jax")


def test_changed_images_are_prepared_anew(source, tmp_path, monkeypatch):
    options = {"size": 6, "rule": "shorter_side", "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr(module, "open_source", lambda name, val_fraction: source)
    first = prepared("folder:somewhere", **options)
    more = {**source.splits, "train": InMemory(pictures(12, 1))}
    changed = dataclasses.replace(source, splits=more, fingerprint="2")
    monkeypatch.setattr(module, "open_source", lambda name, val_fraction: changed)
    second = prepared("folder:somewhere", **options)
    assert second.directory != first.directory
    assert (len(first.splits["train"]), len(second.splits["train"])) == (11, 12)


def test_a_large_source_is_not_put_into_the_cache_unasked(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(DataError) as caught:
        prepared("folder:big", size=6, rule="warp", val_fraction=0.25, cache_dir=tmp_path / "cache")
    command = "alexnet-jax prepare folder:big --out DIR --size 6 --resize warp --val-fraction 0.25"
    assert command in str(caught.value)
    assert "config.data.source=DIR" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_folder_is_used_as_it_is(folder):
    found = prepared(str(folder), size=6, rule="shorter_side")
    assert found.directory == folder


@pytest.mark.parametrize(
    ("size", "rule", "words"),
    [
        (7, "shorter_side", "image_size=6, this run needs 7: set config.data.image_size=6, or .* --size 7"),
        (6, "warp", "resize_rule='shorter_side', this run needs 'warp': .* --resize warp"),
    ],
)
def test_a_folder_of_another_size_or_rule_is_refused(folder, size, rule, words):
    with pytest.raises(DataError, match=words):
        prepared(str(folder), size=size, rule=rule)


def test_a_name_that_is_nothing_is_refused(tmp_path, folder):
    with pytest.raises(DataError, match=r"nowhere.*digits.*folder:DIR"):
        prepared(str(tmp_path / "nowhere"), size=6, rule="shorter_side")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        prepared(str(tmp_path / "empty"), size=6, rule="shorter_side")
    with pytest.raises(DataError, match=r"val_fraction=0\.1.*alexnet-jax prepare"):
        prepared(str(folder), size=6, rule="shorter_side", val_fraction=0.1)


def test_class_folders_without_their_word_are_recognised(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "inside").mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=rf"set config\.data\.source=folder:{tmp_path}"):
        prepared(str(tmp_path), size=6, rule="shorter_side")


def test_a_cache_that_cannot_be_written_is_refused_in_words(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*config\.data\.cache_dir") as caught:
        prepared("digits", size=6, rule="shorter_side", cache_dir=tmp_path / "file")
    assert "\n" not in str(caught.value)
