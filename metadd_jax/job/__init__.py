"""The main job and its commands, as ``metadd_jax.cli`` and the scripts of ``experiments/`` call them."""
