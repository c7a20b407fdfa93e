"""The folder of a run: its lock, and whether it can be written."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator

from alexnet_jax.training.schema import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
    """Turns a workdir that can't be written into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} can't be used: {error}") from None


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the folder, tries that it can be written, and keeps other processes away from it.

    The lock is the kernel's (`flock`): it ends with the process that holds it, however that ends.
    Where the file system has no locks it is left out. A folder made here in which nothing was
    written is taken away again.

    Raises:
      ConfigError: another process holds the folder (named), or it can't be written.
    """
    with writing(workdir):
        made = [path for path in (workdir, *workdir.parents) if not path.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir, prefix=".writable-") as file:
            file.write(b"x")  # a lock of an earlier run may be opened in a folder that is read-only now
        descriptor = _acquired(workdir)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            if made and [path.name for path in workdir.iterdir()] == [LOCK]:
                (workdir / LOCK).unlink()
                for path in made:
                    path.rmdir()
        os.close(descriptor)


def _acquired(workdir: pathlib.Path) -> int:
    """The descriptor that holds the lock."""
    path = workdir / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not one that was just taken away
                break
        except BlockingIOError:
            owner = _owner(path)
            os.close(descriptor)
            raise ConfigError(
                f"--workdir={workdir} is in use by {owner}: wait for its end, or take another --workdir"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:
            break  # a file system without locks
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return descriptor


def _owner(path: pathlib.Path) -> str:
    """Who holds the lock, in words."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
