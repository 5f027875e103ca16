"""Controls: terms of about MetaDD's cost without its idea. A gain that one of them gives as well is none of the idea's.

Source of ``ce`` and ``cos``: CLoM and CCLoM (arXiv 2310.03295), which add a loss of one frozen pre-trained network,
drawn at every step, to DC, DSA and DM; here it is the mean or sum over all auxiliaries, as in MetaDD. The others are
ours: each takes one thing away from L_ai, L_pos or L_var, or puts something plainer in its place.

Shapes: M networks, B images, K classes; f_m logits [B, K], h_m embeddings [B, D_m], c_m maps [B, H, W]. What the real
images give (n_c, mu, u, sd, ``structs.RealSide``; t, their mean maps) is measured once, over the whole training split
(``equip``).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from metadd_jax.invariant.terms import TERMS, Seen, Term, cross_entropy, positivity, variance

_SMALL = 1e-12  # under a root, and in a denominator: of the numbers here about 1e-6 of the value


def ce(seen: Seen) -> jax.Array:
    """Cross-entropy alone, sum_m CE(f_m(x), y) [B]: L_ai without its KL, and MetaDD without maps (CLoM's ``ce``).

    Args:
      seen: what the networks see.
    """
    return cross_entropy(seen.logits, seen.labels).sum(axis=0)


def cos(seen: Seen) -> jax.Array:
    """CCLoM: same-class pairs pulled together relative to all pairs, mean over m, equal for all images [B].

        L = sum_ij D_ij M_ij / sum_ij D_ij,   D_ij = 1 - cos(h(real_i), h(x_j)),   M_ij = 1 if both have one label.

    With u_c the mean of the real embeddings of class c scaled to length 1, the sum over the n_c real images of a class
    is n_c (1 - <u_c, h(x_j) / |h(x_j)|>): exact over the whole training split, where CCLoM draws 8196 images a step.

    Args:
      seen: all images of the step, with the real side.
    """
    own = jax.nn.one_hot(seen.labels, seen.logits.shape[-1])  # M of a whole class, [B, K]
    ratios = []
    for h, real in _beside_real(seen):
        D = (real.counts / real.counts.sum()) * (1 - _unit(h) @ real.directions.T)  # [B, K], sums over real images
        # All pairs at distance 0 give 0 / 0.
        ratios.append((D * own).sum() / (D.sum() + _SMALL))
    return jnp.full(len(seen.labels), jnp.stack(ratios).mean())


def logit_var(seen: Seen) -> jax.Array:
    """Variance of logits over the networks, 1/K sum_k 1/M sum_m (mean_m z_mk - z_mk)^2 [B], z_m = f_m - mean_k f_m.

    Args:
      seen: what the networks see.
    """
    # Without the mean over classes, which a softmax does not see.
    z = seen.logits - seen.logits.mean(axis=-1, keepdims=True)
    return z.var(axis=0).mean(axis=-1)


def embedding_var(seen: Seen) -> jax.Array:
    """Variance of centred and scaled embeddings over the networks, 1/K sum_k 1/M sum_m (mean_m r_mk - r_mk)^2 [B].

        r_mk = < (h_m - mu_m) / |h_m - mu_m| , (mu_mk - mu_m) / |mu_mk - mu_m| >

    Networks have different widths D_m and axes of no common meaning, so an embedding is read in K coordinates that all
    have: the cosine of its way from the real mean mu_m with the way to the real mean mu_mk of each class.

    Args:
      seen: what the networks see, with the real side.
    """
    r = []
    for h, real in _beside_real(seen):
        centre = (real.counts @ real.means) / real.counts.sum()
        r.append(_unit(h - centre) @ _unit(real.means - centre).T)
    return jnp.stack(r).var(axis=0).mean(axis=-1)


def class_mean(seen: Seen) -> jax.Array:
    """Class means matched through the auxiliaries, mean over m and classes, equal for all images [B].

        L = mean_m mean_c | mean_{x_j in S_c} h_m(x_j) - mu_mc |^2 / s_m^2

    DM's distance with trained networks and the mean of all real images; s_m is the root mean squared distance of a real
    embedding from the mean, so that networks of other widths and scales count alike. Classes that no image of the step
    has are left out.

    Args:
      seen: all images of the step, with the real side.
    """
    own = jax.nn.one_hot(seen.labels, seen.logits.shape[-1])
    held = own.sum(axis=0)  # [K]
    distances = []
    for h, real in _beside_real(seen):
        mean = own.T @ h / jnp.maximum(held, 1)[:, None]
        of_class = ((mean - real.means) ** 2).sum(axis=-1) / (real.spread**2 + _SMALL)
        distances.append((of_class * (held > 0)).sum() / (held > 0).sum())
    return jnp.full(len(seen.labels), jnp.stack(distances).mean())


def class_var(seen: Seen) -> jax.Array:
    """Class variances matched through the auxiliaries, mean over m and classes, equal for all images [B].

        L = 1/C sum_c |sd_j{h_m(x_j) : y_j = c} - sd_mc|^2 / s_m^2,   sd over images, in each of the D_m dimensions

    Beside ``class_mean``, which knows nothing of how images of a class differ: the two together are the squared
    2-Wasserstein distance of normal distributions with diagonal covariances, of the set's class and the real one.
    Compared as roots, so that both have one unit and a dimension that moves much does not drown the others. The set's
    variance is that of its images as they are (divided by their number): networks will train on these and no others.
    Classes of fewer than two images of the step say nothing and are left out; at 1 image per class that is all of them.

    Args:
      seen: all images of the step, with the real side.
    """
    own = jax.nn.one_hot(seen.labels, seen.logits.shape[-1])
    held = own.sum(axis=0)  # [K]
    several = held > 1
    distances = []
    for h, real in _beside_real(seen):
        assert real.variances is not None  # ``equip`` measures them
        mean = own.T @ h / jnp.maximum(held, 1)[:, None]
        variance = own.T @ (h - own @ mean) ** 2 / jnp.maximum(held, 1)[:, None]
        # Under the root on both sides: where all images are alike a root has no gradient, and the value stays exact.
        roots = jnp.sqrt(variance + _SMALL) - jnp.sqrt(real.variances + _SMALL)
        of_class = (roots**2).sum(axis=-1) / (real.spread**2 + _SMALL)
        distances.append((of_class * several).sum() / jnp.maximum(several.sum(), 1))
    return jnp.full(len(seen.labels), jnp.stack(distances).mean())


def var_real(seen: Seen) -> jax.Array:
    """Maps pulled to those of real images, 1/(HW) sum_ij 1/M sum_m (t_my,ij - c_m,ij)^2 [B]: L_var with t for the mean.

    t_mc is the mean map that network m makes of the real training images of class c. It is no map of the set, so dead
    or constant maps, which agree with each other, do not agree with it; and it does not move as the set does.

    Args:
      seen: what the networks see, with maps and the mean maps of real images.
    """
    assert seen.maps is not None
    return ((_own_real_maps(seen) - seen.maps) ** 2).mean(axis=(0, 2, 3))


def pos_real(seen: Seen) -> jax.Array:
    """L_pos (Jaccard) of each map with that of real images, mean over m [B]; t_mc as in ``var_real``.

        L = 1/M sum_m (1 - sum_ij min(c_m, t_my) / (sum_ij max(c_m, t_my) + eps))

    Args:
      seen: what the networks see, with maps and the mean maps of real images.
    """
    assert seen.maps is not None
    pairs = jnp.stack([seen.maps, _own_real_maps(seen)])  # [2, M, B, H, W]
    return jax.vmap(lambda pair: positivity(pair, seen.logits, seen.labels), in_axes=1)(pairs).mean(axis=0)


def var_shuffled(seen: Seen) -> jax.Array:
    """L_var [B] of maps of different images: 1/(HW) sum_ij 1/M sum_m (mean_m c_m(x_p) - c_m(x_p))^2, p = pi_m(i).

    What is left if it does not matter that the networks look at one image.

    Args:
      seen: all images of the step, with maps and draws.
    """
    return variance(_shuffled(seen))


def pos_shuffled(seen: Seen) -> jax.Array:
    """L_pos (Jaccard) [B] of maps of different images, as ``var_shuffled``.

    Args:
      seen: all images of the step, with maps and draws.
    """
    return positivity(_shuffled(seen), seen.logits, seen.labels)


def var_untrained(seen: Seen) -> jax.Array:
    """L_var [B] of the maps of the same networks with random weights, which know nothing of the classes.

    Args:
      seen: what the networks see, with the untrained maps.
    """
    assert seen.untrained is not None
    return variance(seen.untrained)


def pos_untrained(seen: Seen) -> jax.Array:
    """L_pos (Jaccard) [B] of the maps of the same networks with random weights.

    Args:
      seen: what the networks see, with the untrained maps.
    """
    assert seen.untrained is not None
    return positivity(seen.untrained, seen.logits, seen.labels)


def mask(seen: Seen) -> jax.Array:
    """Maps pulled to a random mask, 1/(HW) sum_ij 1/M sum_m (r_ij - c_m,ij)^2 [B]: L_var with r for the mean map.

    r is the high area 1[c >= 0.5] of one network's map, drawn anew for each image and step and moved around the torus
    by a random shift: the area and the shape of a map, at a place that no network looks at.

    Args:
      seen: what the networks see, with maps and draws.
    """
    assert seen.maps is not None and seen.draws is not None
    chex.assert_rank(seen.maps, 4)
    height, width = seen.maps.shape[2:]

    def moved(draw: jax.Array, maps: jax.Array) -> jax.Array:  # [M, H, W] -> [H, W]
        network, down, right = jax.random.randint(jax.random.key(draw), (3,), 0, jnp.array([len(maps), height, width]))
        return jnp.roll(maps[network] >= 0.5, (down, right), axis=(0, 1)).astype(maps.dtype)

    r = jax.vmap(moved, in_axes=(0, 1))(seen.draws, seen.maps)  # constant: a comparison has no gradient
    return ((r[None] - seen.maps) ** 2).mean(axis=(0, 2, 3))


def _shuffled(seen: Seen) -> jax.Array:
    """Maps [M, B, H, W] whose rows no longer belong together: network m's are in an order of its own, pi_m."""
    assert seen.maps is not None and seen.draws is not None
    images = jnp.arange(len(seen.labels))
    # The first network keeps its order: images have one another's maps from the second on.
    each = jax.random.split(jax.random.key(seen.draws[0]), len(seen.maps))
    orders = [images, *(jax.random.permutation(key, images) for key in each[1:])]
    return jnp.stack([maps[order] for maps, order in zip(seen.maps, orders, strict=True)])


def _own_real_maps(seen: Seen) -> jax.Array:
    """The mean map of the real images of each image's class, by each network: [M, B, H, W]."""
    assert seen.real_maps is not None
    chex.assert_rank(seen.real_maps, 4)
    return seen.real_maps[:, seen.labels]


def _beside_real(seen: Seen) -> list:
    assert seen.real is not None  # the terms need it (see ``CONTROLS``)
    chex.assert_equal(len(seen.real), len(seen.embeddings))
    return list(zip(seen.embeddings, seen.real, strict=True))


def _unit(h: jax.Array) -> jax.Array:
    # The small number stands under the root: at 0 a norm has no gradient.
    return h / jnp.sqrt((h**2).sum(axis=-1, keepdims=True) + _SMALL)


CONTROLS: dict[str, Term] = {
    "ce": Term("ce", ce, needs=()),
    "cos": Term("cos", cos, needs=("real",), joint=True),
    "logit_var": Term("logit_var", logit_var, needs=(), compares=True),
    "embedding_var": Term("embedding_var", embedding_var, needs=("real",), compares=True),
    "class_mean": Term("class_mean", class_mean, needs=("real",), joint=True),
    "class_var": Term("class_var", class_var, needs=("real",), joint=True),
    "var_shuffled": Term("var_shuffled", var_shuffled, needs=("maps", "draws"), compares=True, joint=True),
    "pos_shuffled": Term("pos_shuffled", pos_shuffled, needs=("maps", "draws"), compares=True, joint=True),
    "var_untrained": Term("var_untrained", var_untrained, needs=("untrained",), compares=True),
    "pos_untrained": Term("pos_untrained", pos_untrained, needs=("untrained",), compares=True),
    "mask": Term("mask", mask, needs=("maps", "draws")),
    "var_real": Term("var_real", var_real, needs=("maps", "real_maps")),
    "pos_real": Term("pos_real", pos_real, needs=("maps", "real_maps")),
}
"""The controls by name; ``TERMS`` has them too."""
TERMS.update(CONTROLS)
