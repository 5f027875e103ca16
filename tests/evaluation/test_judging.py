"""Cross-architecture evaluation: sets together are sets alone, seeds are paired, mistakes stop early."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, evaluation, training, zoo
from metadd_jax.evaluation.judging import split_of, train_and_test
from metadd_jax.structs import Auxiliary, SyntheticSet

SHAPE = (8, 8, 1)
RECIPE = training.Recipe(epochs=6, batch_size=4, learning_rate=0.05, weight_decay=0.0)


@pytest.fixture(scope="module")
def dataset():
    """Class 1 is a little brighter than class 0; a third of the training images is set aside."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (rng.integers(0, 200, (60, *SHAPE)) + 25 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays("shades", images, labels, images[::-1][:31], labels[::-1][:31], validation_fraction=1 / 3)


@pytest.fixture(scope="module")
def sets(dataset):
    first = evaluation.random_real(jax.random.key(0), dataset, 4)
    noise = SyntheticSet(images=jax.random.normal(jax.random.key(1), first.images.shape), labels=first.labels)
    return [first, noise]


@pytest.fixture(scope="module")
def networks():
    return [zoo.parse(spec, 2, SHAPE) for spec in ("mlp:width=8", "convnet:width=4,depth=1")]


@pytest.fixture(scope="module")
def together(sets, dataset, networks):
    done = []
    tables = evaluation.cross_architecture(
        jax.random.key(3), sets, dataset, networks, seeds=3, recipe=RECIPE, on_network=done.append
    )
    assert done == ["mlp:width=8", "convnet:width=4,depth=1"]
    return tables


def test_sets_together_are_sets_alone(sets, dataset, networks, together):
    assert [[row.network for row in table] for table in together] == [["mlp:width=8", "convnet:width=4,depth=1"]] * 2
    alone = evaluation.cross_architecture(jax.random.key(3), sets[1], dataset, networks[:1], seeds=3, recipe=RECIPE)
    assert alone == together[1][:1] != together[0][:1]
    assert all(len(row.accuracies) == 3 for table in together for row in table)


def test_each_accuracy_is_that_of_one_fit(sets, dataset, networks, together):
    net, key, arrays = networks[0], jax.random.key(3), dataset.test
    draw = jax.random.fold_in(key, 0)
    own = jax.random.fold_in(draw, 1)
    variables = training.fit(own, net, sets[0].images, sets[0].labels, RECIPE, shared_key=draw)
    x = (np.asarray(arrays.images, np.float32) / 255 - arrays.mean) / arrays.std
    predicted = np.asarray(net.apply(variables, jnp.asarray(x, jnp.float32))[0]).argmax(1)
    assert together[0][0].accuracies[1] == pytest.approx((predicted == arrays.labels).mean(), abs=1e-6)


def test_seeds_are_paired_and_groups_do_not_matter(sets, dataset, networks, together):
    """The same set twice gets the same seeds; 6 fits in groups of 4 are padded, which nobody notices."""
    twice = [sets[1], sets[1]]
    values = train_and_test(jax.random.key(3), twice, networks[0], dataset.test, seeds=3, recipe=RECIPE, at_once=4)
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_allclose(values[0], together[1][0].accuracies, atol=1e-6)
    assert len(np.unique(values[0])) > 1


def test_sets_of_different_draws_share_no_luck(sets, dataset, networks):
    """The same set three times: two of one draw are one number, the third trains from weights of its own."""
    recipe = dataclasses.replace(RECIPE, augmentation="crop_scale")
    same, key = [sets[1]] * 3, jax.random.key(3)
    values = train_and_test(key, same, networks[0], dataset.test, seeds=3, recipe=recipe, draws=[4, 7, 4])
    np.testing.assert_array_equal(values[0], values[2])
    assert not np.array_equal(values[0], values[1])
    draw = jax.random.fold_in(key, 7)  # whatever stands beside it, draw 7 is this
    own = jax.random.fold_in(draw, 2)
    variables = training.fit(own, networks[0], sets[1].images, sets[1].labels, recipe, shared_key=draw)
    right, total = training.count_correct(networks[0], variables, dataset.test)
    assert values[1, 2] == pytest.approx(float(right / total), abs=1e-6)


def test_the_validation_split_is_its_own_measure(sets, dataset, networks):
    assert split_of(dataset, "validation") is dataset.validation
    assert split_of(dataset, "test") is dataset.test
    (row,) = evaluation.cross_architecture(
        jax.random.key(3), sets[0], dataset, networks[:1], seeds=2, recipe=RECIPE, split="validation"
    )
    size = len(dataset.validation.labels)
    assert size == 20
    np.testing.assert_allclose(np.array(row.accuracies) * size, np.round(np.array(row.accuracies) * size), atol=1e-4)


def test_soft_labels_take_the_place_of_labels(sets, dataset, networks, together):
    hard = sets[0]
    one_hot = hard.replace(labels=1 - hard.labels, soft_labels=jax.nn.one_hot(hard.labels, 2))
    flat = hard.replace(soft_labels=jnp.full((len(hard.labels), 2), 0.5))
    # The third set has none, and trains beside them on its hard labels.
    values = train_and_test(jax.random.key(3), [one_hot, flat, hard], networks[0], dataset.test, seeds=3, recipe=RECIPE)
    for row in (values[0], values[2]):
        np.testing.assert_allclose(row, together[0][0].accuracies, atol=1e-6)
    assert not np.allclose(values[1], values[2])


def test_a_learned_step_size_takes_the_place_of_the_recipes(sets, dataset, networks, together):
    """Each set trains with its own; the one without keeps the recipe's; AdamW ignores it."""
    key = jax.random.key(3)
    group = [
        sets[0].replace(learning_rate=jnp.float32(0.004)),
        sets[0],
        sets[0].replace(learning_rate=jnp.float32(0.4)),
    ]
    values = train_and_test(key, group, networks[0], dataset.test, seeds=3, recipe=RECIPE)
    for rate, row in zip((0.004, 0.05, 0.4), values, strict=True):
        recipe = dataclasses.replace(RECIPE, learning_rate=rate)
        expected = train_and_test(key, [sets[0]], networks[0], dataset.test, seeds=3, recipe=recipe)[0]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    np.testing.assert_allclose(values[1], together[0][0].accuracies, atol=1e-6)
    assert not np.allclose(values[0], values[2])
    adamw = dataclasses.replace(RECIPE, optimiser="adamw", learning_rate=0.01)
    both = train_and_test(key, group[:2], networks[0], dataset.test, seeds=1, recipe=adamw)
    np.testing.assert_array_equal(both[0], both[1])


def test_a_teacher_labels_every_set(sets, dataset, networks, together):
    """Each accuracy is that of one fit with the teacher; the sets' own labels do not count."""
    net, key, arrays = networks[0], jax.random.key(3), dataset.train
    draw = jax.random.fold_in(key, 0)
    fit = functools.partial(training.fit, net=net, shared_key=draw)
    real = data.standardise(arrays.images, arrays.mean, arrays.std)
    thorough = training.pretraining(30, learning_rate=0.01)
    variables = jax.jit(lambda: fit(draw, images=real, labels=arrays.labels, recipe=thorough))()
    teacher = Auxiliary(variables=variables, map_eps={}, net=net)
    recipe = dataclasses.replace(RECIPE, flip=True, learning_rate=0.5, temperature=2.0)

    def judge(sets):
        return train_and_test(key, sets, net, dataset.test, seeds=2, recipe=recipe, teacher=teacher)

    values = judge(sets)
    own, noise = jax.random.fold_in(draw, 1), sets[1]
    student = jax.jit(lambda: fit(own, images=noise.images, labels=noise.labels, recipe=recipe, teacher=teacher))()
    right, total = training.count_correct(net, student, dataset.test)
    assert values[1, 1] == pytest.approx(float(right / total), abs=1e-6)
    assert len(np.unique(values)) > 1
    np.testing.assert_array_equal(judge([s.replace(labels=1 - s.labels) for s in sets]), values)
    rows = evaluation.cross_architecture(key, sets[1], dataset, [net], seeds=2, recipe=recipe, teacher=teacher)
    np.testing.assert_allclose(rows[0].accuracies, values[1], atol=1e-6)


def test_hard_labels_serve_every_set_whatever_it_learned(sets, dataset, networks, together):
    flat = sets[0].replace(soft_labels=jnp.full((len(sets[0].labels), 2), 0.5))
    judge = functools.partial(
        evaluation.cross_architecture, jax.random.key(3), [flat, sets[1]], dataset, networks[:1], seeds=3, recipe=RECIPE
    )
    assert [table[0].accuracies for table in judge(labels="hard")] == [table[0].accuracies for table in together]
    with pytest.raises(ValueError, match="labels='soft' must be one of own, hard"):
        judge(labels="soft")


def test_mistakes_stop_before_training(sets, dataset, networks):
    def judge(synthetic=sets[0], nets=networks[:1], data_set=dataset, **settings):
        return evaluation.cross_architecture(jax.random.key(0), synthetic, data_set, nets, **settings)

    with pytest.raises(ValueError, match="no sets"):
        judge([])
    with pytest.raises(ValueError, match="seeds=0 must be"):
        judge(seeds=0)
    half = jax.tree.map(lambda leaf: leaf[::2], sets[0])
    with pytest.raises(ValueError, match="cannot train together"):
        judge([sets[0], half])
    with pytest.raises(ValueError, match=r"draws are \[0\] for 2 sets"):
        judge(sets, draws=[0])
    with pytest.raises(ValueError, match="unknown split 'train'; use one of test, validation"):
        judge(split="train")
    bare = data.from_arrays("bare", *[x for s in (dataset.train, dataset.test) for x in (s.images, s.labels)])
    with pytest.raises(ValueError, match="bare was loaded without validation images"):
        judge(data_set=bare, split="validation")
    with pytest.raises(ValueError, match=r"\(8, 8, 1\) images, mlp takes \(4, 4, 1\)"):
        judge(nets=[zoo.parse("mlp", 2, (4, 4, 1))])
    with pytest.raises(ValueError, match="mlp has 3 classes, shades 2"):
        judge(nets=[zoo.parse("mlp", 3, SHAPE)])
    with pytest.raises(ValueError, match="the set has labels 6 to 7 but 2 class names"):
        judge(sets[0].replace(labels=sets[0].labels + 6))


def test_a_set_in_memory_is_checked_as_strictly_as_a_file(sets, dataset, networks):
    good, labels = sets[0], np.asarray(sets[0].labels)
    logits = 20 * np.eye(2, dtype=np.float32)[labels] - 10
    for fields, words in (
        ({"labels": labels[:-3]}, "8 images and labels int32"),
        ({"labels": labels - 1}, r"labels -1 to 0 .* 0\.\.1"),
        ({"soft_labels": logits}, "no probabilities; turn logits"),
        ({"images": np.zeros(good.images.shape, np.uint8)}, "images uint8.*standardise"),
        ({"images": good.images * np.nan}, "512 pixels that are NaN"),
        *(({"learning_rate": np.float32(rate)}, "finite number above 0") for rate in (-0.01, 0.0, np.nan, np.inf)),
    ):
        with pytest.raises(ValueError, match=f"set 1 has .*{words}"):
            pair = [good, good.replace(**fields)]
            evaluation.cross_architecture(jax.random.key(0), pair, dataset, networks, seeds=1, recipe=RECIPE)


def test_a_training_that_diverges_has_no_accuracy(sets, dataset, networks, together):
    """NaN logits are no choice of class 0; the set beside it keeps its own number."""
    pair = [sets[0].replace(learning_rate=jnp.float32(1e30)), sets[0].replace(learning_rate=jnp.float32(0.05))]
    diverged, well = evaluation.cross_architecture(
        jax.random.key(3), pair, dataset, networks[:1], seeds=2, recipe=RECIPE
    )
    assert np.isnan(diverged[0].accuracies).all()
    np.testing.assert_allclose(well[0].accuracies, together[0][0].accuracies[:2], atol=1e-6)


def test_judging_again_compiles_nothing(sets, dataset, networks, caplog):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    for key, expected in ((jax.random.key(5), True), (jax.random.key(6), False)):
        caplog.clear()
        with jax.log_compiles():
            train_and_test(key, sets, networks[0], dataset.test, seeds=2, recipe=recipe)
        compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
        assert bool(compiled) == expected, compiled


def test_guides_are_the_networks_of_their_own_row_seed_by_seed(sets, dataset, networks, together):
    """The guide's row is the plain one; the other networks train beside the guide of their set and training seed."""
    mlp, guide = networks
    how, key = training.Guidance(guide), jax.random.key(3)
    tables = evaluation.cross_architecture(
        key, sets, dataset, networks, seeds=3, recipe=RECIPE, guidance=how, at_once=2
    )
    assert [table[1] for table in tables] == [table[1] for table in together]
    assert tables[0][0] != together[0][0]
    draw = jax.random.fold_in(key, 0)
    for index, seed in ((1, 2),):
        own, train = jax.random.fold_in(draw, seed), functools.partial(training.fit, recipe=RECIPE, shared_key=draw)
        images, labels = sets[index].images, sets[index].labels
        teacher = train(own, guide, images, labels)
        student = train(own, mlp, images, labels, guidance=(how, teacher))
        right, total = training.count_correct(mlp, student, dataset.test)
        assert tables[index][0].accuracies[seed] == pytest.approx(float(right / total))
