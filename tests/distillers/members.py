"""Every distillation method on a data set of 34 pictures, with networks of 4 channels and two frozen ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import data, distillers, features, generators, invariant, zoo
from metadd_jax.structs import SyntheticSet

SHAPE = (8, 8, 1)
COUNTS = (20, 5, 9)  # one class is smaller than the batches of 8
TX = optax.sgd(0.1, momentum=0.5)
IPC = ((2, 2, 2), (1, 3, 2))  # what members have, and those whose classes differ
PACKED = 4  # images of a class that factor 2 packs into one
SMALL_VIEWS = "flip"  # few ops compile fast; all of them are tested in test_augment


def tiny():
    """34 images of 3 classes, and 7 to test on."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), COUNTS))
    # Classes differ in brightness, so that there is something to match.
    images = (rng.integers(0, 120, (len(labels), *SHAPE)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays("tiny", images, labels, images[:7], labels[:7])


def make_net(spec):
    return zoo.parse(spec, num_classes=3, image_shape=SHAPE)


def auxiliaries(dataset):
    nets = [make_net("convnet:width=4,depth=1"), make_net("convnet_bn:width=6,depth=1")]
    return [
        features.freeze(net, jax.jit(net.init)(jax.random.key(seed)), dataset)
        for seed, net in enumerate(nets, start=10)
    ]


def quadratic(start, target):
    """A base method that pulls towards ``target`` [6, H, W, C], two images a class: its gradient is x - target."""

    def loss(key, synthetic, aux, batch, frozen, *, axis_name=None):
        return 0.5 * jnp.sum((synthetic["images"] - target) ** 2), (aux, {})

    return distillers.Distiller(
        name="quadratic",
        init=lambda key, dataset: ({"images": jnp.asarray(start)}, ()),
        sample=lambda key, data, step, *, axis_name=None: (),
        loss=loss,
        refresh=lambda key, synthetic, aux, step, frozen: aux,
        decode=lambda synthetic, aux, frozen: SyntheticSet(images=synthetic["images"], labels=jnp.arange(6) // 2),
    )


def energy(seen):
    """Mean square of each image: the gradient of its mean over B images is 2 x / (B H W C)."""
    return jnp.square(seen.images).mean(axis=(1, 2, 3))


def make(name, auxiliaries, dataset):
    """The method of this name and its optimiser."""
    made = MEMBERS[name](auxiliaries, dataset)
    # A method whose parameters want an optimiser of their own comes with it.
    return made if type(made) is tuple else (made, TX)


def pool():
    return distillers.networks.pool([make_net("convnet:width=4,depth=1"), make_net("mlp:width=4")])


def modelpool(**settings):
    """The main network first and now and then, else one of 16 ConvNets as one program."""
    words = {"width": (4, 8), "depth": (1, 2), "activation": ("relu", "swish"), "norm": ("instance", "layer")}
    net = make_net("convnet:width=4,depth=1")
    return distillers.networks.convnets(net, main=0.1, warmup=1, pooling=("avg",), **{**words, **settings})


def over_two(method, balance="balanced"):
    return distillers.match_all(
        [method(make_net(spec)) for spec in ("convnet:width=4,depth=1", "mlp:width=4")], balance=balance
    )


def base(net="convnet:width=4,depth=1", **settings):
    net = make_net(net) if isinstance(net, str) else net
    return distillers.dm(net, **{"ipc": 2, "batch_size": 8, "augmentation": SMALL_VIEWS} | settings)


def packed(over=None):
    return distillers.parameterise(over or base(ipc=PACKED), distillers.factor(2), micro_batch=2)


def nets_of_sines(ipc=3):
    siren = generators.Siren(SHAPE, width=3, depth=2, fit_steps=40, fit_lr=0.01)
    return distillers.parameterise(base(ipc=ipc), siren, micro_batch=2), optax.adam(5e-3)


def decoded_styles(ipc=2):
    decoder = generators.Decoder(SHAPE, 3, width=1, z_dim=4, w_dim=6)
    made = generators.Styles(generator=decoder, weights="random", fit_steps=4)
    return distillers.parameterise(base(ipc=ipc), made), optax.adam(0.02)


def matching(method, net="convnet:width=4,depth=1", **settings):
    net = make_net(net) if isinstance(net, str) else net
    return method(net, **{"ipc": 2, "batch_size": 8, "outer": 2, "inner": 2} | settings)


def styles(dataset, over=None, tx=TX):
    """A GLaD-style prior over a generator of three layers and two channels, and its two learning rates."""
    sizes = {"resolution": 8, "layers": 3, "channel_base": 16, "channel_max": 2, "w_dim": 3, "z_dim": 3, "channels": 1}
    generator = generators.Generator(**sizes)
    prior = generators.stylegan(generator, generator.init(jax.random.key(4)), dataset, layer=1, micro_batch=2)
    return distillers.parameterise(over or base(), prior), distillers.with_rates(tx, prior)


def wrapped_styles(auxiliaries, dataset):
    method, tx = styles(dataset)
    return wrapped(auxiliaries, over=method, kl=0.0), tx


def wrapped(auxiliaries, over=None, **settings):
    usual = {"views": SMALL_VIEWS, "calibration_steps": 2, "kl": 1.0, "ai": 0.3, "pos": 0.1, "var": 0.1}
    config = invariant.InvariantConfig(**usual | settings)
    return distillers.metadd(over or base(), auxiliaries, reference=auxiliaries[0], config=config)


def controlled(auxiliaries, dataset):
    """Terms that draw, that see all images at once, that compare with the real side and with untrained twins."""
    terms = {"cos": 0.1, "class_mean": 0.1, "var_shuffled": 0.1, "var_untrained": 0.1, "mask": 0.1}
    equipped = invariant.equip(auxiliaries, dataset, [invariant.TERMS[name] for name in terms])
    return distillers.penalise(base(), equipped, terms, views=SMALL_VIEWS, calibration_steps=2)


def led(auxiliaries, dataset):
    """Terms that compare with real images, a base gradient that is weighed, an added one that is projected."""
    terms = {"class_var": 0.3, "var_real": 0.3, "pos_real": 0.3}
    equipped = invariant.equip(auxiliaries, dataset, [invariant.TERMS[name] for name in terms])
    settings = {"views": SMALL_VIEWS, "calibration_steps": 2, "focus": 0.5, "project": "image"}
    return distillers.penalise(base(), equipped, terms, **settings)


def drawn(auxiliaries, dataset):
    """Two of three networks of other widths at each step."""
    net = make_net("convnet:width=5,depth=1")
    three = [*auxiliaries, features.freeze(net, net.init(jax.random.key(12)), dataset)]
    terms = {"ai": 0.3, "class_mean": 0.3, "var": 0.1}
    equipped = invariant.equip(three, dataset, [invariant.TERMS[name] for name in terms])
    return distillers.penalise(base(), equipped, terms, views=SMALL_VIEWS, calibration_steps=2, drawn=2)


def recover(**settings):
    teacher = make_net("convnet_bn:width=4,depth=1")
    settings = {"ipc": 2, "roll": (0, 2), "group_size": 2} | settings
    given = teacher.init(jax.random.key(1))
    if "committee" in settings:
        given = (given, *(make_net(spec).init(jax.random.key(2)) for spec in settings["committee"]))
    method = distillers.sre2l(teacher, given, **settings)
    return method, distillers.recover_optimiser(0.1, 10, [0.3], [0.2])


COMMITTEE = ("convnet_bn:width=6,depth=1",)


def wrapped_recover(auxiliaries, **settings):
    method, tx = recover(crop=False, **settings)
    config = invariant.InvariantConfig(views=SMALL_VIEWS, calibration_steps=1, kl=0.0, pos=0.1, var=0.1)
    return distillers.metadd(method, auxiliaries, config=config), tx


def with_vit(auxiliaries, dataset):
    vit = make_net("vit:width=8,depth=1,heads=2,patch=4")
    cam = features.CamConfig(transformer_method="attention")
    extra = features.freeze(vit, vit.init(jax.random.key(3)), dataset)
    return wrapped([auxiliaries[0], extra], weighting="raw", subset=3, kl=0.0, cam=cam)


def trajectories(method, **settings):
    net = make_net("mlp:width=8")
    walk = np.cumsum(np.random.default_rng(0).normal(0, 0.1, (3, 4, net.num_params())), axis=1)
    settings = {"ipc": 2, "syn_steps": 3, "expert_epochs": 2, "max_start_epoch": 2, "batch_syn": 4} | settings
    return method(net, walk.astype(np.float32), augmentation=SMALL_VIEWS, **settings)


def idc(auxiliaries, dataset, **settings):
    net = make_net("convnet:width=4,depth=1")
    settings = {
        "batch_size": 8,
        "inner": 3,
        "real_images": 12,
        "augmentation": SMALL_VIEWS,
        "distance": "l1",
        "real_augmentation": "none",
    } | settings
    record = distillers.IDC(**{name: value for name, value in settings.items() if name != "ipc"})
    method = distillers.idc(net, ipc=settings.get("ipc", 2), settings=record)
    return method, record.optimiser(0.05, 0.5, 1, dataset)


TRAJECTORY_TX = distillers.trajectory_optimiser(1.0, 1e-5, lr_teacher=0.01)


def aligned(record=distillers.DATM, **settings):
    """DATM: a window that grows within the steps of the suite; its threshold skips no step unless asked to."""
    settings = record(first_upper=1, expansion_end=2, threshold=100.0, **settings)
    return trajectories(distillers.datm, settings=settings), settings.optimiser(1.0, 0.5, 4, None)


def ncfm(**settings):
    net = make_net("convnet:width=4,depth=1")
    pool = np.random.default_rng(0).normal(0, 0.2, (3, 2, net.num_params())).astype(np.float32)
    settings = {"ipc": 2, "batch_size": 8, "frequencies": 16} | settings
    return distillers.ncfm(net, pool, **settings), distillers.ncfm_optimiser(0.01, [0.3], [0.2])


def counts(name):
    """Images of each class in the set of this member."""
    return (PACKED,) * 3 if "factor 2" in name else IPC["another ipc" in name]


MEMBERS = {
    "dm": lambda auxiliaries, dataset: base(),
    "dm two classes at once, from noise": lambda a, d: base(class_batch=2, init="noise", augmentation="none"),
    "dm batch norm": lambda a, d: base("convnet_bn:width=4,depth=1"),
    "dm, another ipc in each class": lambda a, d: base("convnet_bn:width=4,depth=1", ipc=IPC[1]),
    "dc, another ipc in each class": lambda a, d: matching(distillers.dc, class_batch=2, ipc=IPC[1]),
    "dm, factor 2": lambda a, d: packed(),
    "dm, sirens": lambda a, d: nets_of_sines(ipc=IPC[0]),
    "dm, styles": lambda a, d: styles(d),
    "dc, styles": lambda a, d: styles(d, matching(distillers.dc)),
    "dsa, styles": lambda a, d: styles(d, matching(distillers.dsa, augmentation=SMALL_VIEWS)),
    "mtt, styles": lambda a, d: styles(d, trajectories(distillers.mtt), TRAJECTORY_TX),
    "metadd over dm, styles": wrapped_styles,
    "dm, styles of a decoder": lambda a, d: decoded_styles(),
    "dm, a pool": lambda a, d: base(pool()),
    "dc, a pool": lambda a, d: matching(distillers.dc, pool()),
    "dm, ModelPool": lambda a, d: base(modelpool()),
    "dc, ModelPool": lambda a, d: matching(distillers.dc, modelpool()),
    "metadd over dsa, ModelPool": lambda a, d: wrapped(
        a, over=matching(distillers.dsa, modelpool(depth=(1,)), augmentation=SMALL_VIEWS)
    ),
    "dm over two networks": lambda a, d: over_two(base),
    "metadd over dc over two networks": lambda a, d: wrapped(
        a, over=over_two(lambda net: matching(distillers.dc, net), "sum")
    ),
    "metadd over dm, factor 2": lambda a, d: wrapped(a, over=packed()),
    "metadd calibrated, in parts": lambda a, d: wrapped(a, weighting="calibrated", micro_batch=4),
    "controls over dm": controlled,
    "metadd, two of three drawn": drawn,
    "metadd, auxiliaries trained further": lambda a, d: wrapped(a, kl=0.0, further_lr=0.1),
    "leads over dm, focused, without conflict": led,
    "metadd per step": lambda a, d: wrapped(a, weighting="per_step", kl=0.0, ai=0.0),
    "metadd raw, attention, subset": with_vit,
    "dc": lambda a, d: matching(distillers.dc, class_batch=2),
    "dc, running statistics": lambda a, d: matching(distillers.dc, "convnet_bn:width=4,depth=1"),
    "dsa": lambda a, d: matching(distillers.dsa, augmentation=SMALL_VIEWS),
    "idc": idc,
    "metadd over idc, factor 2": lambda a, d: (wrapped(a, over=packed(idc(a, d, ipc=PACKED)[0]), kl=0.0), idc(a, d)[1]),
    "metadd over dsa": lambda a, d: wrapped(a, over=matching(distillers.dsa, augmentation=SMALL_VIEWS), kl=0.0),
    "mtt": lambda a, d: (trajectories(distillers.mtt), TRAJECTORY_TX),
    "tesla, soft labels, raw rate": lambda a, d: (
        trajectories(distillers.tesla, soft_labels=True, raw_lr=True),
        TRAJECTORY_TX,
    ),
    "metadd over mtt": lambda a, d: (wrapped(a, over=trajectories(distillers.mtt)), TRAJECTORY_TX),
    "datm": lambda a, d: aligned(),
    "datm_tesla, hard labels": lambda a, d: aligned(distillers.DATMTesla, soft_labels=False),
    "metadd over datm": lambda a, d: (wrapped(a, over=aligned()[0], kl=0.0), aligned()[1]),
    "sre2l": lambda a, d: recover(),
    "ncfm, another ipc in each class": lambda a, d: ncfm(ipc=IPC[1]),
    "metadd over ncfm": lambda a, d: (wrapped(a, over=ncfm()[0], kl=0.0), ncfm()[1]),
    "ncfm, a trained sampler, calibration left out": lambda a, d: ncfm(sampler="trained", calibration=0.0),
    "metadd around sre2l": lambda a, d: wrapped_recover(a),
    "sre2l, a committee in turn": lambda a, d: recover(committee=COMMITTEE, weighting="round_robin", crop=False),
    "metadd around sre2l, a committee": lambda a, d: wrapped_recover(
        a, committee=COMMITTEE, weighting="prior", priors=(60.0, 62.0)
    ),
}
