"""What a person sees, and what is written down of a run."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console

from alexnet_jax.training.metrics import MetricsLog, read, write_atomically
from alexnet_jax.training.progress import Reporter, duration, training_line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (47.6, "48s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (60, "1m 00s"),
        (725, "12m 05s"),
        (3599, "59m 59s"),
        (3599.7, "1h 00m"),
        (3600, "1h 00m"),
        (12000, "3h 20m"),
        (86399, "23h 59m"),
        (86400, "1d 00h"),
        (352800, "4d 02h"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def line(**values) -> str:
    """A line in the middle of a run."""
    of_run = {"epoch": 12.5, "epochs": 30.0, "step": 1234, "steps": 2960, "loss": 0.43216, "top1_error": 12.3456}
    speed = {"learning_rate": 0.001, "images_per_second": 1234.5, "data_wait_fraction": 0.031}
    return training_line(**of_run | speed | {"seconds_left": 725, "val_error": None} | values)


def test_a_training_line():
    assert line() == (
        "epoch 12.5/30  step 1,234/2,960  loss 0.4322  top-1 error 12.35 %  rate 0.001  1,234 images/s  "
        "data wait 3 %  12m 05s left"
    )
    assert line(seconds_left=None).endswith("data wait 3 %")
    assert "  val 7.00 %  " in line(val_error=7.0)
    assert line(epoch=3.0).startswith("epoch 3/30 ")
    assert "loss nan" in line(loss=float("nan"))


def written(reporter_of, terminal=False):
    """What a reporter writes to a console."""
    file = io.StringIO()
    options = {"force_terminal": True} if terminal else {}
    reporter_of(Console(file=file, width=120, highlight=False, soft_wrap=True, **options))
    return file.getvalue()


def test_without_a_terminal_there_are_plain_lines():
    def run(console):
        reporter = Reporter(100, first_step=0, console=console)
        for step in range(1, 50):
            reporter.step(step, f"step {step}")
        reporter.line("val [5] 10 %")
        reporter.step(50, "step 50")
        reporter.close()

    assert written(run) == "val [5] 10 %\n"


def test_without_a_terminal_a_long_silence_is_broken():
    def run(console):
        reporter = Reporter(100, first_step=0, console=console, quiet_seconds=0.05)
        reporter.step(1, "too early")
        time.sleep(0.06)
        reporter.step(2, "one")
        reporter.step(3, "too early again")
        time.sleep(0.06)
        reporter.line("two")
        reporter.step(4, "too early after a line")
        reporter.close()

    assert written(run) == "one\ntwo\n"


def test_in_a_terminal_there_is_a_bar():
    def run(console):
        reporter = Reporter(100, first_step=25, console=console)
        reporter.step(50, "step 50 of 100")
        reporter.line("an evaluation")
        reporter.close()

    found = written(run, terminal=True)
    assert "\x1b[" in found
    assert "━" in found
    assert " 50%" in found
    assert "step 50 of 100" in found
    assert "an evaluation" in found
    assert found.count("\x1b[?25l") == found.count("\x1b[?25h") == 1  # the cursor comes back


def test_a_log_appends_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, up_to_step=0)
    assert path.read_text() == ""
    log.write(step=1, split="train", loss=0.5)
    log.write(step=2, split="val", top5_error=None)
    expected = [{"step": 1, "split": "train", "loss": 0.5}, {"step": 2, "split": "val", "top5_error": None}]
    assert [json.loads(text) for text in path.read_text().splitlines()] == expected
    assert read(path) == expected


def test_a_resumed_log_keeps_the_lines_up_to_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "split": "train"}}\n' for step in (2, 4, 6, 8)))
    log = MetricsLog(path, up_to_step=4)
    assert [values["step"] for values in read(path)] == [2, 4]
    log.write(step=5, split="train")
    assert [values["step"] for values in read(path)] == [2, 4, 5]
    MetricsLog(path, up_to_step=0)
    assert read(path) == []


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6, "lo')
    assert [values["step"] for values in read(path)] == [2, 4]
    log = MetricsLog(path, up_to_step=10)
    log.write(step=7)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n{"step": 7}\n'


def test_no_log_has_no_lines(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    write_atomically(path, "new\n")
    assert path.read_text() == "new\n"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half\ud800")
    assert path.read_text() == "new\n"
