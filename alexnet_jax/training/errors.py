"""Why a run can't go on."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run that can't go on; the message says why and what to do."""


class Diverged(RunError):
    """The loss is no number any more; the message says what to try."""


class OutOfMemory(RunError):
    """The device's memory is too small; the message says what to lower."""


class NothingSaved(RunError):
    """The run ended and could not write what it had reached."""


class LostProcess(RunError):
    """Another process of the run has ended, or can't be reached."""
