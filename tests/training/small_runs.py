"""Runs of the real loop inside this process: a few small images of noise, no pictures."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import InMemory, Source
from alexnet_jax.training import loop, saving, watching
from alexnet_jax.training.config import Config
from alexnet_jax.training.loop import Outcome
from alexnet_jax.training.setup import Run

from .killed_run import Nothing

NETWORK = (
    *("--config.data.image_size=16", "--config.data.crop_size=15", "--config.model.name=cifar"),
    *("--config.model.width=0.1", "--config.batch_size=8"),
)


def noise(folder: pathlib.Path, train: int, val: int, size: int = 16) -> pathlib.Path:
    """A prepared folder of two classes, in a folder."""
    rng = np.random.default_rng(0)
    examples = [(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), i % 2) for i in range(train + val)]
    splits = {"train": InMemory(examples[:train]), "val": InMemory(examples[train:])}
    prepare(Source("tiny", ("cat", "dog"), splits), folder / "prepared", size=size, rule="shorter_side")
    return folder / "prepared"


def run(config: Config, workdir: pathlib.Path, set_up: Any = loop.set_up) -> tuple[Outcome, str]:
    """How a run ended, and what it printed."""
    text = io.StringIO()
    console = Console(file=text, width=300, highlight=False, soft_wrap=True, markup=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "set_up", set_up)
        patch.setattr(loop, "Watch", Nothing)
        patch.setattr(watching, "draw", lambda *_: None)
        patch.setattr(loop.figures, "data_preview", lambda *_: None)
        return loop.train(config, workdir, console=console), text.getvalue()


def last_state(made: Run, workdir: pathlib.Path) -> Any:
    """The arrays of a run's last checkpoint, on the host."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.restore(checkpoints.latest_step(), saving.tree(made, made.initial))
    checkpoints.close()
    return jax.device_get(found)
