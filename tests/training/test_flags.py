"""The command line of a run: every key as a flag, every mistake refused in one line."""

from __future__ import annotations

import pathlib

import pytest

from alexnet_jax.training import config as configs
from alexnet_jax.training import flags
from alexnet_jax.training.config import Config, ConfigError, model_spec, to_dict
from alexnet_jax.training.config import keys as list_keys

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module.. method is deprecated:DeprecationWarning")

HEAD = "from alexnet_jax.training.config import default_config\n"


def changes(*arguments) -> dict:
    """What a command line changes of the default run, by key."""
    found, default = (configs.flat(to_dict(config)) for config in (flags.parse(arguments).config, Config()))
    return {name: value for name, value in found.items() if value != default[name]}


def refusal(*arguments) -> str:
    """The one line that refuses a command line."""
    with pytest.raises(ConfigError) as caught:
        model_spec(flags.parse(arguments).config)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file with the body of get_config."""

    def write(body: str, name: str = "mine.py", signature: str = "") -> pathlib.Path:
        path = tmp_path / name
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        path.write_text(f"{HEAD}\n\ndef get_config({signature}):\n    c = default_config()\n{lines}    return c\n")
        return path

    return write


def test_help_tells_of_every_key():
    text = flags.help_text("train.py")
    lines = text.splitlines()
    for key in list_keys():
        place = lines.index(f"  --config.{key.name}={key.default!r}")
        about = lines[place + 1]
        assert key.kind_in_words() in about
        for words in (key.meaning, key.unit, key.allowed):
            assert words in about
    for words in ("usage: train.py", "--workdir", "get_config()", "130", "143", "resumes"):
        assert words in text


@pytest.mark.parametrize("key", list(list_keys()), ids=lambda key: key.name)
def test_every_key_is_a_flag(key):
    new = {
        "an integer": "11",
        "a finite number": "0.125",
        "True or False": str(not key.default),
        "integers such as (20, 26)": "(3, 5)",
        "text": "some text",
    }[key.kind_in_words().removesuffix(" or None")]
    if key.allowed.startswith("one of "):
        options = key.allowed.removeprefix("one of ").split(", ")
        new = next(option for option in options if option != key.default)
    if key.name == "profile":  # text of one form
        new = "10:20"
    value = {"(3, 5)": [3, 5], "True": True, "False": False, "11": 11, "0.125": 0.125}.get(new, new)
    assert changes(f"--config.{key.name}={new}") == {key.name: value}
    assert changes(f"-config.{key.name}={new}") == {key.name: value}
    if "True or False" not in key.kind_in_words():  # a flag alone is True
        assert changes(f"--config.{key.name}", new) == {key.name: value}
    if key.optional:
        expected = {} if key.default is None else {key.name: None}
        assert changes(f"--config.{key.name}=None") == expected


def test_forms_of_values():
    assert changes("--config.optimizer.drop_epochs=()") == {"optimizer.drop_epochs": []}
    assert changes("--config.optimizer.drop_epochs=(5,)") == {"optimizer.drop_epochs": [5]}
    assert changes("--config.optimizer.drop_epochs=5,7") == {"optimizer.drop_epochs": [5, 7]}
    assert changes("--config.data.flip") == {"data.flip": True}
    assert changes("--config.optimizer.learning_rate=1e-3") == {"optimizer.learning_rate": 0.001}
    assert changes("--config.optimizer.learning_rate=1") == {"optimizer.learning_rate": 1.0}
    assert changes("--config.batch_size=3", "--config.batch_size=4") == {"batch_size": 4}


def test_the_last_value_wins_also_after_none():
    assert changes("--config.model.init=None", "--config.model.init=paper") == {"model.init": "paper"}


def test_none_may_follow_a_space():
    assert changes("--config.model.init", "None") == {"model.init": None}


def test_workdirs(config_file):
    path = config_file("c.batch_size = 5", "bigger.py")
    assert flags.parse([]).workdir == pathlib.Path("runs/default")
    assert flags.parse([f"--config={path}"]).workdir == pathlib.Path("runs/bigger")
    assert flags.parse(["--workdir=a b/c"]).workdir == pathlib.Path("a b/c")
    assert flags.parse([f"--config={path}", "--workdir", "x"]).workdir == pathlib.Path("x")


def test_config_files(config_file):
    path = config_file("c.batch_size = 5\nc.model.dropout = 0.25\nc.num_steps = 9")
    assert changes(f"--config={path}") == {"batch_size": 5, "model.dropout": 0.25, "num_steps": 9}
    assert changes("--config", str(path), "--config.batch_size", "6")["batch_size"] == 6
    assert "--config.batch_size=6" in refusal("--config.batch_size=6", f"--config={path}")  # the file comes first
    assert "num_steps" not in changes(f"--config={path}", "--config.num_steps=None")
    path = config_file("c.batch_size = int(n)", "argued.py", "n")
    command = flags.parse([f"--config={path}:7"])
    assert (command.config.batch_size, command.workdir) == (7, pathlib.Path("runs/argued"))


@pytest.mark.parametrize("path", sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py")), ids=str)
def test_the_repositorys_config_files_are_valid(path):
    command = flags.parse([f"--config={path}"])
    model_spec(command.config)
    assert command.workdir == pathlib.Path("runs") / path.stem
    assert len(path.read_text(encoding="utf-8").split('"""')[1]) > 20
    if path.stem == "default":
        assert command.config == Config()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch_size=3"], ["--batch_size", "did you mean --config.batch_size?"]),
        (["--learning_rate=3"], ["--learning_rate", "did you mean --config.optimizer.learning_rate?"]),
        (["--worckdir=x"], ["--worckdir", "did you mean --workdir?"]),
        (["--confg=x.py"], ["--confg", "did you mean --config?"]),
        (["--noconfig.data.flip"], ["--noconfig.data.flip", "--config.data.flip"]),
        (["--quite"], ["--quite", "--help"]),
        (["--config.batchsize=3"], ["config.batchsize", "'batch_size'"]),
        (["--config.model.nam=paper"], ["config.model.nam", "'model.name'"]),
        (["--config.learning_rate=3"], ["config.learning_rate", "'optimizer.learning_rate'"]),
        (["--config.optimiser.learning_rate=3"], ["config.optimiser.learning_rate", "'optimizer.learning_rate'"]),
        (["--config.optimizer=3"], ["config.optimizer", "optimizer.learning_rate", "optimizer.momentum"]),
        (["--config.batch_size=many"], ["config.batch_size=many"]),
        (["--config.batch_size=1.5"], ["config.batch_size=1.5"]),
        (["--config.batch_size"], ["--config.batch_size"]),
        (["--config.batch_size", "-3"], ["config.batch_size=-3", "at least 1"]),
        (["--config.batch_size=None"], ["config.batch_size=None"]),
        (["--config.num_steps=x"], ["config.num_steps=x", "or None"]),
        (["--config.seed=-1"], ["config.seed=-1", "at least 0"]),
        (["--config.optimizer.learning_rate=fast"], ["config.optimizer.learning_rate=fast"]),
        (["--config.optimizer.learning_rate=-1"], ["config.optimizer.learning_rate=-1.0", "at least 0"]),
        (["--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate=nan"]),
        (["--config.optimizer.learning_rate=inf"], ["config.optimizer.learning_rate=inf"]),
        (["--config.optimizer.drop_epochs=(5,3)"], ["config.optimizer.drop_epochs=(5, 3)", "rising"]),
        (["--config.optimizer.drop_epochs=soon"], ["config.optimizer.drop_epochs", "soon"]),
        (["--config.data.flip=maybe"], ["config.data.flip=maybe", "True or False"]),
        (["--config.model.name=papr"], ["config.model.name='papr'", "did you mean 'paper'?"]),
        (["--config.data.crop_size=100"], ["config.data.crop_size=100", "config.data.image_size=72"]),
        (["--config.data.crop_size=None"], ["config.data.crop_size", "config.data.image_size=72"]),
        (["here"], ["'here'", "--name=value"]),
        (["--workdir"], ["--workdir"]),
        (["--config"], ["--config", "no such file"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("-") or value == ["here"] else "",
)
def test_a_mistake_is_refused(arguments, words):
    message = refusal(*arguments)
    for word in words:
        assert word in message


def test_a_mistyped_config_file_is_refused_with_the_nearest(config_file):
    path = config_file("", "bigger.py")
    message = refusal(f"--config={path.with_name('biger.py')}")
    assert "biger.py: there is no such file" in message
    assert f"did you mean {path}?" in message
    message = refusal(f"--config={path.with_name('zzzzzzzzz.py')}")
    assert str(path) in message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("c.batchsize = 3", ["'batchsize'", "'batch_size'"]),
        ("c.optimizer.learningrate = 3", ["'learningrate'", "'optimizer.learning_rate'"]),
        ("c.optimiser.learning_rate = 3", ["'optimiser'", "optimizer"]),
        ("c.unlock()\nc.batchsize = 3", ["batchsize", "'batch_size'"]),
        ("c.batch_size = 'many'", ["batch_size", "many"]),
        ("c.batch_size = 2.5", ["batch_size", "2.5"]),
        ("c.batch_size = 0", ["config.batch_size=0", "at least 1"]),
        ("c.model.name = 'papr'", ["config.model.name='papr'", "'paper'"]),
        ("raise RuntimeError('first line\\nsecond line')", ["mine.py", "RuntimeError", "first line second line"]),
        ("c = {}", ["mine.py", "get_config()", "dict"]),
        ("c = None", ["mine.py", "get_config()", "None"]),
        ("c = 3", ["mine.py", "get_config()", "int"]),
        ("import no_such_module", ["mine.py", "no_such_module"]),
        ("del c.data", ["config.data is missing"]),
        ("c.unlock()\ndel c['seed']", ["config.seed is missing"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_file_with_a_mistake_is_refused(config_file, body, words):
    if body == "del c.data":
        body = "c.unlock()\ndel c['data']"
    message = refusal(f"--config={config_file(body)}")
    for word in words:
        assert word in message


def test_a_config_file_that_is_no_config_is_refused(tmp_path, config_file):
    path = tmp_path / "broken.py"
    path.write_text("def get_config(:\n")
    assert "SyntaxError" in refusal(f"--config={path}")
    assert "get_config" in refusal(f"--config={config_file('', 'argued.py', 'n')}")
    assert "get_config" in refusal(f"--config={config_file('', 'plain.py')}:7")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.batchsize=3"], ["config.batchsize", "batch_size"]),
        (["--worckdir=x"], ["--worckdir", "--workdir"]),
        (["--config=configs/defalt.py"], ["configs/defalt.py", "configs/default.py"]),
        (["--config.batch_size=2000"], ["config.batch_size=2000", "1197", "last_batch"]),
        (["--config=missing_function.py"], ["missing_function.py", "get_config"]),
    ],
    ids=lambda value: value[0],
)
def test_a_process_refuses_in_one_line(train_process, arguments, words):
    (train_process.folder / "missing_function.py").write_text("x = 1\n")
    ended = train_process(*arguments, "--workdir=refused")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in ended.stderr
    assert not (train_process.folder / "refused").exists()
