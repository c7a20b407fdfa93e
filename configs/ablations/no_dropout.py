"""Without dropout.

Result: not known. The paper (section 4.2) says that without it the network overfits substantially, and that with
it training takes about twice the iterations. Not measured here.

Cost: as source2012_imagenet.py.
Command:
    python train.py --config=configs/ablations/no_dropout.py
"""

import pathlib
import runpy

BASE = pathlib.Path(__file__).parents[1] / "source2012_imagenet.py"


def get_config(argument=None):
    """source2012_imagenet.py with what is named above changed; "tiny" is two steps of a small one."""
    config = runpy.run_path(str(BASE))["get_config"](argument)
    config.model.dropout = 0.0
    return config
