"""Train networks from scratch on a distilled set and print their accuracy on the real test split.

python experiments/evaluate.py runs/mnist5k/dm/seed0/synthetic.npz --networks vgg11:width=8 mlp
"""

from metadd_jax.job import command, evaluate

if __name__ == "__main__":
    command.main(evaluate.run, program="evaluate.py")
