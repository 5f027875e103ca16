"""No two purposes draw from one key: the numbers of the domains, and the keys of a whole small job."""

import itertools

import jax
import numpy as np
import pytest

from metadd_jax import keys

MANY = range(30)


def test_numbers_are_apart_and_above_every_count():
    """Counts (steps, images, seeds) stay below 2^24; a domain of a smaller number could meet one of them."""
    numbers = [keys.number(domain) for domain in keys.DOMAINS]
    assert len(set(numbers)) == len(keys.DOMAINS)
    assert min(numbers) >= 2**24


def test_a_purpose_needs_an_entry(key):
    with pytest.raises(ValueError, match="no random domain 'jugde'; use one of distil, judge"):
        keys.named(key, "jugde")


def test_the_rule_is_needed(key):
    """What the module's docstring says of JAX: counting and splitting give the same keys."""
    counted = jax.random.key_data(jax.random.fold_in(key, 1))
    np.testing.assert_array_equal(counted, jax.random.key_data(jax.random.split(key, 3))[1])


def test_all_keys_of_a_job_differ():
    """Runs, their steps, trainings that judge and the parts of a training: every combination once."""
    fold = jax.random.fold_in
    found = {}

    def note(name, key):
        found[name] = tuple(np.asarray(jax.random.key_data(key)).tolist())
        return key

    for seed in MANY:
        for job in ("distil", "pretrain", "experts", "random", "judge", "report", "probe"):
            note((job, seed), keys.root(seed, job))
        run = note(("run", seed), keys.named(keys.root(seed, "distil"), "run"))
        note(("init", seed), keys.named(keys.root(seed, "distil"), "init"))
        for step in range(4):
            own = note(("step", seed, step), fold(run, step))
            for part in ("refresh", "sample", "loss"):
                note((part, seed, step), keys.named(own, part))
    judging = keys.root(0, "judge")
    for draw, training in itertools.product(MANY, range(4)):
        shared = note(("draw", draw), fold(judging, draw))
        own = note(("training", draw, training), fold(shared, training))
        for part in ("weights", "order", "view"):
            note((part, draw, training), keys.named(own, part))
        note(("token", draw), keys.named(shared, "token"))
    assert len(set(found.values())) == len(found) > 1000


def test_streams_of_host_code_differ_by_purpose_and_count():
    draws = [keys.generator(domain, 0, count).integers(2**62) for domain in ("kmeans", "stream") for count in range(3)]
    assert len(set(draws)) == 6
    assert keys.generator("kmeans", 0, 2).integers(2**62) == draws[2]
