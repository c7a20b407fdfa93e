"""Checkpoints: a pytree with its metadata, written atomically, verified when read. Knows no model."""

from alexnet_jax.checkpoint.errors import CheckpointError, DamagedError, DiskFullError
from alexnet_jax.checkpoint.record import FORMAT
from alexnet_jax.checkpoint.store import Checkpoints, Restored

__all__ = ["FORMAT", "CheckpointError", "Checkpoints", "DamagedError", "DiskFullError", "Restored"]
