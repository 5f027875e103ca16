"""Hand a distilled set on: NumPy, PNG folders (ImageFolder layout) or the DC family's .pt file.

python experiments/export.py runs/mnist5k/dm/seed0 --format png --out exported
"""

from metadd_jax.job import command, export

if __name__ == "__main__":
    command.main(export.run, program="export.py")
