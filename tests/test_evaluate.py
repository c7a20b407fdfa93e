"""`alexnet-jax evaluate`, on a run that the program has trained: its own result, words, files and refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from small_networks import network

from alexnet_jax import cli, evaluation, trained
from alexnet_jax.checkpoint import CheckpointError, Checkpoints
from alexnet_jax.cli import evaluating
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import InMemory, Source
from alexnet_jax.training.config import default_config, from_dict
from alexnet_jax.training.loop import train as train_run
from alexnet_jax.training.recipes import sized

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs are, and the data."""
    return tmp_path_factory.mktemp("evaluate")


def config(folder, **changes):
    """A run of twelve steps with few kernels, on the digits."""
    found = sized(default_config(), "tiny")
    found.model.init = "pytorch"
    found.num_steps, found.eval_every_epochs = 12, 1
    found.data.cache_dir = str(folder / "cache")
    found.update(changes)
    return from_dict(found)


@pytest.fixture(scope="module")
def run(folder):
    """A finished run, moved to another place after its end."""
    workdir = folder / "as_trained"
    train_run(config(folder), workdir)
    return shutil.move(workdir, folder / "run")


@pytest.fixture
def shown(capsys):
    """What a command prints when it succeeds."""

    def run(*arguments) -> str:
        assert cli.main(["evaluate", *map(str, arguments)]) == 0
        printed = capsys.readouterr()
        return printed.out

    return run


@pytest.fixture
def refused(capsys):
    """The one line that refuses a command, with exit code 2."""

    def run(*arguments) -> str:
        assert cli.main(["evaluate", *map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("alexnet-jax evaluate: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


def numbers(text: str) -> dict:
    return {name: json.loads(text)[name] for name in ("loss", "top1_error", "top5_error")}


def toy(folder: pathlib.Path, name: str, classes=DIGITS, size: int = 72, rule: str = "shorter_side") -> pathlib.Path:
    """A prepared folder of noise with these classes, without test images."""
    out = folder / name
    if not out.exists():
        draw = np.random.default_rng(len(name))

        def images(count):
            return InMemory([(draw.integers(0, 256, (9, 9, 3), np.uint8), i % len(classes)) for i in range(count)])

        prepare(Source("toy", tuple(classes), {"train": images(20), "val": images(13)}, "1"), out, size=size, rule=rule)
    return out


def test_the_result_of_a_run_is_found_again(run, shown):
    result = json.loads((run / "result.json").read_text())
    found = json.loads(shown(run, "--split=test", "--json"))
    assert (found["top1_error"], found["top5_error"]) == (result["top1_error"], result["top5_error"])
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert (found["images"], found["split"], found["crops"], found["notes"]) == (300, "test", "centre", [])
    assert found["runs"] == [{"run": str(run), "checkpoint": result["best_step"], "chosen": "best by validation"}]
    other = numbers(shown(run, "--split=test", "--json", "--batch-size=77"))
    assert other == pytest.approx(numbers(json.dumps(found)), rel=1e-6)


def test_in_words(run, shown, folder):
    text = shown(run)
    assert f"{run}: paper, 10 classes, checkpoint 12 (best by validation), float32" in text
    assert "300 val images of 72 pixels" in text
    found = json.loads(shown(run, "--json"))
    assert f"top-1 error {found['top1_error']:.2f} %, top-5 error {found['top5_error']:.2f} %" in text
    lines = shown(run, "--per-class", "--crops=ten", "--ties=fractional").splitlines()
    assert "ten crops averaged, fractional credit for ties" in "\n".join(lines)
    assert [line.split()[:3] for line in lines[-10:]] == [[str(n), str(n), "30"] for n in range(10)]


def test_a_checkpoint_can_be_chosen(run, shown):
    for which, chosen in (("latest", "the latest"), ("12", "as given"), ("best", "best by validation")):
        assert f"checkpoint 12 ({chosen})" in shown(run, "--checkpoint", which)
    assert "checkpoint 12 (as given)" in shown(run / "checkpoints" / "12")
    assert "checkpoint 12 (best" in shown(run / "checkpoints")


def test_an_ensemble_averages_what_its_members_say(run, shown, folder):
    copy = folder / "copy"
    shutil.copytree(run, copy)
    text = shown(run, copy)
    assert "2 networks averaged" in text
    alone, twice = numbers(shown(run, "--json")), numbers(shown(run, copy, "--json"))
    assert twice == pytest.approx(alone, rel=1e-5)


def test_the_files(run, shown, tmp_path):
    text = shown(run, "--split=test", "--out", tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert str(out) in text
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json",
        "confusion.csv",
        "per_class.csv",
        "confusion.png",
    }
    found = json.loads((out / "evaluation.json").read_text())
    with (out / "confusion.csv").open(newline="") as file:
        table = np.array([row[1:] for row in csv.reader(file)][1:], int)
    assert table.sum() == 300
    assert 100 * (1 - np.trace(table) / 300) == pytest.approx(found["top1_error"])
    with (out / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert np.mean([float(row["top5_error"]) for row in rows]) == pytest.approx(found["top5_error"])
    with Image.open(out / "confusion.png") as picture:
        assert picture.size == (1500, 900)
    in_python = evaluation.score([trained.open_trained(run)], open_split(run, "test"))
    np.testing.assert_array_equal(in_python.confusion(10), table)


def open_split(run, name):
    data, _ = trained.open_data([trained.open_trained(run)])
    return trained.choose_split(data, name)


def test_other_data_is_said_to_be_so(run, shown, folder):
    data = toy(folder, "noise")
    text = shown(run, "--data", data)
    assert f"{data}: 13 val images of 72 pixels" in text
    assert f"not the data that {run} learned from (other checksums); the classes agree" in text


def test_nothing_in_the_runs_folder_is_touched(run, shown, folder):
    unfinished = run / "checkpoints" / "24.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    (run / "checkpoints" / "99").mkdir()  # Orbax takes an empty folder for the newest checkpoint
    try:
        before = sorted(path for path in run.rglob("*"))
        assert "checkpoint 12 (the latest)" in shown(run, "--checkpoint=latest")
        assert "checkpoint 12 (best" in shown(run)
        assert sorted(path for path in run.rglob("*")) == before
    finally:
        shutil.rmtree(unfinished)
        (run / "checkpoints" / "99").rmdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), ("nowhere", "no such folder")),
        (("{run}", "--split=tset"), ("--split tset", "train, val, test")),
        (("{run}", "--data={noise}", "--split=test"), ("--split test", "train, val")),
        (("{run}", "--data={named}"), ("class 0 is 'a' in the one and '0' in the other", "same order")),
        (("{run}", "--data={fewer}"), ("2 classes and 10",)),
        (("{run}", "--data={larger}"), ("image_size=96", "takes 72", "--size 72")),
        (("{run}", "--data={warped}"), ("resize_rule='warp'", "--resize shorter_side")),
        (("{run}", "--data=elsewhere"), ("--data elsewhere", "neither a source", "digits")),
        (("{run}", "--checkpoint=7"), ("no checkpoint 7", "there are 12")),
        (("{run}", "--checkpoint=newest"), ("--checkpoint newest", "best, latest or a step")),
        (("{run}/checkpoints/12", "--checkpoint=7"), ("is checkpoint 12",)),
        (("{run}", "{run}"), ("given twice",)),
        (("{run}", "--batch-size=0"), ("--batch-size 0", "at least 1")),
        (("{run}", "--crop=five"), ("--crops",)),
        (("{run}", "--out={noise}/manifest.json"), ("--out", "can't be written")),
        (("{empty}",), ("no finished checkpoint", "workdir")),
    ],
)
def test_what_can_not_be_evaluated_is_refused_in_one_line(run, refused, folder, arguments, words):
    places = {
        "run": run,
        "noise": toy(folder, "noise"),
        "named": toy(folder, "named", "abcdefghij"),
        "fewer": toy(folder, "fewer", "ab"),
        "larger": toy(folder, "larger", size=96),
        "warped": toy(folder, "warped", rule="warp"),
        "empty": folder / "empty",
    }
    (folder / "empty" / "checkpoints").mkdir(parents=True, exist_ok=True)
    line = refused(*(argument.format(**places) for argument in arguments))
    for word in words:
        assert word in line


def test_data_that_is_gone_is_named(run, refused, monkeypatch):
    plain = trained.open_trained

    def moved(place, checkpoint="best"):
        found = plain(place, checkpoint)
        found.config["data"]["source"] = "/gone/imagenet-256"
        return found

    monkeypatch.setattr(trained, "open_trained", moved)
    line = refused(run)
    assert "was trained on '/gone/imagenet-256', which is not here: say with --data where it is" in line


@pytest.mark.parametrize(("name", "value"), [("resize", 96), ("resize_rule", "warp")])
def test_networks_that_see_other_images_are_no_ensemble(run, name, value):
    one = trained.open_trained(run)
    contract = dataclasses.replace(one.spec.input, **{name: value})
    other = dataclasses.replace(one, place=pathlib.Path("other"), spec=dataclasses.replace(one.spec, input=contract))
    with pytest.raises(trained.DataError, match=f"{name}=.*one by one"):
        trained.open_data([one, other])
    with pytest.raises(trained.DataError, match="are no ensemble: class 9 is 'x'"):
        trained.open_data([one, dataclasses.replace(one, classes=(*DIGITS[:9], "x"))])


def test_five_classes_have_no_top_five_in_words(capsys):
    one = network(classes=5)
    found = {"data": "x", "images": 3, "split": "val", "notes": [], "crops": "centre", "ties": "index"}
    evaluating._print(found | {"top1_error": 40.0, "top5_error": None, "loss": 1.0}, [one], 11)
    words = capsys.readouterr().out
    assert "top-1 error 40.00 %, top-5 error: meaningless, every label is among the top five of 5 classes" in words


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "other" / "checkpoints")
    checkpoints.save(3, {"x": np.zeros(2)}, {"words": "no spec"})
    checkpoints.close()
    with pytest.raises(CheckpointError, match="is not the checkpoint of a run"):
        trained.open_trained(tmp_path / "other")
