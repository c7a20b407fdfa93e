"""A run in processes that are killed at boundaries of epochs: a program for `test_long_schedules.py`.

    killed_run.py CONFIG.json WORKDIR RECORD.jsonl ERRORS.json STEPS

Each process trains by the real loop. It writes down what every step trained with and what it
moved, takes the validation errors from the script instead of the network, and kills itself
once at each of STEPS, a JSON list of first steps of epochs, while the checkpoint of the epoch
before may still be in writing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import sys
import warnings

import jax
import numpy as np

from alexnet_jax.training import loop, setup
from alexnet_jax.training.config import from_dict

EPOCH = 2  # steps


class Nothing:
    """No pictures and no events."""

    def __init__(self, *_):
        self.line = self.evaluated = self.close = lambda *_, **__: None


def train(config, workdir, record, errors, kills):
    """One process: to the next kill, or to the end."""
    original, done = loop.set_up, [0]

    def set_up(config, **_):
        run = original(config)
        assert run.steps_per_epoch == EPOCH

        def train_step(state, *batch):
            step = int(state.step)
            mark = workdir / f"killed-{step}"
            if step in kills and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            settings = jax.device_get(run.schedule.settings(state.step, state.schedule))
            before = jax.device_get((state.params, state.opt_state[-1].trace))
            state, metrics = run.train_step(state, *batch)
            after = jax.device_get((state.params, state.opt_state[-1].trace))
            moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
            line = {"step": step, "noise": bool(settings.noise_on), "moved": moved[0], "moved_buffers": moved[1]}
            line["rates"] = {group: float(rate) for group, rate in settings.rates.items()}
            line["learning_rate"] = float(metrics["learning_rate"])
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
            done[0] = step + 1
            return state, metrics

        return dataclasses.replace(run, train_step=train_step)

    def evaluate(self, params, split, **_):
        return {"loss": 1.0, "top1_error": errors[max(done[0] // EPOCH - 1, 0)], "top5_error": None}

    loop.set_up, setup.Run.evaluate = set_up, evaluate
    setup.Run.compile_ahead = lambda *_: None
    loop.Watch = Nothing
    loop.train(config, workdir)


def main(config, workdir, record, errors, kills):
    """Starts processes until one comes to the end; forked, so that imports are not paid each time."""
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    config = from_dict(json.loads(pathlib.Path(config).read_text()))
    errors = json.loads(pathlib.Path(errors).read_text())
    while True:
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX: fork and threads; it has started none here
            child = os.fork()
        if child == 0:
            train(config, workdir, pathlib.Path(record), errors, json.loads(kills))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            print("killed")
            continue
        return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
