"""Draw a distilled set; with networks (trained on the real data, from the cache) also what they see in it.

python experiments/show.py runs/mnist5k/dm/seed0 --out pictures --networks vgg11:width=8 lenet
python experiments/show.py mnist5k --networks vgg11:width=8 lenet    (real images; also a folder or an .npz of yours)
"""

from metadd_jax.job import command, show

if __name__ == "__main__":
    command.main(show.run, program="show.py")
