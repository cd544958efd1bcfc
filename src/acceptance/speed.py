"""How long does the zoo's training step take?"""

import time

import mindspore as ms
import numpy as np

from ..training.optimizer import create_optimizer
from ..training.step import create_training_cell
from ..vnet import create_vnet
from .precisions import configuration
from .table import Table

SPEED = "step at 128x128x64, batch 4, ms"
PUBLISHED_MS = {"Ascend": "1080 (zoo, Ascend 910)", "GPU": "1870 (zoo, V100)", "CPU": "-"}


def check_speed(target: str, table: Table) -> None:
    """Times the zoo's training step; the table has the zoo's published time beside it."""
    with table.record_errors(SPEED):
        config = configuration("auto")
        network = create_vnet(config)
        optimizer = create_optimizer(network, config, np.full(100, 1e-4, np.float32))
        step = create_training_cell(network, optimizer, config, target)
        random = np.random.default_rng(1)
        shape = (config.batch_size, 1, *config.VolSize)
        image = ms.Tensor(random.normal(size=shape).astype(np.float32))
        mask = ms.Tensor((random.random((shape[0], *shape[2:])) < 0.1).astype(np.float32))
        dropout_mask = ms.Tensor(np.ones((shape[0], network.dropout_channels), np.float32))
        times_ms = []
        for _ in range(8):
            begin = time.perf_counter()
            step(image, mask, dropout_mask)
            ms.runtime.synchronize()
            times_ms.append(1000 * (time.perf_counter() - begin))
        table.add(SPEED, PUBLISHED_MS[target], f"{np.median(times_ms[3:]):.0f}", True)
