"""One tower: half of the kernels in one column, except in conv5, as many hidden units.

The paper's one-GPU network (section 3.2 and its footnote) with the 2012 source's initialisation and run 145's
timetable; the source's own run dropped its rates at epochs 20, 48 and 66 and was stopped at 96.
Result: two towers are better by 1.7 points of top-1 and 1.2 of top-5 error (the paper); on ILSVRC-2010 the source's
one-tower run has 39.168 and 18.229 %, ten crops, against 37.473 and 16.999 %. Not measured here.

Cost: as source2012_imagenet.py.
Command:
    python train.py --config=configs/ablations/one_tower.py
"""

import pathlib
import runpy

BASE = pathlib.Path(__file__).parents[1] / "source2012_imagenet.py"


def get_config(argument=None):
    """source2012_imagenet.py with what is named above changed; "tiny" is two steps of a small one."""
    config = runpy.run_path(str(BASE))["get_config"](argument)
    config.model.name = "one_tower"
    config.model.init = "source2012"
    return config
