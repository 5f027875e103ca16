"""The fit of latents to the images that a method starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax.generators import start


@dataclasses.dataclass(frozen=True)
class Offset:
    """Images that are the latents plus what is frozen: the fit is known."""

    def decode(self, latents, frozen):
        return latents["pixels"] + frozen


def fitted(steps, count=2, on_fit=None):
    images, frozen = jnp.arange(count * 4.0).reshape(count, 2, 2, 1) / 8, jnp.float32(0.5)
    latents = start.fit(
        Offset(), {"pixels": jnp.zeros_like(images)}, frozen, images, lr=0.02, steps=steps, on_fit=on_fit
    )
    return latents["pixels"], images - frozen


def test_latents_come_to_show_the_images_whatever_lies_beside_them():
    found, wanted = fitted(300)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_array_equal(fitted(40)[0], fitted(40, count=3)[0][:2])


@pytest.mark.parametrize(("steps", "words"), [(0, []), (3, [1, 2, 3]), (40, list(range(2, 41, 2)))])
def test_every_step_is_taken_and_told(steps, words):
    told = []
    found, _ = fitted(steps, on_fit=lambda done, total: told.append((done, total)))
    assert told == [(word, steps) for word in words]
    # Adam moves a number by its rate at most in each of the first steps: no more of them were taken.
    assert np.abs(found).max() <= 0.02 * steps + 1e-6


def test_who_asks_for_shapes_is_told_nothing():
    told = []
    jax.eval_shape(lambda: fitted(3, on_fit=lambda *words: told.append(words))[0])
    assert not told
