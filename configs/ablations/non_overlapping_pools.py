"""Pooling windows of 2 at a stride of 2, which do not overlap, in place of 3 at 2.

As in the 2012 source's run 147, conv2 has padding 1 and conv5 none, so that the sizes stay:
55 → 28 → 26 → 13 → 11 → 6.
Result: 41.058 % top-1 and 18.510 % top-5 error on ILSVRC-2012's validation images, ten crops, against
40.664 and 18.210 % (the 2012 source's run 147; the paper, section 3.4, says 0.4 and 0.3 points). Not measured here.

Cost: as source2012_imagenet.py.
Command:
    python train.py --config=configs/ablations/non_overlapping_pools.py
"""

import pathlib
import runpy

BASE = pathlib.Path(__file__).parents[1] / "source2012_imagenet.py"


def get_config(argument=None):
    """source2012_imagenet.py with what is named above changed; "tiny" is two steps of a small one."""
    config = runpy.run_path(str(BASE))["get_config"](argument)
    config.model.pool_window = 2
    config.model.padding = "conv2=1,conv5=0"
    return config
