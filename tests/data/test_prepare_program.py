"""`alexnet-jax prepare` as a person uses it: what it prints, makes and refuses; real processes and signals."""

from __future__ import annotations

import io
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.cli import main
from alexnet_jax.data.prepared import open_prepared
from alexnet_jax.training.metrics import read

from .bad_files import Converted, write_all
from .sources import miniature
from .test_prepare import content


def class_folders(
    root: pathlib.Path, *, classes=("crème brûlée", "犬 と 猫"), count: int = 6, size=(24, 18)
) -> pathlib.Path:
    """Class folders of PNGs, train and val."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 2)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index} é.png")
    return root


@pytest.fixture
def images(tmp_path):
    """Two classes with spaces and non-ASCII in their names."""
    return class_folders(tmp_path / "my images")


def command(*arguments, **options):
    """The program in a process of its own."""
    program = [sys.executable, "-W", "error", "-c", "import sys; from alexnet_jax.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_folder_of_images_from_the_first_command_to_the_training(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", f"folder:{images}", "--out", str(out), "--size", "16", "--preview"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in (
        "12 train, 4 val images, 2 classes",
        "images of 16 pixels, 2 classes, raw",
        "preview.png",
        "a second",
    ):
        assert words in printed.out
    data = open_prepared(out)
    assert data.classes == ("crème brûlée", "犬 と 猫")
    assert data.names("train")[0] == "train/crème brûlée/0 é.png"
    with Image.open(out / "preview.png") as picture:
        assert min(picture.size) > 500
    assert main(["prepare", "--check", str(out)]) == 0
    assert "every checksum is right" in capsys.readouterr().out
    # Again: nothing to do. Spoilt: found.
    before = content(out)
    assert main(["prepare", f"folder:{images}", "--out", str(out), "--size", "16"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert content(out) == before
    spoilt = out / "train-00000.bin"
    spoilt.write_bytes(bytes(spoilt.stat().st_size))
    assert main(["prepare", "--check", str(out)]) == 1
    printed = capsys.readouterr()
    assert "train-00000.bin is damaged" in printed.err
    assert "1 files are wrong" in printed.out


TINY = [
    *("--config.model.name=cifar", "--config.model.width=0.1", "--config.model.init=None", "--config.batch_size=4"),
    *("--config.num_epochs=1", "--config.log_every_steps=1", "--config.data.image_size=16"),
    *("--config.data.crop_size=14", "--config.data.flip=True", "--config.data.colour_noise=paper"),
]


@pytest.mark.slow
def test_training_from_class_folders_is_one_command(images, tmp_path, capsys):
    flags = [f"--config.data.cache_dir={tmp_path / 'cache'}", *TINY]
    assert main(["train", f"--config.data.source=folder:{images}", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    lines = read(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3]
    assert all(0 <= line["data_wait_fraction"] <= 1 for line in lines if line["split"] == "train")
    assert (tmp_path / "run" / "data_preview.png").stat().st_size > 10_000
    capsys.readouterr()
    # One more image is another data set: prepared anew, and refused for the old run.
    Image.new("RGB", (20, 20)).save(images / "train" / "crème brûlée" / "more.png")
    again = ["train", f"--config.data.source=folder:{images}", f"--workdir={tmp_path / 'run'}", *flags]
    assert main([*again, "--config.num_epochs=2"]) == 2
    assert "is not the data that the run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", miniature.LAYOUTS)
def test_a_miniature_imagenet_is_prepared_and_trained(layout, tmp_path, capsys):
    made = miniature.make()
    miniature.LAYOUTS[layout](tmp_path / "imagenet", made)
    out = tmp_path / "out"
    assert main(["prepare", f"imagenet:{tmp_path / 'imagenet'}", "--out", str(out), "--size", "16"]) == 0
    data = open_prepared(out)
    assert [name.split()[0] for name in data.classes] == list(miniature.WNIDS)
    assert data.manifest["skipped"] == []  # CMYK and a PNG named .JPEG are read
    flags = [f"--config.data.source={out}", *TINY, "--config.data.last_batch=keep"]
    assert main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
    shown = [line for line in read(tmp_path / "run" / "metrics.jsonl") if line["split"] == "val"]
    assert len(shown) == 1


def test_dirty_folders_end_converted_or_listed(tmp_path, capsys):
    class_folders(tmp_path / "images", classes=("good", "odd"))
    expected = write_all(tmp_path / "images" / "train" / "odd")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "val" / "good" / "9.png")
    out = tmp_path / "out"
    assert len(expected) > 60
    arguments = ["prepare", f"folder:{tmp_path / 'images'}", "--out", str(out), "--size", "16", "--max-broken", "1"]
    assert main(arguments) == 0, capsys.readouterr().err
    data = open_prepared(out)
    kept = {pathlib.PurePosixPath(name).name for name in data.names("train") if "/odd/" in name}
    listed = {pathlib.PurePosixPath(entry["name"]).name: entry["reason"] for entry in data.manifest["skipped"]}
    can_be_read = {"unreadable.jpg"} if os.geteuid() == 0 else set()
    expected = {name: outcome for name, outcome in expected.items() if name not in can_be_read}
    for name, outcome in expected.items():
        if isinstance(outcome, Converted) or (outcome.or_read and name in kept):
            assert name in kept, listed.get(name)
        else:
            assert outcome.reason in listed[name], name
    assert kept.isdisjoint(listed)
    assert all(reason and "\n" not in reason for reason in listed.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of SOURCE, --merge DIR …, --check DIR"),
        (["digits", "--check", "x"], "give one of"),
        (["digits"], "--out DIR is missing"),
        (["digits", "--out", "x", "--size", "0"], "--size 0: must be at least 1"),
        (["digits", "--out", "x", "--size", "big"], "--size"),
        (["digits", "--out", "x", "--quality", "90"], "--quality 90 goes with --encoding jpeg"),
        (["digits", "--out", "x", "--encoding", "jpeg", "--quality", "101"], "--quality 101: must be from 1 to 100"),
        (["digits", "--out", "x", "--max-broken", "2"], "--max-broken 2: must be a share"),
        (["digits", "--out", "x", "--shard", "5/4"], "--shard 5/4: must be I/N"),
        (["digits", "--out", "x", "--shard", "half"], "--shard half: must be I/N"),
        (["digits", "--out", "x", "--val-fraction", "0.1"], "'digits' has a validation split"),
        (["digits", "--out", "x", "--encodin", "png"], "--encoding"),
        (["digit", "--out", "x"], "did you mean 'digits'"),
        (["folder:nowhere", "--out", "x"], "nowhere"),
        (["--check", "nowhere"], "nowhere is not a prepared data set"),
        (["--merge", "nowhere", "--out", "x"], "nowhere holds no preparation"),
    ],
)
def test_mistakes_end_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("alexnet-jax prepare: ")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_shards_and_merge(images, tmp_path, capsys):
    source = f"folder:{images}"
    for index in (1, 2):
        shard = ["--shard", f"{index}/2", "--out", str(tmp_path / f"{index}"), "--size", "8"]
        assert main(["prepare", source, *shard]) == 0
        assert f"{index}/2 is done" in capsys.readouterr().out
    assert main(["prepare", "--merge", str(tmp_path / "1"), str(tmp_path / "2"), "--out", str(tmp_path / "all")]) == 0
    assert main(["prepare", source, "--out", str(tmp_path / "one"), "--size", "8"]) == 0
    assert content(tmp_path / "all") == content(tmp_path / "one")


def test_what_a_person_should_know_is_printed(images, tmp_path, capsys):
    train, val = images / "train" / "crème brûlée", images / "val" / "crème brûlée"
    (val / "copy.png").write_bytes((train / "2 é.png").read_bytes())
    (train / "text.jpg").write_text("hello")
    assert (
        main(["prepare", f"folder:{images}", "--out", str(tmp_path / "o"), "--size", "8", "--max-broken", "0.2"]) == 0
    )
    shown = capsys.readouterr().out
    assert "skipped    1 broken images, listed in manifest.json; the first is train/crème brûlée/text.jpg: " in shown
    assert "duplicates 1 held-out images are training images too" in shown
    assert "train: train/crème brûlée/2 é.png = val: val/crème brûlée/copy.png" in shown


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_a_folder_that_continues(number, tmp_path):
    root = class_folders(tmp_path / "images", count=600, size=(60, 60))
    out = tmp_path / "out"
    arguments = ("prepare", f"folder:{root}", "--out", out, "--size", "48", "--threads", "1")
    with command(*arguments) as child:
        while not list(out.glob("unfinished/*.partial")) and child.poll() is None:
            pass
        child.send_signal(number)
        _, error = child.communicate(timeout=60)
    assert child.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert error == "alexnet-jax prepare: stopped; the same command continues\n"
    assert not (out / "manifest.json").exists()
    with command("train", f"--config.data.source={out}", f"--workdir={tmp_path / 'run'}") as child:
        _, error = child.communicate(timeout=60)
        assert child.returncode == 2
        assert "is not finished: run the alexnet-jax prepare that began it again" in error
    with command(*arguments) as child:
        assert child.wait(120) == 0
    whole = tmp_path / "whole"
    assert main(["prepare", *map(str, arguments[1:2]), "--out", str(whole), "--size", "48"]) == 0
    assert content(out) == content(whole)


def test_a_full_disk_in_a_real_process(images, tmp_path):
    """A limit on the size of files stands for the full disk: the write itself fails, for root too."""
    out = tmp_path / "out"
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))\n"
        "from alexnet_jax.cli import main; sys.exit(main())"
    )
    arguments = ["prepare", f"folder:{images}", "--out", str(out), "--size", "24"]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"the disk of {out} is full" in done.stderr
    assert "run the same command again" in done.stderr
    assert main(arguments) == 0
    assert len(open_prepared(out).splits["train"]) == 12


def test_bombs_are_refused_from_their_header(images, tmp_path, capsys):
    bomb = io.BytesIO()
    Image.new("L", (3000, 3000)).save(bomb, "PNG")
    (images / "train" / "crème brûlée" / "bomb.png").write_bytes(bomb.getvalue())
    arguments = ["prepare", f"folder:{images}", "--size", "8", "--max-broken", "0.5", "--out"]
    assert main([*arguments, str(tmp_path / "a"), "--max-pixels", "1000000"]) == 0
    assert "3,000 × 3,000 pixels are more than the limit of 1,000,000" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "b")]) == 0
    assert "skipped" not in capsys.readouterr().out
