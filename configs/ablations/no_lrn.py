"""Without response normalisation: source2012_imagenet.py without its norms, the one within maps included.

Result: 42.034 % top-1 and 19.362 % top-5 error on ILSVRC-2012's validation images, ten crops, against
40.664 and 18.210 % with them (the 2012 source's run 148; the paper, section 3.3, says 1.4 and 1.2 points).
Not measured here.

Cost: as source2012_imagenet.py.
Command:
    python train.py --config=configs/ablations/no_lrn.py
"""

import pathlib
import runpy

BASE = pathlib.Path(__file__).parents[1] / "source2012_imagenet.py"


def get_config(argument=None):
    """source2012_imagenet.py with what is named above changed; "tiny" is two steps of a small one."""
    config = runpy.run_path(str(BASE))["get_config"](argument)
    config.model.lrn = False
    return config
