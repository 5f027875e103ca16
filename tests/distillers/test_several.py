"""Matching over several networks: stored factors, sums by NumPy, ten steps as PyTorch does them, errors."""

import itertools

import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest

from metadd_jax import distillers, keys
from metadd_jax.distillers import several

SPECS = ("mlp:width=8", "mlp:width=4")
NETS = tuple(map(members.make_net, SPECS))
LABELS = np.repeat([0, 1, 2], 2)


def both(balance="balanced", **settings):
    return distillers.match_all([members.base(net, augmentation="none", **settings) for net in NETS], balance=balance)


def own_key(key, number):
    return jax.random.fold_in(keys.named(key, "matched"), number) if number else key


def test_factors_of_stored_numbers():
    """HMDC's balance: the sizes are added up from 1e-6 on, and the smallest gradient gets 1."""
    largest = jnp.full((2, 1), several.START)
    for size, wanted in (([2e-3, 0.5], 0.004002), ([1e-3, 0.2], 0.004287)):
        largest += jnp.array(size)[:, None]
        np.testing.assert_allclose(several.factors(largest)[:, 0], [1, wanted], rtol=2e-4)


def test_a_normalised_gradient_of_stored_numbers():
    gradient = jnp.array([[0.002, -0.008], [0.0, 0.004]])[None, :, :, None]
    wanted = [[0.249969, -0.999875], [0.0, 0.499938]]
    np.testing.assert_allclose(several.normalised(gradient)[0, :, :, 0], wanted, atol=1e-6)


def test_the_largest_of_a_class_is_over_its_own_images():
    gradient = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
    wanted = [np.abs(gradient[2 * c : 2 * c + 2]).max() for c in range(3)]
    np.testing.assert_array_equal(several.largest_by_class(gradient, LABELS, 3), wanted)


@pytest.mark.parametrize("balance", several.BALANCES)
def test_the_gradient_is_the_balanced_sum_of_those_of_the_methods_alone(tiny, balance):
    method, key = both(balance), jax.random.key(3)
    synthetic, aux = method.init(jax.random.key(0), tiny)
    batch = method.sample(jax.random.key(1), tiny.train, 0)
    loss = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    (value, (after, metrics)), slope = loss(key, synthetic, aux, batch, method.frozen)
    alone = []
    for number, net in enumerate(NETS):
        bare = members.base(net, augmentation="none")
        slope_of = jax.jit(
            jax.value_and_grad(lambda x, key, bare=bare: bare.loss(key, {"images": x}, (), batch, ())[0])
        )
        alone.append([np.asarray(x, np.float64) for x in slope_of(synthetic["images"], own_key(key, number))])
    assert float(value) == pytest.approx(sum(float(one) for one, _ in alone), rel=1e-5)
    assert [float(metrics[f"loss_{k}"]) for k in (1, 2)] == pytest.approx([float(one) for one, _ in alone], rel=1e-5)
    gradients = np.stack([gradient for _, gradient in alone])
    sizes = 1e-6 + np.stack([[np.abs(g[c == LABELS]).max() for c in range(3)] for g in gradients])
    factors = np.ones((2, 3)) if balance == "sum" else sizes.min(axis=0) / sizes
    wanted = (factors[:, LABELS, None, None, None] * gradients).sum(axis=0)
    if balance == "normalised":
        wanted = wanted / (np.abs(wanted).max(axis=(1, 2), keepdims=True) + 1e-6)
        assert 0.99 < float(jnp.abs(slope["images"]).max()) <= 1
    np.testing.assert_allclose(slope["images"], wanted, atol=1e-5 * np.abs(wanted).max())
    if balance != "sum":
        np.testing.assert_allclose(after["largest"], sizes, rtol=1e-4)


def test_sizes_are_added_at_every_tenth_step_alone(tiny):
    method = both()
    state = distillers.init_state(jax.random.key(0), method, members.TX, tiny)
    update, found = jax.jit(distillers.make_update(method, members.TX)), []
    for _ in range(12):
        state, _ = update(state, tiny.train, method.frozen)
        found.append(np.asarray(state.aux["largest"]))
    changes = [int((a != b).all()) for a, b in itertools.pairwise(found)]
    assert changes == [0] * 9 + [1, 0] and (found[0] > several.START).all()


def test_the_first_of_several_draws_what_it_draws_alone(tiny):
    """All but the other network is the same: its loss is that of the bare method in the same run."""
    method, bare = both("sum"), members.base(NETS[0], augmentation="none")
    losses = []
    for one in (method, bare):
        state = distillers.init_state(jax.random.key(0), one, members.TX, tiny)
        _, metrics = jax.jit(distillers.make_update(one, members.TX))(state, tiny.train, one.frozen)
        losses.append(float(metrics.get("loss_1", metrics["loss"])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_eleven_steps_are_torchs(tiny):
    """DM over two MLPs with balance, by autograd in PyTorch from the same draws; the sizes grow at steps 0 and 10."""
    torch = pytest.importorskip("torch")
    method, tx = both(), optax.sgd(0.1, momentum=0.5)
    state = distillers.init_state(jax.random.key(0), method, tx, tiny)
    update, init = jax.jit(distillers.make_update(method, tx)), [jax.jit(net.init) for net in NETS]
    images = torch.tensor(np.array(state.synthetic["images"]).reshape(6, -1)).double().requires_grad_()
    descent = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    largest = torch.full((2, 3), 1e-6, dtype=torch.float64)
    for step in range(11):
        step_key = jax.random.fold_in(state.key, step)
        batch = method.sample(keys.named(step_key, "sample"), tiny.train, step)
        gradients = []
        for number in range(2):
            key = own_key(keys.named(step_key, "loss"), number)
            theta = jax.tree.map(
                lambda leaf: torch.tensor(np.array(leaf)).double(), init[number](keys.named(key, "network"))
            )

            def psi(x, theta=theta["params"]):
                for layer in ("fc1", "fc2"):
                    x = torch.relu(x @ theta[layer]["kernel"] + theta[layer]["bias"])
                return x

            total = 0
            for c in range(3):
                real = (np.asarray(batch["images"][c]) / 255 - np.asarray(batch["mean"])) / np.asarray(batch["std"])
                real = psi(torch.tensor(real.reshape(len(real), -1)).double())[np.asarray(batch["weights"][c]) > 0]
                total = total + ((real.mean(0) - psi(images[2 * c : 2 * c + 2]).mean(0)) ** 2).sum()
            gradients.append(torch.autograd.grad(total, images)[0])
        if step % 10 == 0:
            largest += torch.stack(
                [torch.stack([g[2 * c : 2 * c + 2].abs().max() for c in range(3)]) for g in gradients]
            )
        scale = (1 / largest) / (1 / largest).max(0).values
        images.grad = sum(s[LABELS][:, None] * g for s, g in zip(scale, gradients, strict=True))
        descent.step()
        state, _ = update(state, tiny.train, method.frozen)
    moved = np.abs(np.asarray(state.synthetic["images"]).reshape(6, -1) - images.detach().numpy()).max()
    assert moved < 1e-3 * float(images.detach().abs().max())
    np.testing.assert_allclose(state.aux["largest"], largest, rtol=1e-3)


def test_what_cannot_be_matched_together_is_refused(tiny):
    one = members.base(NETS[0])
    with pytest.raises(ValueError, match="wants at least two methods, not 1"):
        distillers.match_all([one])
    with pytest.raises(ValueError, match="balance='even' must be one of sum, balanced, normalised"):
        distillers.match_all([one, one], balance="even")
    with pytest.raises(ValueError, match="base is a Architecture; give a method"):
        distillers.match_all([one, NETS[1]])
    for other in (members.packed(), members.base(NETS[1], ipc=1), members.trajectories(distillers.mtt)):
        with pytest.raises(ValueError, match="wants methods that train the same images alone, such as dm, dc and dsa"):
            distillers.match_all([one, other]).init(jax.random.key(0), tiny)
