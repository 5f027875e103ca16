"""Studies that set MetaDD beside what else can be done, on test images; as data, like those of ``study_rows``."""

from __future__ import annotations

from typing import Any

STUDIES: dict[str, dict[str, Any]] = {}
# What "MetaDD" is in the studies, however the defaults move: all three terms, each calibrated by its own gradient.
OURS = "--metadd.weighting calibrated --metadd.ai 3 --metadd.pos 0.1 --metadd.var 0.1"

# Learning rates where pixels have another meaning: the published ones, but NCFM's, whose 20,000 steps of 0.001 are 200
# of 0.01 here. None was chosen on images of the table.
STUDIES["competitors"] = {
    "about": "MetaDD beside its competitors and controls over DM (CIFAR-10, 10 images per class, CPU size).",
    "options": f"--eval-labels hard {OURS}",
    "rows": {
        "random": "random --no-wrapped",
        "k-means": "kmeans --no-wrapped",
        "DM": "--no-wrapped",
        "DM from k-means": "--no-wrapped --init kmeans",
        "DM + MetaDD (ours)": "",
        "DM from k-means + MetaDD (ours)": "--init kmeans",
        "DM + CE only": "--metadd.pos 0 --metadd.var 0",
        "DM + MetaDD (paper)": "--variants paper",
        "DM + GLaD-style, untrained StyleGAN3-type": "--no-wrapped --parameterisation stylegan --image-lr 10",
        "DM + GLaD-style, StyleGAN3-type trained by us": "--no-wrapped --parameterisation stylegan:weights=trained "
        "--image-lr 10",
        "DM + GLaD-style, untrained decoder": "--no-wrapped --parameterisation decoder:weights=random",
        "DM + GLaD-style, decoder trained by us": "--no-wrapped --parameterisation decoder",
        "DM + ModelPool": "--no-wrapped --pool convnets",
        "DM over two backbones": "--no-wrapped --matched vgg11:width=8",
        "DM, packed 2, as stored (40 images)": "--no-wrapped --parameterisation factor2",
        "DM, packed 2, as images (12, 3 stored)": "--no-wrapped --parameterisation factor2 --ipc 3",
        "DM, 40 images": "--no-wrapped --ipc 40",
        "NCFM": "--no-wrapped --method ncfm --batch-size 64 --frequencies 1024 --experts 4 --epochs 5 --image-lr 0.01",
        "RDED": "--no-wrapped --method rded --steps 1",
    },
    "references": ("DM", "DM from k-means"),
}
STUDIES["competitors_dc"] = {
    "about": "MetaDD beside its competitors and controls over DC (CIFAR-10, 10 images per class, CPU size).",
    # DC's 50 inner steps of 10 rounds would take ten times as long; 60 steps from real images were measured before.
    "options": f"--eval-labels hard --method dc --image-lr 0.1 --steps 60 --chunk 20 --dc.inner 10 --metadd.subset 20 "
    f"--init random {OURS}",
    "rows": {
        "random": "random --no-wrapped",
        "k-means": "kmeans --no-wrapped",
        "DC": "--no-wrapped",
        "DC from k-means": "--no-wrapped --init kmeans",
        "DC + MetaDD (ours)": "",
        "DC + CE only": "--metadd.pos 0 --metadd.var 0",
        "DC + MetaDD (paper)": "--variants paper",
        "DC + GLaD-style, decoder trained by us": "--no-wrapped --parameterisation decoder",
        "DC + ModelPool": "--no-wrapped --pool convnets",
    },
    "references": ("DC",),
}
STUDIES["latents"] = {
    "about": "Where to cut the StyleGAN3-type generator of the GLaD-style rows (f_n behind its first n layers), as "
    "drawn and trained by us, beside pixels, the decoder and one SIREN an image, all of as many images (CIFAR-10, 10 "
    "images per class, CPU size).",
    "options": "--eval-labels hard --no-wrapped",
    "rows": {
        "pixels": "",
        # Of our generator's four layers: all of it, half (unsaid, as in "competitors"), the toRGB layer alone.
        "as drawn, n = 0": "--parameterisation stylegan:layer=0 --image-lr 10",
        "as drawn, n = 2": "--parameterisation stylegan --image-lr 10",
        "as drawn, n = 4": "--parameterisation stylegan:layer=4 --image-lr 10",
        "trained by us, n = 0": "--parameterisation stylegan:weights=trained,layer=0 --image-lr 10",
        "trained by us, n = 2": "--parameterisation stylegan:weights=trained --image-lr 10",
        "trained by us, n = 4": "--parameterisation stylegan:weights=trained,layer=4 --image-lr 10",
        "decoder trained by us": "--parameterisation decoder",
        # 5,000 updates of the fit, as published, are meant for a GPU.
        "SIREN": "--parameterisation siren:fill=False,fit_steps=500,fit_lr=5e-3",
    },
    "references": ("pixels",),
}
STUDIES["soft"] = {
    "about": "Sets under the labels of one teacher, real images among them (CIFAR-10, 10 images per class, CPU size).",
    "options": "--no-wrapped --backbone resnet18_bn:width=8 --seen vgg11_bn:width=8 --unseen convnet:width=32 lenet "
    "mlp --eval-labels teacher:resnet18_bn:width=8",
    "rows": {
        "random": "random",
        "k-means": "kmeans",
        "RDED": "--method rded --steps 1",
        "SRe2L": "--method sre2l --steps 300 --image-lr 0.25 --sre2l.squeeze short",
        # Three teachers pass in every update, or one in turn: 300 passes in each of the three rows.
        "SRe2L, groups of 10": "--method sre2l --steps 300 --image-lr 0.25 --sre2l.squeeze short --sre2l.group-ipc 10 "
        "--sre2l.r-bn 1",
        "SRe2L, groups of 10, mean of 3": "--method sre2l --steps 100 --image-lr 0.25 --sre2l.squeeze short "
        "--sre2l.group-ipc 10 --sre2l.r-bn 1 --sre2l.committee vgg11_bn:width=8 convnet_bn:width=32",
        "SRe2L, groups of 10, 3 in turn": "--method sre2l --steps 300 --image-lr 0.25 --sre2l.squeeze short "
        "--sre2l.group-ipc 10 --sre2l.r-bn 1 --sre2l.committee vgg11_bn:width=8 convnet_bn:width=32 "
        "--sre2l.weighting round_robin",
    },
    "references": ("random",),
}
