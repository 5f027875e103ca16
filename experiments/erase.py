"""The erasing experiment: train networks on images without what all of them see, one alone sees, or only others see.

python experiments/erase.py runs/cifar10_cpu/dm --networks vgg11_bn:width=8 alexnet:width=8 resnet18_bn:width=8
"""

from metadd_jax.job import command, erase

if __name__ == "__main__":
    command.main(erase.run, program="erase.py")
