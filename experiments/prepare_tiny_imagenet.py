"""Prepare Tiny-ImageNet for the other scripts: from the original download to an ArrayRecord, without TensorFlow.

python experiments/prepare_tiny_imagenet.py tiny-imagenet-200.zip --data-dir ~/tensorflow_datasets
"""

from metadd_jax.job import command, prepare_tiny_imagenet

if __name__ == "__main__":
    command.main(prepare_tiny_imagenet.run, program="prepare_tiny_imagenet.py")
