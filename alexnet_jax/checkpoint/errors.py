"""What can go wrong with a checkpoint, in words."""

from __future__ import annotations

import errno
import os
import pathlib

import jax

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the files are not to blame for: to take them for damaged would set good checkpoints aside.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class CheckpointError(RuntimeError):
    """A checkpoint that can't be used or written; the message says why and what to do."""


class DamagedError(CheckpointError):
    """A checkpoint's files are not what was written; `fault` says what is wrong, without the remedy."""

    def __init__(self, fault: str):
        super().__init__(f"{fault}: take another one; a run goes on from the newest that is whole")
        self.fault = fault


class DiskFullError(CheckpointError):
    """No room for a checkpoint: a full disk, a used-up quota or a limit of file sizes. The earlier ones are whole."""


def not_written(step: int, directory: pathlib.Path, error: BaseException) -> CheckpointError:
    """A failed save as the error to raise; the system's words decide which."""
    if (reason := _reason(error, _NO_ROOM)) is not None:
        return DiskFullError(
            f"checkpoint {step} could not be written to {directory} ({reason}): make room; "
            "the earlier checkpoints are whole, and later ones are written as soon as there is room"
        )
    return CheckpointError(
        f"checkpoint {step} could not be written to {directory} ({words(error)}): the earlier checkpoints are whole"
    )


def not_read(step: int, path: pathlib.Path, error: Exception) -> CheckpointError:
    """A failed restore as the error to raise: damage, unless the system refused; memory errors are raised as such."""
    if isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
        raise error
    if (reason := _reason(error, _NOT_DAMAGE)) is not None:
        return CheckpointError(f"checkpoint {step} can't be read from {path} ({reason}): correct that and start again")
    return DamagedError(f"checkpoint {step} in {path} is damaged ({words(error)})")


def words(error: BaseException) -> str:
    """An error's kind and message in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _reason(error: BaseException, numbers: tuple[int, ...]) -> str | None:
    """The system's words for the first of these error numbers that is behind an error, or None.

    TensorStore gives the number only in its message: "[OS error 28: ENOSPC No space left on device]".
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        for number in numbers:
            if getattr(link, "errno", None) == number or os.strerror(number) in str(link):
                return os.strerror(number)
        link = link.__cause__ or link.__context__
    return None
