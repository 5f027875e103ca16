"""The StyleGAN3-type generator trained by us, and from a file: what a training moves, what the arms are called."""

import jax
import numpy as np
import pytest
from test_glad import TINY, VARIABLES, decoded, start, tiny  # noqa: F401  # a fixture

from metadd_jax import distillers, generators
from metadd_jax.generators import glad

SIZES = "layers=3,channel_base=16,channel_max=2,w_dim=3,z_dim=3,layer=1"


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):  # noqa: F811
    text = f"stylegan:weights=trained,images=12,epochs=2,{SIZES}"
    made = distillers.parameterisations.parse(text, tiny)
    return made, made.prepare(tiny, tmp_path_factory.mktemp("cache"), progress=lambda *words: None)


def test_one_style_in_all_layers_is_what_is_trained(tiny):  # noqa: F811
    mean, std = (tuple(np.asarray(values).tolist()) for values in (tiny.train.mean, tiny.train.std))
    shown = glad.Trainable(TINY, (8, 6, 1), mean, std)
    z = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    made = np.asarray(jax.jit(shown.generate)(VARIABLES, z, np.array([0, 1])))
    w = np.repeat(np.asarray(TINY.mapping.apply(VARIABLES["mapping"], z))[:, None], 5, axis=1)
    whole = jax.jit(TINY.synthesis.apply)(VARIABLES["synthesis"], w)
    pixels = (np.asarray(whole)[:, :, 1:7] + 1) / 2
    np.testing.assert_allclose(made, (pixels - mean) / std, rtol=1e-4, atol=1e-5)


def test_a_training_moves_weights_and_neither_waves_nor_magnitudes(prepared, tiny):  # noqa: F811
    before, after = prepared
    assert (before.name, after.name) == ("stylegan_f1_trained", "stylegan_f1_trained")
    kept, moved = before.frozen["synthesis"], after.frozen["synthesis"]
    for part in ("buffers", "magnitudes"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), kept[part], moved[part])
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), kept["params"], moved["params"])
    assert min(jax.tree.leaves(changes)) > 1e-3
    assert jax.tree.map(np.shape, kept) == jax.tree.map(np.shape, moved)
    assert after.facts["generator"] == "StyleGAN3-type, trained, seed 0 (GLaD-style)"
    assert after.facts["generator_explained"] == after.trained.explained
    # It knows the classes, and its images are those of its new weights.
    latents = start(after, [0, 1, 2])
    assert np.abs(np.diff(latents["w"][:, 0], axis=0)).max() > 0
    assert np.abs(np.asarray(decoded(after, latents)) - decoded(before, latents)).max() > 1e-4


def test_weights_of_a_file_are_the_generators(prepared, tiny, tmp_path):  # noqa: F811
    pytest.importorskip("safetensors")
    made = prepared[1]
    generators.dump(made.trained.weights, tmp_path / "mine.safetensors")
    text = f"stylegan:weights={tmp_path / 'mine.safetensors'},{SIZES}"
    own = distillers.parameterisations.parse(f"{text},conditional=True", tiny)
    assert own.name == "stylegan_f1_mine" and own.prepare(tiny, None, progress=print) is own
    jax.tree.map(np.testing.assert_array_equal, own.frozen, made.frozen)
    jax.tree.map(np.testing.assert_array_equal, own.mapping, made.mapping)
    with pytest.raises(ValueError, match=r"mine\.safetensors has mapping/params/layer0/.* of stylegan is"):
        distillers.parameterisations.parse(text, tiny)
    with pytest.raises(ValueError, match="is a pickle by its name: loading a pickle runs its author's code"):
        distillers.parameterisations.parse("stylegan:weights=stylegan3-t-cifar10.pkl", tiny)


def test_the_untrained_arm_is_what_it_was(tiny):  # noqa: F811
    made = distillers.parameterisations.parse(f"stylegan:{SIZES}", tiny)
    assert made.name == "stylegan_f1" and made.prepare(tiny, None, progress=print) is made
    assert made.generator.num_classes == 0 and "generator_explained" not in made.facts
