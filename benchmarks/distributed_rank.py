"""One rank of benchmarks/distributed.py: `distributed_rank.py FOLDER RANKS STEPS X,Y,Z`."""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Times training steps and all-reduces; the first rank writes FOLDER/RANKS.json."""
    folder, count, steps, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ.get("RANK_ID", 0)) % len(cores)]})

    import numpy as np

    from benchmarks.mindspore_implementation import Implementation
    from src.devices.device import start_communication
    from src.devices.ranks import Ranks

    implementation = Implementation([int(side) for side in size.split(",")], 1, "on")
    ranks = start_communication(count) if count > 1 else Ranks()
    parameters = implementation.load(folder, training=True)["parameters"]
    implementation.train_step(drop=True)  # compiles
    implementation.train_step(drop=True)
    step_s = [implementation.train_step(drop=True)["seconds"] for _ in range(steps)]
    gradient = np.ones(parameters, np.float32)
    all_reduce_s = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        ranks.sum(gradient)
        all_reduce_s.append(time.perf_counter() - started)
    if ranks.is_first:
        measured = {"parameters": parameters, "step_s": step_s, "all_reduce_s": all_reduce_s[1:]}
        (folder / f"{count}.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
