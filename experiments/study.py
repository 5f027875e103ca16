"""Measure a table: distil and judge the sets of a study, each once, in any order and from any number of processes.

python experiments/study.py competitors --budget 30m
"""

from metadd_jax.job import command, study

if __name__ == "__main__":
    command.main(study.run, program="study.py")
