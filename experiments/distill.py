"""The main job: distil a data set with a base method and with MetaDD, judge both across architectures.

    python experiments/distill.py [PRESET] [--option value ...]

Without arguments it distils the embedded digits. Started again in the same folder it goes on where it stopped.
Several processes distil together if each is told so (--num-processes); the first prints and writes.
"""

from metadd_jax.job import command, distill

if __name__ == "__main__":
    command.main(distill.run, program="distill.py")
