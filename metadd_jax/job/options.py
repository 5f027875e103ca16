"""Every option of the main job, with its unit and its default (the embedded digits)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from metadd_jax import distillers, parallel, ranges
from metadd_jax.data import sampling
from metadd_jax.distillers import Method, class_images
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job import logs
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import SEEDS, Each, Named, OneOf, Real, Text, Texts, Whole
from metadd_jax.training import recipes

# What differs from the published settings on the embedded digits, which the defaults are for.
_DIGITS: dict[type[Method], dict[str, Any]] = {
    class_images.ClassWise: {"batch_size": 64},
    distillers.SqueezeRecover: {"crop": False, "flip": False, "roll": (0, 4)},
}
# How --help arranges the options; a method's own follow.
GROUPS = {
    "the data": (
        "dataset", "data_dir", "cache_dir", "image_size", "zca", "train_per_class", "validation_fraction",
        "evaluate_on",
    ),
    "the distilled sets": (
        "method", "wrapped", "ipc", "ipc_per_class", "short_class", "parameterisation", "backbone", "pool", "pool_main",
        "pool_warmup", "matched", "balance", "seen", "seen_epochs", "seen_data", "steps",
        "image_lr", "image_momentum", "distill_seeds", "first_seed", "variants",
    ),
    "how they are judged": (
        "unseen", "train_seeds", "eval_recipe", "eval_labels", "eval_epochs", "eval_batch", "eval_augmentation",
        "eval_kd", "eval_same_compute",
        "pretrain_epochs",
        "pretrain_augmentation", "at_once",
    ),
    "the run": (
        "run_dir", "overwrite", "plan", "plugin", "time_limit", "log_to", "chunk", "save_every", "device_mode",
        "stream_per_class", "coordinator", "num_processes", "process_id",
    ),
}  # fmt: skip
# What --help shows; --help-all shows the others too.
FIRST = frozenset({
    "dataset", "data_dir", "image_size",
    "method", "wrapped", "ipc", "backbone", "seen", "steps", "image_lr", "distill_seeds", "variants",
    "unseen", "train_seeds", "eval_recipe", "eval_labels", "eval_epochs",
    "run_dir", "overwrite", "plan", "plugin", "time_limit",
    "metadd.ai", "metadd.pos", "metadd.var", "metadd.weighting",
})  # fmt: skip


# A method's own that trade memory for time, or repeat a published program's oddity: --help-all shows them.
LATER = frozenset(
    f"own.{name}"
    for name in (
        "at_once", "buffers", "checkpoint", "class_batch", "first_images", "group_ipc", "half", "micro_batch",
        "patience", "raw_lr", "sampler_lr",
    )
)  # fmt: skip


def settings_of(method: str) -> Method:
    """The settings of a method by default, smaller than published where a few digits are distilled.

    Raises:
      ValueError: if there is no such method.
    """
    # By the record's type and not by the name: a plugin's method derived from one of these gets the same.
    own = distillers.get(method)
    for kind, values in _DIGITS.items():
        if isinstance(own, kind):
            own = dataclasses.replace(own, **values)
    return own


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil a data set with and without MetaDD and judge both across architectures.

    Attributes:
      dataset: "mnist5k" (embedded), a TFDS name, an .npz file, or a folder with train/CLASS/ and test/CLASS/.
      data_dir: where prepared TFDS data lies (TFDS's default: ~/tensorflow_datasets).
      cache_dir: where decoded images and trained networks are kept (default: ~/.cache/metadd_jax).
      image_size: side in pixels to which pictures of a folder or a TFDS set are brought; None leaves them.
      zca: whiten the images, as MTT does.
      train_per_class: most training images of a class to use, for quick runs on a large set; None uses all.
      validation_fraction: share of the training images set aside for choosing settings.
      evaluate_on: "test", or "validation" for choosing settings.
      ipc: images per class that are stored.
      ipc_per_class: images of each class in the order of the labels ("1 2 1"), where they differ; in place of ipc.
      short_class: what a class does that has fewer real images than it should start from: "error", "repeat" (its images
        again) or "fewer" (as many as it has). The random and k-means rows follow it; beside sre2l or a start from
        noise, which read no real images, they give as many as there are.
      parameterisation: what is trained: "pixels"; "factor2": each stored image holds four of one class, at half the
        resolution, and networks see those four ("factor:size=3": nine); "siren": each image is a small network of
        sines, as many as the numbers of ipc images hold; "stylegan": styles and a feature
        of a StyleGAN3-type generator (GLaD); "decoder": styles of a small generator trained on the data,
        "decoder:weights=random" of an untrained one; or one of a plugin, with its options as
        "name:option=value,option=value" (docs/methods.md).
      method: the base method (tesla_code is TESLA's published program), or one of a plugin.
      wrapped: also distil with the base method under MetaDD; False leaves it bare.
      backbone: network that distils, e.g. "convnet:width=32,depth=3"; for sre2l the teacher, with batch norm.
      pool: networks of which one is drawn now and then in place of the backbone (ModelPool; dm, dc, dsa): names, or
        "convnets" for ModelPool's 32 ConvNets, "convnets:width=8+16,depth=2+3" for more of them.
      pool_main: probability of the backbone in that draw; None is 0.9, as published.
      pool_warmup: so many draws at the start are of the backbone (dm draws at every step, dc and dsa every ``outer``
        steps); None is 500, as published, but at most half of them.
      matched: further networks that are matched beside the backbone at every step, their losses added (dm, dc, dsa).
      balance: how: "balanced" (gradients of one size in each class, also None), "sum" (as they are) or "normalised"
        (each channel of an image's gradient by its largest; image_lr is then the largest step of a pixel).
      seen: auxiliary networks that MetaDD looks through.
      seen_epochs: passes over the real data of these auxiliaries: each network is one auxiliary for each number, 0 with
        random weights ("1 5": twice as many); none: pretrain_epochs. The rows of the table stay as they are.
      seen_data: what the auxiliaries learn from: another data set of as many classes, or "unused": the training images
        that train_per_class leaves out; None: the data themselves.
      unseen: further networks for the table.
      steps: updates of the synthetic images.
      image_lr: learning rate of the synthetic images (SGD; sre2l: Adam).
      image_momentum: momentum of the synthetic images (not sre2l).
      distill_seeds: sets distilled per method, each from its own seed.
      first_seed: seed of the first set; the others follow (settings are chosen on some seeds and measured on others).
      train_seeds: trainings of each network on each set.
      pretrain_epochs: passes over the real data for the auxiliaries and the whole-data row.
      pretrain_augmentation: DSA tokens for that pre-training, "none", or "auto".
      eval_recipe: how judged networks train: "short" (AdamW, for CPUs), "dc" (the DC family's published protocol; a set
        with a learned step size uses it), or that of a method's own paper (docs/methods.md).
      eval_labels: what every row learns from: "hard", "own" (the set's), "teacher" (the method's), "teacher:NET+NET"
        (one or several, trained on the real data; further forms: docs/methods.md); None: as the recipe's paper.
      eval_epochs: passes over a distilled set when it is judged ("dc", "datm": 300, or 1000 with DSA).
      eval_same_compute: pass so many times less often over a packed set as its stored images give images, as IDC's
        "same compute": every row of the table then trains on as many images.
      eval_batch: images of a batch when a set is judged; None: as the recipe has (rded: by the images per class).
      eval_augmentation: DSA tokens for the judged trainings, "none", "auto", "dc_" and DC's own tokens, or "idc_" and
        IDC's (colour and flip always, one of the others); the sre2l and rded recipes have views of their own.
      eval_kd: judged networks learn from the labels and from the backbone, which trains on the same set first
        (ModelPool's distillation of knowledge); the backbone's own row stays as it is.
      at_once: judged networks that train together on a device; less needs less memory.
      own: the method's own settings.
      metadd: the switches of the architecture-invariant loss.
      variants: further settings of that loss to distil and judge beside it, as changes to ``metadd``: "ai=0.3,kl=0";
        "paper" is the paper's own reading (``InvariantConfig.paper``), "paper,kl=0" changes that;
        "only,ce=3" has that term alone (controls: docs/methods.md).
      chunk: updates per dispatch.
      save_every: updates between checkpoints.
      device_mode: "auto" (pmap on more than one device), "jit", "pmap" or "sharded" (docs/devices.md).
      stream_per_class: random images of a class that are sent to the device per chunk; None keeps all of them there.
      plan: tell what the job will take (FLOPs, memory, hours) and stop; refuses what cannot fit.
      coordinator: "host:port" of process 0, where several processes distil together (docs/devices.md).
      num_processes: how many processes; None asks SLURM, Open MPI or the TPU pod for all three.
      process_id: the number of this one, from 0.
      run_dir: the run's folder (default: runs/PRESET), shared by all processes.
      overwrite: start anew in a folder that holds a run.
      time_limit: work at most so long, "11h", "12m": ends at a checkpoint (docs/long_runs.md).
      log_to: "tensorboard" (files in each set's folder), "wandb" (Weights & Biases) or both, beside metrics.jsonl.
      plugin: a Python file of yours that is read first: the methods, networks, terms and data sets that it registers
        can be named here (repeatable).
    """

    dataset: Annotated[str, Text("data.load")] = "mnist5k"
    data_dir: Annotated[str | None, Text("data.load")] = None
    cache_dir: Annotated[str | None, Text("common.open_cache")] = None
    image_size: Annotated[int | None, Whole(1)] = None
    zca: bool = False
    train_per_class: Annotated[int | None, Whole(1)] = None
    validation_fraction: Annotated[float, Real(0, 1, below=True)] = 0.0
    evaluate_on: Annotated[str, OneOf(("test", "validation"))] = "test"
    ipc: Annotated[int, Whole(1)] = 1
    ipc_per_class: Annotated[tuple[int, ...], Each(Whole(1))] = ()
    short_class: Annotated[str, OneOf(sampling.SHORT_CLASS)] = "error"
    parameterisation: Annotated[str, Text("parameterisations.check")] = "pixels"
    method: Annotated[str, Named(distillers.names)] = "dm"
    wrapped: bool = True
    backbone: Annotated[str, Text("common.check_names")] = "convnet:width=16"
    pool: Annotated[tuple[str, ...], Texts("backbones.check")] = ()
    pool_main: Annotated[float | None, Real(0, 1)] = None
    pool_warmup: Annotated[int | None, Whole(0)] = None
    matched: Annotated[tuple[str, ...], Texts("backbones.check")] = ()
    balance: Annotated[str | None, OneOf(distillers.several.BALANCES)] = None
    seen: Annotated[tuple[str, ...], Texts("common.check_names")] = ("vgg11_bn:width=8", "alexnet:width=8")
    seen_epochs: Annotated[tuple[int, ...], Each(Whole(0))] = ()
    seen_data: Annotated[str | None, Text("seen_data.data_of")] = None
    unseen: Annotated[tuple[str, ...], Texts("common.check_names")] = ("resnet18:width=4", "lenet", "mlp")
    steps: Annotated[int, Whole(1)] = 200
    image_lr: Annotated[float, Real(0, above=True)] = 1.0
    image_momentum: Annotated[float, Real(0, 1, below=True)] = 0.5
    distill_seeds: Annotated[int, Whole(1)] = 3
    first_seed: Annotated[int, Whole(0, SEEDS - 1)] = 0
    train_seeds: Annotated[int, Whole(1)] = 2
    pretrain_epochs: Annotated[int, Whole(1)] = 12
    pretrain_augmentation: Annotated[str, Text("augment.strategy")] = "auto"
    eval_recipe: Annotated[str, OneOf(tuple(recipes.EVALUATIONS))] = "short"
    eval_labels: Annotated[str | None, Text("labels.read")] = None
    eval_epochs: Annotated[int, Whole(1)] = 100
    eval_same_compute: bool = False
    eval_batch: Annotated[int | None, Whole(1)] = None
    eval_augmentation: Annotated[str, Text("recipes.evaluation")] = "auto"
    eval_kd: bool = False
    at_once: Annotated[int, Whole(1)] = 12
    own: Method = dataclasses.field(default_factory=lambda: settings_of("dm"))
    metadd: InvariantConfig = InvariantConfig(views="auto")
    variants: Annotated[tuple[str, ...], Texts("presets.variant")] = ()
    chunk: Annotated[int, Whole(1)] = 25
    save_every: Annotated[int, Whole(1)] = 100
    device_mode: Annotated[str, OneOf(parallel.MODES)] = "auto"
    stream_per_class: Annotated[int | None, Whole(1)] = None
    plan: bool = False
    coordinator: Annotated[str | None, Text("parallel.initialize")] = None
    num_processes: Annotated[int | None, Whole(1)] = 1
    process_id: Annotated[int | None, Whole(0)] = None
    run_dir: Annotated[str | None, Text("files.require_writable")] = None
    time_limit: Annotated[str | None, Text("stopping.seconds_of")] = None
    log_to: Annotated[tuple[str, ...], Each(OneOf(tuple(logs.PACKAGES)))] = ()
    overwrite: bool = False
    plugin: Annotated[tuple[str, ...], Texts("plugins.load"), Mark.REPEATED] = ()

    def __post_init__(self) -> None:
        wanted = type(distillers.get(self.method))
        if type(self.own) is not wanted:
            raise ValueError(
                f"own holds settings of {type(self.own).__name__}, but the method is {self.method}; give "
                f"{wanted.__name__}(...), or change the method by with_method"
            )

    @property
    def learns_apart(self) -> bool:
        """Whether the auxiliaries have a training of their own, apart from the networks of the table."""
        return bool(self.seen_epochs or self.seen_data)

    @property
    def looks(self) -> bool:
        """Whether any set is made by looking through the auxiliaries: under MetaDD, or from what they are sure of."""
        return self.wrapped or self.own.start == "consensus"

    @property
    def auxiliaries(self) -> int:
        """How many networks MetaDD looks through."""
        return len(self.seen) * max(len(self.seen_epochs), 1)

    def option(self, path: str) -> str:
        """How the user writes a field: "own.lr_teacher" is ``--mtt.lr-teacher``."""
        first, dot, rest = path.partition(".")
        return f"--{self.own.group if first == 'own' else first}{dot}{rest}".replace("_", "-")

    def with_method(self, method: str) -> DistillConfig:
        """The same job by another base method; what this one's settings say beside its defaults stays where it can.

        Raises:
          ValueError: if there is no such method.
        """
        # Only what differs from the defaults was said by somebody; a preset's batch size, say,
        # goes along to the new method.
        usual, own = settings_of(self.method), settings_of(method)
        said = {
            name: getattr(self.own, name)
            for name in ranges.field_names(type(usual))
            if getattr(self.own, name) != getattr(usual, name)
        }
        kept = {name: value for name, value in said.items() if name in ranges.field_names(type(own))}
        # A rate that nobody said is the method's own: what suits SGD on DM's loss is no rate of Adam's.
        rate = own.usual_lr if self.image_lr == self.own.usual_lr else self.image_lr
        changed = dataclasses.replace(self, method=method, own=dataclasses.replace(own, **kept), image_lr=rate)
        if not own.trains:
            return dataclasses.replace(changed, steps=1, wrapped=False)
        return changed if self.own.trains else dataclasses.replace(changed, steps=DistillConfig.steps)
