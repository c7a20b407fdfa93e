"""`alexnet-jax train`, the same as `train.py`."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

from alexnet_jax.cli.arguments import refuse


def train(argv: Sequence[str] | None = None, *, program: str = "train.py") -> int:
    """`alexnet-jax train` and `train.py`: the exit code, see `flags.USAGE`."""
    import jax

    from alexnet_jax.checkpoint import CheckpointError
    from alexnet_jax.data.prepared import DataError
    from alexnet_jax.training import devices, flags
    from alexnet_jax.training.config import ConfigError
    from alexnet_jax.training.errors import LostProcess, RunError
    from alexnet_jax.training.loop import train as run
    from alexnet_jax.training.processes import leave

    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in arguments):
        print(flags.help_text(program), end="")
        return 0
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax and Grain tell of every save and thread
    try:
        command = flags.parse(arguments)
        parallel = command.config.parallel
        devices.keep_heap(compute_here=not (parallel.distributed or parallel.coordinator))
        outcome = run(command.config, command.workdir)
    except (ConfigError, DataError, CheckpointError) as error:
        return leave(refuse(program, str(error)), error)
    except RunError as error:
        return leave(refuse(program, str(error), code=75 if isinstance(error, LostProcess) else 1), error)
    except KeyboardInterrupt:
        return leave(refuse(program, "stopped at once; the same command resumes from the last checkpoint", code=130))
    except Exception:
        if jax.distributed.is_initialized():  # the others know nothing of it
            traceback.print_exc()
            leave(1)
        raise
    if outcome.stopped_by is None:
        return 0
    return 128 + outcome.stopped_by if outcome.agreed else leave(128 + outcome.stopped_by)
