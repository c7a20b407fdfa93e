"""The paper's figure 1, the dashed line: figure1_relu.py with tanh. Its docstring says everything else.

Cost: as figure1_relu.py.
Result: six times the iterations of ReLU to 25 % training error (the paper, figure 1). Not measured here.
Command:
    python train.py --config=configs/figure1_tanh.py --config.data.source=cifar10:DIR
"""

import pathlib
import runpy

BASE = pathlib.Path(__file__).parent / "figure1_relu.py"


def get_config(argument=None):
    """figure1_relu.py with tanh; "tiny" is two steps of a small one."""
    config = runpy.run_path(str(BASE))["get_config"](argument)
    config.model.activation = "tanh"
    return config
