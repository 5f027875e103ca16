"""What the steps, trainings and evaluations cost, and the same beside PyTorch: every line is a fresh process.

python experiments/benchmark.py --torch --out benchmark.json

The program lies in ``benchmark/``; its twin in PyTorch in ``benchmark/pytorch/``.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "benchmark"))
import costs
from metadd_jax.job import command

if __name__ == "__main__":
    command.main(costs.run, program="benchmark.py")
