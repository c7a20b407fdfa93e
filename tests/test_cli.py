"""The program `alexnet-jax`: the layer tables, and every mistake in one line."""

from __future__ import annotations

import re
import signal

import pytest

import alexnet_jax
from alexnet_jax.checkpoint import CheckpointError
from alexnet_jax.cli import main
from alexnet_jax.data.prepared import DataError
from alexnet_jax.models import get_spec, list_models
from alexnet_jax.models.summary import layer_table, totals
from alexnet_jax.training import loop
from alexnet_jax.training.config import Config, ConfigError, model_spec

# What docs and sources say of the variants at 1000 classes.
PARAMETERS = {
    "paper": 60_965_224,
    "source2012": 60_965_224,
    "single": 62_378_344,
    "one_tower": 59_798_312,
    "half": 16_630_440,
    "torchvision": 61_100_840,
    "bvlc_alexnet": 60_965_224,
    "caffenet": 60_965_224,
}


@pytest.fixture
def shown(capsys):
    """What a command prints when it succeeds."""

    def run(*arguments) -> str:
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


@pytest.fixture
def refused(capsys):
    """The one line that refuses a command, with exit code 2."""

    def run(*arguments) -> str:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.endswith("\n")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


@pytest.mark.parametrize("name", list_models())
def test_the_table_of_a_variant(shown, name):
    text = shown("summary", name)
    rows = layer_table(get_spec(name), 1000)
    parameters, macs = totals(rows)
    lines = text.splitlines()
    (last,) = (line.split() for line in lines if " total " in f" {line} ")
    assert last[-2:] == [f"{parameters:,}", f"{macs:,}"]
    for row in rows:
        assert any(row.structure in line and row.layer in line for line in lines), row.layer
    if name in PARAMETERS:
        assert parameters == PARAMETERS[name]


def test_the_table_of_the_default_run(shown):
    text = shown("summary")
    spec = model_spec(Config())
    parameters, _ = totals(layer_table(spec, 10))
    assert f"{parameters:,}" in text
    assert len(re.findall(r"\bconv[1-5]\b", text)) >= 5
    grouped = [line for line in text.splitlines() if "2 groups" in line]
    for name in ("conv2", "conv4", "conv5", "norm1", "norm2"):
        assert any(name in line.split() for line in grouped), name
    assert not any(name in line.split() for line in grouped for name in ("conv1", "conv3"))
    assert text.count("LRN n=5, k=2") == 2
    assert text.count("max 3×3, stride 2") == 3
    assert text.count("dropout 0.5") == 2
    assert "fc8" in text
    assert "→ 10" in text


def test_the_table_of_a_config_file(shown, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from alexnet_jax.training.config import default_config\n\n\n"
        "def get_config():\n    config = default_config()\n    config.model.name = 'single'\n    return config\n"
    )
    with pytest.warns(DeprecationWarning, match="load_module"):  # ml_collections
        text = shown("summary", f"--config={path}")
    assert "2 groups" not in text
    assert "LRN" in text


def test_sizes_and_classes(shown):
    text = shown("summary", "paper", "--image-size=128", "--num-classes", "7")
    spec = get_spec("paper").at_image_size(128)
    parameters, macs = totals(layer_table(spec, 7))
    assert f"{parameters:,}" in text
    assert f"{macs:,}" in text
    assert "128×128×3" in text
    assert "→ 7" in text
    assert "→ 5" in shown("summary", "--num-classes=5")


def test_markdown(shown):
    lines = shown("summary", "paper", "--markdown").splitlines()
    assert lines[0] == "| id | layer | input | structure | output | parameters | multiply-accumulates |"
    assert set(lines[1]) <= set("| -")
    assert len({line.count("|") for line in lines}) == 1
    assert "60,965,224" in lines[-1]
    table = [line for line in shown("summary", "--markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_comparisons(shown):
    head, *_ = shown("summary", "--compare").splitlines()
    assert head.split() == ["layer", *list_models()]
    text = shown("summary", "--compare", "torchvision")
    assert text.split()[:3] == ["layer", "paper", "torchvision"]
    assert "60,965,224" in text
    assert "61,100,840" in text
    assert shown("summary", "--compare", "paper").split("\n")[0].split() == ["layer", *list_models()]
    head, *_ = shown("summary", "--compare", "caffenet", "--markdown").splitlines()
    assert head == "| layer | paper | caffenet |"


def test_a_layout(shown):
    text = shown("summary", "paper", "--towers=2", "--batch-size=128")
    assert "121,930,448" in text  # bytes of parameters on each of two devices
    assert "22,151,168" in text  # pool2, gathered before conv3
    assert "all-reduce" not in text
    assert "all-reduce" in shown("summary", "paper", "--data=2")


def test_a_figure_of_two_towers(shown, tmp_path):
    text = shown("summary", "--towers=2", f"--figure={tmp_path / 'towers.svg'}")
    assert f"drawn in {tmp_path / 'towers.svg'}" in text
    assert "24 of 11×11×3" in (tmp_path / "towers.svg").read_text()  # the default run's network


def test_the_version(shown):
    assert shown("--version") == f"alexnet-jax {alexnet_jax.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_names_the_commands(shown, arguments):
    text = shown(*arguments)
    assert "usage: alexnet-jax" in text
    assert "train" in text
    assert "summary" in text


def test_help_of_train(shown):
    text = shown("train", "--help")
    assert text.startswith("usage: alexnet-jax train ")
    assert "--config.optimizer.learning_rate=" in text
    assert shown("train", "-h") == text
    assert shown("train", "--config.batch_size=3", "--help") == text


def test_help_of_summary(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["summary", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("alexnet-jax summary", "--image-size", "--num-classes", "--markdown", "--compare", *list_models()):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sumary",), ("'sumary'", "did you mean 'summary'?")),
        (("summary", "papr"), ("'papr'", "did you mean 'paper'?")),
        (("summary", "resnet"), ("'resnet'", "paper", "caffenet")),
        (("summary", "paper", "--image-size=20"), ("20 pixels", "too small")),
        (("summary", "paper", "--image-size=0"), ("image_size", "0")),
        (("summary", "paper", "--num-classes=0"), ("num_classes", "0")),
        (("summary", "single", "--towers=2"), ("single has 1 group", "2 towers")),
        (("summary", "paper", "--towers=0"), ("towers=0",)),
        (("summary", "paper", "--towers=2", "--batch-size=31"), ("31 images", "multiple of 2")),
        (("summary", "paper", "--batch-size=32"), ("--batch-size", "--towers")),
        (("summary", "--compare", "--towers=2"), ("--compare", "--towers")),
        (("summary", "paper", "--figure=t.png"), ("--figure", "--towers=2")),
        (("summary", "single", "--towers=2", "--figure=t.png"), ("single has 1 group", "2 towers")),
        (("summary", "paper", "--towers=2", "--figure=t.nonsense"), ("nonsense", "png")),
        (("summary", "paper", "--towers=2", "--figure=nowhere/t.png"), ("nowhere/t.png",)),
        (("summary", "--config=nowhere.py"), ("nowhere.py", "no such file")),
        (("summary", "paper", "--config=nowhere.py"), ("name", "--config")),
        (("train", "--batch_size=3"), ("alexnet-jax train:", "--config.batch_size")),
        (("train", "--config.model.name=papr"), ("'papr'", "'paper'")),
        (("train", "--config.data.source=nowhere"), ("config.data.source='nowhere'", "digits")),
        (("train", "--config.model.groups=5", "--config.model.width=0"), ("config.model.width=0.0",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_refused_in_one_line(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = refused(*arguments)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("summary", "--imagesize=3"), ("summary", "paper", "--image-size=big")])
def test_other_mistakes_end_with_2(capsys, arguments):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("alexnet-jax summary: ")
    assert message.count("\n") == 1
    assert "--image-size" in message


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_what_a_run_refuses_is_one_line(refused, monkeypatch, kind):
    def train(config, workdir):
        raise kind("this and that")

    monkeypatch.setattr(loop, "train", train)
    assert refused("train") == "alexnet-jax train: this and that\n"


def test_a_mistake_of_the_program_is_no_refusal(monkeypatch):
    def train(config, workdir):
        raise ValueError("a bug")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 0)])
def test_exit_codes_say_which_signal_stopped_a_run(monkeypatch, number, code):
    monkeypatch.setattr(loop, "train", lambda config, workdir: loop.Outcome(None, number))
    assert main(["train"]) == code


def test_a_second_sigint_is_130_too(monkeypatch, capsys):
    def train(config, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", train)
    assert main(["train"]) == 130
    assert "same command resumes" in capsys.readouterr().err
