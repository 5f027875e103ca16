"""Every option of the main job, with its unit and its default (the embedded digits)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from metadd_jax import parallel
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, distances, gradient_matching
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import SEEDS, Each, OneOf, Ordered, Real, Text, Whole

MATCHING, TRAJECTORIES = ("dm", "dc", "dsa"), ("mtt", "tesla", "tesla_code")
METHODS = (*MATCHING, *TRAJECTORIES, "sre2l")
# How judged networks train; those of sre2l take labels from its teacher.
EVALUATIONS = (
    "short", "dc", "sre2l_cifar", "sre2l_cifar_code", "sre2l_tiny", "sre2l_tiny_ddranking", "sre2l_imagenet",
)  # fmt: skip
# How --help arranges the options; a method's own follow.
GROUPS = {
    "the data": (
        "dataset", "data_dir", "cache_dir", "image_size", "zca", "train_per_class", "validation_fraction",
        "evaluate_on",
    ),
    "the distilled sets": (
        "method", "wrapped", "ipc", "ipc_per_class", "short_class", "backbone", "seen", "steps", "image_lr",
        "image_momentum", "batch_size", "init", "augmentation", "class_batch", "micro_batch", "distill_seeds",
        "first_seed", "variants",
    ),
    "how they are judged": (
        "unseen", "train_seeds", "eval_recipe", "eval_epochs", "eval_augmentation", "pretrain_epochs",
        "pretrain_augmentation", "at_once",
    ),
    "the run": (
        "run_dir", "overwrite", "plan", "plugin", "chunk", "save_every", "device_mode", "stream_per_class",
        "coordinator", "num_processes", "process_id",
    ),
}  # fmt: skip
# What --help shows; --help-all shows the others too.
FIRST = frozenset({
    "dataset", "data_dir", "image_size",
    "method", "wrapped", "ipc", "backbone", "seen", "steps", "image_lr", "distill_seeds", "variants",
    "unseen", "train_seeds", "eval_recipe", "eval_epochs",
    "run_dir", "overwrite", "plan", "plugin",
    "metadd.ai", "metadd.pos", "metadd.var", "metadd.weighting",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """What DC and DSA have beside the options of all methods.

    Attributes:
      outer: matchings under one network; 0 for the published number of this ipc.
      inner: epochs that the network trains on the set between two matchings; 0 for the published number.
      distance: "ours" (row-wise cosine), "mse" or "cos".
      batch_norm: statistics of batch-norm networks: "improved" or "published".
    """

    outer: Annotated[int, Whole(0)] = 0
    inner: Annotated[int, Whole(0)] = 0
    distance: Annotated[str, OneOf(distances.DISTANCES)] = "ours"
    batch_norm: Annotated[str, OneOf(gradient_matching.BATCH_NORMS)] = "improved"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryMatching:
    """What MTT and TESLA have beside the options of all methods.

    Attributes:
      experts: networks trained on the real data.
      epochs: epochs of an expert.
      at_once: experts that train together; less needs less memory.
      half: store the steps between an expert's snapshots in half precision.
      syn_steps: steps of the student on the synthetic images.
      expert_epochs: how far the target lies ahead of the start, in epochs.
      max_start_epoch: students start at epochs 0 to this less 1.
      lr_teacher: the student's step size before it is learned.
      lr_lr: learning rate of the student's step size.
      batch_syn: synthetic images of one student step; 0 for all.
      raw_lr: learn the step size itself, as published, and not its logarithm, which keeps it positive.
      checkpoint: compute student steps again in the backward pass: less memory, more time (MTT).
      soft_labels: the expert labels the images anew at every step (TESLA).
    """

    experts: Annotated[int, Whole(1)] = 10
    epochs: Annotated[int, Whole(1)] = 10
    at_once: Annotated[int, Whole(1)] = 5
    half: bool = False
    syn_steps: Annotated[int, Whole(1)] = 10
    expert_epochs: Annotated[int, Whole(1)] = 2
    max_start_epoch: Annotated[int, Whole(1)] = 5
    lr_teacher: Annotated[float, Real(0, above=True)] = 0.01
    lr_lr: Annotated[float, Real(0)] = 1e-5
    batch_syn: Annotated[int, Whole(0)] = 0
    raw_lr: bool = False
    checkpoint: bool = True
    soft_labels: bool = False

    @property
    def snapshots(self) -> int:
        """How many of an expert's snapshots can be reached: the start, and the epochs up to the last target."""
        return self.max_start_epoch + self.expert_epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeRecover:
    """What SRe2L has beside the options of all methods; its teacher is the backbone.

    Attributes:
      weights: a file of torchvision's weights (.safetensors or .pth) for the teacher; none trains it.
      squeeze: how the teacher is trained: "cifar" or "tiny" (published), or "short" (AdamW, as the auxiliaries).
      squeeze_epochs: passes over the real data; 0 for the published number.
      r_bn: weight of the batch-norm statistics.
      crop: random resized crops of what the teacher sees.
      flip: mirror it with probability 1/2.
      roll: lowest and highest toroidal shift in pixels.
      group_size: most images whose statistics are taken together.
      group_ipc: how many of them are of one class; published is 1.
    """

    weights: Annotated[str | None, Text("methods.check_backbone")] = None
    squeeze: Annotated[str, OneOf(("cifar", "tiny", "short"))] = "cifar"
    squeeze_epochs: Annotated[int, Whole(0)] = 0
    r_bn: Annotated[float, Real(0)] = 0.01
    crop: bool = False
    flip: bool = False
    roll: Annotated[tuple[int, int], Ordered()] = (0, 4)
    group_size: Annotated[int, Whole(1)] = 100
    group_ipc: Annotated[int, Whole(1)] = 1


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
      ipc: images per class.
      ipc_per_class: images of each class in the order of the labels ("1 2 1"), where they differ; in place of ipc.
      short_class: what a class does that has fewer real images than it should start from: "error", "repeat" (its images
        again) or "fewer" (as many as it has). The random and k-means rows follow it; beside sre2l or a start from
        noise, which read no real images, they give as many as there are.
      method: the base method: dm, dc, dsa, mtt, tesla, tesla_code (its published program) or sre2l.
      wrapped: also distil with the base method under MetaDD; False leaves it bare.
      backbone: network that distils, e.g. "convnet:width=32,depth=3"; for sre2l the teacher, with batch norm.
      seen: auxiliary networks that MetaDD looks through.
      unseen: further networks for the table.
      steps: updates of the synthetic images.
      batch_size: real images per class and step (dm, dc, dsa).
      init: what the images start from: "real", "noise", or "auto" (dc: noise, dm and dsa: real).
      image_lr: learning rate of the synthetic images (SGD; sre2l: Adam).
      image_momentum: momentum of the synthetic images (not sre2l).
      augmentation: DSA tokens joined by "_", "none", or "auto" (by data set: digits are not flipped).
      class_batch: classes matched at once (dm, dc, dsa); more makes dm faster on a GPU and needs more memory; 0 for as
        many as half of a device's memory holds (on a CPU one).
      micro_batch: real images of a class that pass a network at once (dm, dc, dsa); 0 for all, on a CPU for 32.
      distill_seeds: sets distilled per method, each from its own seed.
      first_seed: seed of the first set; the others follow (settings are chosen on some seeds and measured on others).
      train_seeds: trainings of each network on each set.
      pretrain_epochs: passes over the real data for the auxiliaries and the whole-data row.
      pretrain_augmentation: DSA tokens for that pre-training, "none", or "auto".
      eval_recipe: how judged networks train: "short" (AdamW, for CPUs), "dc" (the DC family's published protocol; a set
        with a learned step size uses it), or by the labels of the sre2l teacher "sre2l_cifar",
        "sre2l_cifar_code", "sre2l_tiny", "sre2l_tiny_ddranking", "sre2l_imagenet" (docs/methods.md).
      eval_epochs: passes over a distilled set when it is judged ("dc": 300, or 1000 with DSA).
      eval_augmentation: DSA tokens for the judged trainings, "none", "auto", or "dc_" and DC's own tokens; the sre2l
        recipes have views of their own.
      at_once: judged networks that train together on a device; less needs less memory.
      dc: options of dc and dsa.
      mtt: options of mtt and tesla.
      sre2l: options of sre2l.
      metadd: the switches of the architecture-invariant loss.
      variants: further settings of that loss to distil and judge beside it, as changes to ``metadd``: "ai=0.3,kl=0";
        "paper" is the paper's own reading (``InvariantConfig.paper``), "paper,kl=0" changes that.
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
    method: Annotated[str, OneOf(METHODS)] = "dm"
    wrapped: bool = True
    backbone: Annotated[str, Text("common.check_names")] = "convnet:width=16"
    seen: Annotated[tuple[str, ...], Text("common.check_names")] = ("vgg11_bn:width=8", "alexnet:width=8")
    unseen: Annotated[tuple[str, ...], Text("common.check_names")] = ("resnet18:width=4", "lenet", "mlp")
    steps: Annotated[int, Whole(1)] = 200
    batch_size: Annotated[int, Whole(1)] = 64
    init: Annotated[str, OneOf(("auto", *class_images.INITS))] = "auto"
    image_lr: Annotated[float, Real(0, above=True)] = 1.0
    image_momentum: Annotated[float, Real(0, 1, below=True)] = 0.5
    augmentation: Annotated[str, Text("augment.strategy")] = "auto"
    class_batch: Annotated[int, Whole(0)] = 1
    micro_batch: Annotated[int, Whole(0)] = 0
    distill_seeds: Annotated[int, Whole(1)] = 3
    first_seed: Annotated[int, Whole(0, SEEDS - 1)] = 0
    train_seeds: Annotated[int, Whole(1)] = 2
    pretrain_epochs: Annotated[int, Whole(1)] = 12
    pretrain_augmentation: Annotated[str, Text("augment.strategy")] = "auto"
    eval_recipe: Annotated[str, OneOf(EVALUATIONS)] = "short"
    eval_epochs: Annotated[int, Whole(1)] = 100
    eval_augmentation: Annotated[str, Text("methods.evaluation_recipe")] = "auto"
    at_once: Annotated[int, Whole(1)] = 12
    dc: GradientMatching = GradientMatching()
    mtt: TrajectoryMatching = TrajectoryMatching()
    sre2l: SqueezeRecover = SqueezeRecover()
    metadd: InvariantConfig = InvariantConfig(views="auto")
    variants: Annotated[tuple[str, ...], Text("presets.variant")] = ()
    chunk: Annotated[int, Whole(1)] = 25
    save_every: Annotated[int, Whole(1)] = 100
    device_mode: Annotated[str, OneOf(parallel.MODES)] = "auto"
    stream_per_class: Annotated[int | None, Whole(1)] = None
    plan: bool = False
    coordinator: Annotated[str | None, Text("parallel.initialize")] = None
    num_processes: Annotated[int | None, Whole(1)] = 1
    process_id: Annotated[int | None, Whole(0)] = None
    run_dir: Annotated[str | None, Text("files.require_writable")] = None
    overwrite: bool = False
    plugin: Annotated[tuple[str, ...], Text("plugins.load"), Mark.REPEATED] = ()
