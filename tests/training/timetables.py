"""The 2012 source's two timetables, epoch by epoch, typed from what its checkpoints and logs record."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What an epoch trains with."""

    weights: float  # of every layer but conv1
    conv1_weights: float
    biases: float
    conv1_biases: float
    noise: bool
    divided: bool  # the input, by 1.1


def _rows(*spans):
    """One row an epoch, from (first epoch, last epoch, row)."""
    found = []
    for first, last, row in spans:
        assert first == len(found)
        found += [row] * (last - first + 1)
    return found


RUN_145 = _rows(
    (0, 24, Row(0.01, 0.01, 0.02, 0.02, True, True)),
    (25, 50, Row(0.001, 0.001, 0.02, 0.02, True, True)),
    (51, 66, Row(0.0001, 0.0001, 0.02, 0.02, True, True)),
    (67, 71, Row(0.0001, 0.00001, 0.02, 0.02, False, False)),
    (72, 78, Row(0.0001, 0.0, 0.02, 0.0, False, False)),
    (79, 90, Row(0.00001, 0.0, 0.02, 0.0, False, False)),
)
RUN_145_2010 = _rows(
    (0, 22, Row(0.01, 0.01, 0.02, 0.02, True, True)),
    (23, 50, Row(0.001, 0.001, 0.02, 0.02, True, True)),
    (51, 67, Row(0.0001, 0.0001, 0.02, 0.02, True, True)),
    (68, 71, Row(0.0001, 0.00001, 0.02, 0.02, False, False)),
    (72, 77, Row(0.0001, 0.0, 0.02, 0.0, False, False)),
    (78, 92, Row(0.00001, 0.0, 0.02, 0.0, False, False)),
)
RUN_145_BIASES_DROP = _rows(
    (0, 24, Row(0.01, 0.01, 0.02, 0.02, True, True)),
    (25, 50, Row(0.001, 0.001, 0.002, 0.002, True, True)),
    (51, 66, Row(0.0001, 0.0001, 0.002, 0.002, True, True)),
    (67, 71, Row(0.0001, 0.00001, 0.002, 0.002, False, False)),
    (72, 78, Row(0.0001, 0.0, 0.002, 0.0, False, False)),
    (79, 90, Row(0.00001, 0.0, 0.002, 0.0, False, False)),
)
# After its 91 epochs run 145 was pushed up again.
RUN_145_LATER = _rows(
    (0, 15, Row(0.001, 0.0, 0.02, 0.0, True, True)),  # from 91
    (16, 32, Row(0.0001, 0.0, 0.02, 0.0, True, True)),  # from 107
    (33, 43, Row(0.00001, 0.0, 0.02, 0.0, False, False)),  # from 124
)
