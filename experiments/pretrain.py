"""Train networks on the whole real training split and keep them in the cache, as MetaDD's auxiliaries.

python experiments/pretrain.py --networks vgg11:width=8 vit:width=48,depth=3
"""

from metadd_jax.job import command, pretrain

if __name__ == "__main__":
    command.main(pretrain.run, program="pretrain.py")
