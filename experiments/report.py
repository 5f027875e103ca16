"""Write report.html of a run, a study or a comparison of several.

python experiments/report.py runs/mnist5k
"""

from metadd_jax.job import command, report

if __name__ == "__main__":
    command.main(report.run, program="report.py")
