"""Every option of the benchmark, with its unit and its default."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from metadd_jax.ranges import OneOf, Whole

_AUXILIARIES = ("resnet34", "googlenet", "vit", "vgg11")
_TRAINED = ("mlp", "lenet", "alexnet", "vgg11", "resnet18", "resnet18_bn", "resnet34", "resnet50", "googlenet", "vit")
_STEPS = ("dm@1", "dm@10", "dm@50", "dc@10", "dc_inner@10", "mtt@10", "datm@10", "ncfm@10", "sre2l@100")
_LATENTS = ("dm@10", "mtt@10")
_WRAPPED = ("dm@1", "dm@10", "dc@10", "mtt@10", "sre2l@100")
_SCANNED = ("dm@10", "dc@10", "mtt@10", "sre2l@100", "train:convnet@100")
EVERYTHING = (
    *_STEPS,
    "mtt_kept@10",
    *(f"{work}{loss}" for work in _WRAPPED for loss in ("+metadd", "+ce")),
    *(f"{work}+latents" for work in _LATENTS),
    *(f"scan:{work}" for work in _SCANNED),
    "rded@10",
    "evaluate@10",
    *(f"train:convnet@{size}" for size in (100, 256)),
    *(f"train:{network}@100" for network in (*_TRAINED, "swin_t")),
    *_AUXILIARIES,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure compile time, time, FLOPs and memory.

    Attributes:
      works: what to measure: a step of "dm", "dc" (one matching under a new network), "dc_inner" (the same after the
        inner training on the set), "mtt", "mtt_kept" (the activations of all student steps kept, not computed again),
        "datm" (those of "mtt_kept" with labels that are trained), "ncfm" or "sre2l", at SIZE images per class (sre2l:
        images, all of different classes); "rded", all of its selection from "batch_size" real images of a class;
        "train:NETWORK", a training step at batch SIZE; "judge:NETWORK", that network trained from several seeds on
        SIZE images of a class and tested ("evaluate": the backbone); or NETWORK, an auxiliary's part of the invariant
        loss and the gradient to the images. A step with "+latents" trains what "parameterisation" names, with
        "+metadd" it has MetaDD with all three terms around it, with "+ce" as it is by default, with
        "+latents+metadd" both.
      auxiliaries: networks that "+metadd" and "+ce" look through.
      parameterisation: what "+latents" trains in place of pixels, as ``--parameterisation`` of the main job takes it;
        its start is not fitted, and weights that would be trained are random.
      backbone: network that distils and is judged.
      teacher: network of sre2l and rded.
      image_shape: height, width and channels of the images.
      num_classes: number of classes (not of sre2l).
      ipc: images per class where a work does not say.
      batch_size: real images per class and step (dm, dc, ncfm), or to choose from (rded).
      class_batch: classes matched at once.
      augmentation: DSA tokens joined by "_", or "none" (dm, mtt, datm, evaluate, judge); ncfm's are its own.
      inner_epochs: epochs of the inner training; published for 10 images per class: 50.
      syn_steps: student steps of mtt.
      recover_images: images of sre2l where a work does not say.
      train_batch: batch of "train:" where a work does not say.
      eval_epochs: passes over the set in an evaluation; published are 301 or 1001.
      eval_seeds: networks of an evaluation.
      test_per_class: test images per class of an evaluation, fewer than published for its fewer epochs.
      subset: synthetic images that the invariant loss looks at per step; None for all.
      micro_batch: synthetic images that pass an auxiliary at once; None for all, on a CPU for 10.
      checkpoint: whether an auxiliary's forward pass is computed again for the gradient (less memory, more time).
      chunk: steps in a scan.
      ways: "own", the programs of this device; "h200", those of an NVIDIA H200, or "v5e", of a TPU v5e, which XLA
        compiles without one (``pip install "jax[cuda12]"`` or ``"jax[tpu]"``): a GPU's kernels, the memory of both, no
        times.
      repeats: timed calls, after one that is not timed.
      peak_side: side of the square matrices whose product gives the machine's peak.
      sweep: FIELD=N,N,...: every work at each of these values of a setting above ("ipc", "num_classes", ...; for
        "auxiliaries" the first N of them), and a straight line through the costs.
      cache: a folder for compiled programs, to see what a second start compiles; none by default.
      torch: the same works as a PyTorch program beside ours, and the ratio.
      torch_python: interpreter that has PyTorch; none takes this one.
      torch_device: where PyTorch computes, "cpu" or "cuda".
      out: file for the results as JSON; the table goes beside it as Markdown.
    """

    works: tuple[str, ...] = EVERYTHING
    auxiliaries: tuple[str, ...] = _AUXILIARIES
    parameterisation: str = "decoder"
    backbone: str = "convnet"
    teacher: str = "resnet18_bn"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: Annotated[int, Whole(1)] = 10
    ipc: Annotated[int, Whole(1)] = 10
    batch_size: Annotated[int, Whole(1)] = 256
    class_batch: Annotated[int, Whole(1)] = 1
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    inner_epochs: Annotated[int, Whole(1)] = 50
    syn_steps: Annotated[int, Whole(1)] = 30
    recover_images: Annotated[int, Whole(1)] = 100
    train_batch: Annotated[int, Whole(1)] = 100
    eval_epochs: Annotated[int, Whole(1)] = 20
    eval_seeds: Annotated[int, Whole(1)] = 5
    test_per_class: Annotated[int, Whole(1)] = 20
    subset: Annotated[int | None, Whole(1)] = None
    micro_batch: Annotated[int | None, Whole(1)] = None
    checkpoint: bool = False
    chunk: Annotated[int, Whole(1)] = 3
    ways: Annotated[str, OneOf(("own", "h200", "v5e"))] = "own"
    repeats: Annotated[int, Whole(1)] = 5
    peak_side: Annotated[int, Whole(1)] = 2048
    sweep: str | None = None
    cache: str | None = None
    torch: bool = False
    torch_python: str | None = None
    torch_device: str = "cpu"
    out: str | None = None
