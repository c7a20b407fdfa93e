"""One of two processes of a run in which something befalls one of them: a program for `test_processes_at_odds`.

odd_worker.py CASE PROCESS PORT WORKDIR FLAG...
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

import jax

from alexnet_jax import cli
from alexnet_jax.data.prepared import DataError
from alexnet_jax.training import flags, loop, setup

case, process, port, workdir, *arguments = sys.argv[1:]
own = [f"--config.parallel.coordinator=127.0.0.1:{port}", "--config.parallel.processes=2"]
own += [f"--config.parallel.process={process}", f"--workdir={workdir}"]

if case.startswith("signal at ") and process == "1":
    loop.EVALUATION_GRACE = -1.0
    evaluate, due = loop._Loop._evaluate, int(case.removeprefix("signal at "))

    def interrupted(self, state, step, **options):
        if step == due and not options:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, state, step, **options)

    loop._Loop._evaluate = interrupted  # type: ignore[method-assign]

if case == "damaged" and process == "1":
    batches = setup.Run.batches

    def damaged(self, first_step):
        for number, batch in enumerate(batches(self, first_step)):
            if number == 3:
                raise DataError("a part is damaged")
            yield batch

    setup.Run.batches = damaged  # type: ignore[method-assign]

if case == "twice":
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    for number in range(2):
        command = flags.parse([*arguments, f"--workdir={workdir}-{number}"])
        assert loop.train(command.config, pathlib.Path(command.workdir)).result is not None
    sys.exit(0)
sys.exit(cli.train([*arguments, *own]))
