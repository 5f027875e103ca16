"""The laboratory's studies, as data: the rows of each and the options that make them (``studies.Study``)."""

from __future__ import annotations

from typing import Any

from metadd_jax.invariant import CONTROLS
from metadd_jax.job import study_tables

# CIFAR-10 leaves 40,000 training images unused at CPU size: 500 of a class are held out for choosing settings, 1,000
# train. Every set starts from k-means images, since a better start earns as much as MetaDD's loss and for nothing;
# auxiliaries have batch norm, without which their maps are hardly better than those of random weights (docs/cams.md).
_AS_JUDGED = "--train-per-class 1500 --validation-fraction 0.3334 --init kmeans --eval-labels hard --pretrain-epochs 30"
_HELD_OUT = f"{_AS_JUDGED} {study_tables.OURS}"
_THREE = "--seen vgg11_bn:width=8 alexnet:width=8 resnet18_bn:width=8"
_UNSEEN = "--unseen resnet18:width=4 lenet mlp vit:width=48,depth=3"
_OVER_DM = f"{_HELD_OUT} {_THREE} {_UNSEEN}"
_REAL = {"random": "random --no-wrapped", "k-means": "kmeans --no-wrapped"}
_DM = {"DM": "--no-wrapped"}
_CE = "--metadd.pos 0 --metadd.var 0"  # cross-entropy alone, at rho 3
_MAPS = "--metadd.ai 0 --metadd.pos {0} --metadd.var {0}"
_FAMILIES = {
    "VGG": "vgg11_bn:width=8",
    "AlexNet": "alexnet:width=8",
    "ResNet": "resnet18_bn:width=8",
    "GoogLeNet": "googlenet:width=4,norm=batch",
    "ViT": "vit:width=48,depth=3",
}
# None of the five families; the same in every row, so that rows of other auxiliaries are compared on them.
_OF_NO_FAMILY = ("lenet", "mlp", "swin_t:width=24,depths=2-2,patch=4")
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)

STUDIES: dict[str, dict[str, Any]] = dict(study_tables.STUDIES)

_AI = {
    "": "--metadd.ai 0",
    "CE": "",
    "CE + KL": "--metadd.kl 1",
    # Pushed away from the reference a KL has no bound of its own.
    "CE - KL": "--metadd.kl -0.5 --metadd.kl-cap 5",
}
STUDIES["factorial"] = {
    "about": "Which of MetaDD's terms earns what: every combination of L_ai (its KL added, left out, taken away), "
    "L_pos and L_var over DM, at our strengths and as the paper is read (raw, 1:1:1).",
    "options": _OVER_DM,
    "rows": _REAL
    | _DM
    | {
        " + ".join(filter(None, (ai, "pos" * pos, "var" * var))): f"{of_ai} {'' if pos else '--metadd.pos 0'} "
        f"{'' if var else '--metadd.var 0'}"
        for ai, of_ai in _AI.items()
        for pos in (False, True)
        for var in (False, True)
        if ai or pos or var
    }
    | {
        "paper: CE + KL + pos + var": "--variants paper",
        "paper: CE + KL": "--variants paper,pos=0,var=0",
        "paper: pos": "--variants paper,ai=0,var=0",
        "paper: var": "--variants paper,ai=0,pos=0",
    },
    "references": ("DM",),
    "split": "validation",
}
STUDIES["strength"] = {
    "about": "How strong the cross-entropy through the auxiliaries should pull (rho 0.3 to 100), at 1, 10 and 50 "
    "images per class over DM.",
    "options": _OVER_DM,
    "rows": {
        f"{ipc} images: {name}": f"{row} --ipc {ipc}"
        for ipc in (1, 10, 50)
        for name, row in (_DM | {f"CE {rho}": f"{_CE} --metadd.ai {rho}" for rho in (0.3, 1, 3, 10, 30, 100)}).items()
    },
    "against": {
        f"{ipc} images: CE {rho}": f"{ipc} images: DM" for ipc in (1, 10, 50) for rho in (0.3, 1, 3, 10, 30, 100)
    },
    "split": "validation",
}


def _through(*families: str, beside: tuple[str, ...] = ()) -> str:
    seen = " ".join(_FAMILIES[name] for name in families)
    return f"--seen {seen} --unseen {' '.join((*_OF_NO_FAMILY, *(_FAMILIES[name] for name in beside)))}"


_FIRST_THREE = _through("VGG", "AlexNet", "ResNet")
STUDIES["auxiliaries"] = {
    "about": "How many auxiliaries, of which families and how well trained: 1 to 5, one family left out, trained 0, 1, "
    "5 and 30 epochs, on other images of the same classes (over DM; CE alone and with the map terms).",
    "options": _HELD_OUT,
    "rows": {"DM": f"--no-wrapped {_FIRST_THREE}"}
    | {f"{m}: CE": f"{_CE} {_through(*list(_FAMILIES)[:m])}" for m in range(1, 6)}
    # Of one network alone no map can agree.
    | {f"{m}: CE + maps": _through(*list(_FAMILIES)[:m]) for m in range(2, 6)}
    | {
        f"5 without {left}: CE": f"{_CE} {_through(*(one for one in _FAMILIES if one != left), beside=(left,))}"
        for left in _FAMILIES
    }
    | {
        f"3 of {epochs} epochs: {name}": f"{row} {_FIRST_THREE} --seen-epochs {epochs}"
        for epochs in (0, 1, 5)  # 30 is "3: CE" and "3: CE + maps"
        for name, row in {"CE": _CE, "CE + maps": ""}.items()
    }
    | {
        "3 of unused images: CE": f"{_CE} {_FIRST_THREE} --seen-data unused",
        "3 of unused images: CE + maps": f"{_FIRST_THREE} --seen-data unused",
    },
    "references": ("DM",),
    "split": "validation",
}
STUDIES["threshold"] = {
    "about": "Whether it matters from which value on a map counts as high (0.3 to 0.7): in the loss, by its soft ratio "
    "or by taking low values away, and in what is measured of every set.",
    "options": _OVER_DM,
    "rows": _REAL
    | _DM
    | {"CE": _CE, "CE + maps": ""}
    | {
        f"CE + soft ratio at {t}": f"--metadd.var 0 --metadd.positivity soft_ratio --metadd.cam.threshold {t}"
        for t in _THRESHOLDS
    }
    | {
        f"CE + maps, none below {t}": f"--metadd.cam.low-confidence hard --metadd.cam.threshold {t}"
        for t in _THRESHOLDS
    },
    "references": ("DM", "CE"),
    "split": "validation",
    "agreement": True,
}
_WITH_VIT = "--seen vgg11_bn:width=8 resnet18_bn:width=8 vit:width=48,depth=3"
STUDIES["layers"] = {
    "about": "How the maps are made: HiResCAM or Grad-CAM, what is constant in them, the attention of a transformer by "
    "four ways, and the layer of the map (over DM, one ViT among three auxiliaries).",
    "options": f"{_HELD_OUT} {_WITH_VIT} --unseen alexnet:width=8 resnet18:width=4 lenet mlp",
    "rows": _DM
    | {"CE": _CE, "CE + maps": ""}
    | {
        "Grad-CAM": "--metadd.cam.alpha mean",
        "Grad-CAM, alpha constant": "--metadd.cam.alpha mean --metadd.cam.stop-gradient-alpha",
        "range with gradient": "--metadd.cam.no-stop-gradient-range",
        "low values soft": "--metadd.cam.low-confidence soft",
    }
    | {
        f"ViT by {kind}": f"--metadd.cam.transformer-method {kind}"
        for kind in ("attention", "attention_logits", "grad")  # rollout is the default
    }
    # The usual map of both is 8x8; a transformer has one grid alone.
    | {
        f"maps of {side}x{side} or more": f"--seen vgg11_bn:width=8,map_side={side} "
        f"resnet18_bn:width=8,map_side={side} vit:width=48,depth=3"
        for side in (2, 4, 16)
    },
    "references": ("CE", "CE + maps"),
    "split": "validation",
    "agreement": True,
}
_IN_PLACE = {  # of the map terms, at their strength
    "shuffled maps": "var_shuffled=0.1,pos_shuffled=0.1",
    "untrained maps": "var_untrained=0.1,pos_untrained=0.1",
    **{name: f"{name}=0.1" for name in CONTROLS if name != "ce" and not name.endswith(("_shuffled", "_untrained"))},
}
STUDIES["controls"] = {
    "about": "What is left of MetaDD's gain if something is taken away or replaced by something plainer of equal cost: "
    "every control alone, and in the place of the map terms beside the cross-entropy (over DM).",
    "options": _OVER_DM,
    "rows": _REAL
    | _DM
    | {"CE": _CE, "MetaDD": ""}
    | {f"{name} alone": f"--variants only,{name}=1" for name in CONTROLS}
    | {f"CE + {name}": f"--variants pos=0,var=0,{terms}" for name, terms in _IN_PLACE.items()},
    "references": ("DM", "CE"),
    "split": "validation",
}
STUDIES["search"] = {
    "about": "The search for a variant in which architecture-invariance pays: what auxiliaries may be asked beside or "
    "in place of the map terms, what becomes of the gradients, and which networks look (over DM).",
    "options": _OVER_DM,
    "rows": _REAL
    | _DM
    | {"CE": _CE, "CE 10": f"{_CE} --metadd.ai 10", "CE + maps": ""}
    | {
        "means + variances": "--variants only,class_mean=1,class_var=1",
        "CE + means + variances": "--variants pos=0,var=0,class_mean=0.3,class_var=0.3",
        "maps of real images": "--variants only,var_real=0.3,pos_real=0.3",
        "CE + maps of real images": "--variants pos=0,var=0,var_real=0.3,pos_real=0.3",
    }
    | {f"focus {f}": f"--variants only,focus={f}" for f in (0.5, 1)}
    | {f"CE, focus 0.5, {mask}": f"{_CE} --metadd.focus 0.5 --metadd.focus-mask {mask}" for mask in ("hard", "soft")}
    | {f"CE 10, no conflict by {by}": f"{_CE} --metadd.ai 10 --metadd.project {by}" for by in ("set", "image")}
    | {
        "CE, 1 of 3 drawn": f"{_CE} --metadd.drawn 1",
        "CE, of 1, 5, 30 epochs": f"{_CE} --seen-epochs 1 5 30",
        "CE, 3 drawn of 1, 5, 30 epochs": f"{_CE} --seen-epochs 1 5 30 --metadd.drawn 3",
    }
    | {f"CE, trained further {eta}": f"{_CE} --metadd.further-lr {eta}" for eta in (0.001, 0.01)},
    "references": ("DM", "CE"),
    "split": "validation",
}
_CONSENSUS = "--init consensus"
# One update that moves nothing: what is judged is the start, through whatever holds it.
_AS_IT_IS = "--no-wrapped --steps 1 --image-lr 1e-12"
_PACKED = "--parameterisation factor2"
_ONE = "consensus --no-wrapped --seen {} --unseen {} " + _UNSEEN.removeprefix("--unseen ")
STUDIES["starts"] = {
    "about": "Whether the start should be left to the auxiliaries: real images that all of them are surest of, one of "
    "each k-means cluster, beside those of one network alone; what a set gains from them as they are, over DM, under "
    "the cross-entropy, and packed.",
    "options": _OVER_DM,
    "rows": _REAL
    | {"consensus": "consensus --no-wrapped"}
    | {
        f"surest of {name} alone": _ONE.format(
            _FAMILIES[name], " ".join(_FAMILIES[other] for other in ("VGG", "AlexNet", "ResNet") if other != name)
        )
        for name in ("VGG", "AlexNet", "ResNet")
    }
    | _DM
    | {
        "CE": _CE,
        "DM from consensus": f"--no-wrapped {_CONSENSUS}",
        "CE from consensus": f"{_CE} {_CONSENSUS}",
        "CE + maps from consensus": _CONSENSUS,
        "k-means, packed": f"{_AS_IT_IS} {_PACKED}",
        "consensus, packed": f"{_AS_IT_IS} {_PACKED} {_CONSENSUS}",
        "DM, packed": f"--no-wrapped {_PACKED}",
        "DM, packed, from consensus": f"--no-wrapped {_PACKED} {_CONSENSUS}",
        # A tenth of the images at each step: what MetaDD adds to the time is then a tenth, too.
        "packed, CE from consensus": f"{_CE} --metadd.subset 40 {_PACKED} {_CONSENSUS}",
        "packed, CE": f"{_CE} --metadd.subset 40 {_PACKED}",
    },
    "references": ("DM", "DM from consensus", "DM, packed"),
    "split": "validation",
}
STUDIES["packed"] = {
    "about": "Whether MetaDD still earns something where images are packed, four in the place of one, which earns more "
    "than all else at equal storage (over DM).",
    "options": _OVER_DM,
    "rows": _REAL
    | _DM
    | {"CE": _CE, "DM, packed": f"--no-wrapped {_PACKED}"}
    | {f"packed, CE {rho}": f"{_CE} --metadd.ai {rho} {_PACKED}" for rho in (1, 3, 10)}
    # A tenth of the images at each step: what MetaDD adds to the time is then a tenth, too.
    | {"packed, CE 3, 40 of 400": f"{_CE} --metadd.subset 40 {_PACKED}", "packed, CE 3 + maps": _PACKED},
    "references": ("DM, packed", "DM"),
    "split": "validation",
}
_SRE2L = (
    "--method sre2l --backbone resnet18_bn:width=8 --seen vgg11_bn:width=8 alexnet:width=8 --image-lr 0.25 --steps 300 "
    "--sre2l.squeeze short --sre2l.group-ipc 10 --sre2l.r-bn 1 --unseen convnet:width=32 lenet mlp"
)
_SCHEDULES = {
    "frozen": "",
    "per step": "--metadd.weighting per_step",
    "falling": "--metadd.schedule falling",
    "rising": "--metadd.schedule rising",
}
STUDIES["schedule"] = {
    "about": "Whether the weights of the terms should stay as calibrated, be calibrated anew at every step, or fall or "
    "rise over the run: over DM, and over SRe2L, whose own gradient shrinks until the added one is the larger.",
    "options": _OVER_DM,
    "rows": _DM
    | {f"CE, {name}": f"{_CE} {words}" for name, words in _SCHEDULES.items()}
    | {f"CE + maps, {name}": words for name, words in _SCHEDULES.items()}
    | {"SRe2L": f"--no-wrapped {_SRE2L}"}
    | {f"SRe2L: CE, {name}": f"{_CE} --metadd.ai 0.3 {_SRE2L} {words}" for name, words in _SCHEDULES.items()},
    "references": ("DM",),
    "against": {f"SRe2L: CE, {name}": "SRe2L" for name in _SCHEDULES},
    "split": "validation",
}
STUDIES["transfer"] = {
    "about": "Whether what raises the agreement of maps with that of an unseen network raises that network's accuracy: "
    "map terms of every strength, alone and beside the cross-entropy, and their controls (over DM).",
    "options": _OVER_DM,
    "rows": _REAL
    | _DM
    | {"CE": _CE}
    | {f"maps {rho}": _MAPS.format(rho) for rho in (0.1, 0.3, 1, 3)}
    | {f"CE + maps {rho}": f"--metadd.pos {rho} --metadd.var {rho}" for rho in (0.1, 0.3, 1, 3)}
    | {"CE + shuffled maps 1": "--variants pos=0,var=0,var_shuffled=1,pos_shuffled=1"},
    "references": ("DM",),
    "split": "validation",
    "agreement": True,
}
_EXPERTS = "--experts 5 --epochs 10 --syn-steps 10 --expert-epochs 2 --max-start-epoch 5 --batch-syn 50"
_BASES = {
    "DM": "",
    # DC's 50 inner steps of 10 rounds would take ten times as long.
    "DC": "--method dc --image-lr 0.1 --steps 60 --chunk 20 --dc.inner 10 --metadd.subset 20",
    "DSA": "--method dsa --image-lr 0.1 --steps 60 --chunk 20 --dc.inner 10 --metadd.subset 20",
    "MTT": f"--method mtt --image-lr 100 --steps 100 --chunk 25 {_EXPERTS} --metadd.subset 20",
    # Judged under hard labels like all others, so none are trained.
    "DATM": f"--method datm --no-soft-labels --image-lr 100 --steps 100 --chunk 25 {_EXPERTS} --metadd.subset 20",
    "SRe2L": _SRE2L,
}
_RHO = dict.fromkeys(_BASES, 3.0) | {"SRe2L": 0.3}  # of the cross-entropy
STUDIES["bases"] = {
    "about": "Over which base methods MetaDD helps: DM, DC, DSA, MTT, DATM and SRe2L with and without it, each from "
    "k-means images and under hard labels.",
    "options": _OVER_DM,
    "rows": _REAL
    | {
        name: f"{added} {words}"
        for base, words in _BASES.items()
        for name, added in {
            base: "--no-wrapped",
            f"{base} + CE": f"{_CE} --metadd.ai {_RHO[base]}",
            f"{base} + MetaDD": f"--metadd.ai {_RHO[base]}",
        }.items()
    },
    "against": {f"{base} + {what}": base for base in _BASES for what in ("CE", "MetaDD")},
    "split": "validation",
}


def _start_and_loss(base: str) -> dict[str, str]:
    """A base method, the start, the cross-entropy, and both, each beside the images that it starts from."""
    words, loss = _BASES[base], f"{_CE} --metadd.ai {_RHO[base]}"
    return {
        base: f"--no-wrapped {words}",
        f"{base} from consensus": f"--no-wrapped {words} {_CONSENSUS}",
        f"{base} + CE": f"{loss} {words}",
        f"{base} + CE from consensus": f"{loss} {words} {_CONSENSUS}",
    }


def _named(number: int, rows: dict[str, str]) -> dict[str, str]:
    return {f"{number} image{'s' * (number > 1)}: {name}": f"{row} --ipc {number}" for name, row in rows.items()}


_ELSEWHERE = _REAL | {"consensus": "consensus --no-wrapped"} | _start_and_loss("DM")
_OTHER_BASES = {base: _start_and_loss(base) for base in ("DC", "MTT", "SRe2L")}
STUDIES["elsewhere"] = {
    "about": "Whether what won over DM at 10 images per class (a start that all auxiliaries are sure of, and the "
    "cross-entropy through them) wins at 1 image, too, and over DC, MTT and SRe2L.",
    "options": _OVER_DM,
    "rows": _named(1, _ELSEWHERE) | {name: row for rows in _OTHER_BASES.values() for name, row in rows.items()},
    "references": ("1 image: DM",),
    "against": {name: base for base, rows in _OTHER_BASES.items() for name in rows if name != base},
}
_TEN = _named(10, _ELSEWHERE)
STUDIES["elsewhere_digits"] = {
    "about": "The same on the embedded digits, at 1 and 10 images per class over DM.",
    "preset": "mnist5k",
    "options": f"--init kmeans --eval-labels hard --train-seeds 1 {study_tables.OURS}",
    "rows": _named(1, _ELSEWHERE) | _TEN,
    "references": ("1 image: DM",),
    "against": {name: "10 images: DM" for name in _TEN if name != "10 images: DM"},
}
_STRENGTHS = {
    "CE 3": f"{_CE} --metadd.ai 3",
    **{f"unsaturated {rho}": f"{_CE} --metadd.weighting unsaturated --metadd.ai {rho}" for rho in (1, 3, 6)},
}
STUDIES["unsaturated"] = {
    "about": "Whether one strength of the cross-entropy suits every number of images and every data set if it is "
    "measured by the margin's gradient, which does not vanish where the auxiliaries are sure: the default's choice.",
    "options": _OVER_DM,
    "rows": _named(1, _DM | _STRENGTHS) | _named(10, _DM | _STRENGTHS),
    "references": ("1 image: DM",),
    "against": {f"10 images: {name}": "10 images: DM" for name in _STRENGTHS},
    "split": "validation",
}
STUDIES["unsaturated_digits"] = STUDIES["unsaturated"] | {
    "about": "The same on the embedded digits.",
    "preset": "mnist5k",
    "options": "--train-per-class 450 --validation-fraction 0.3334 --init kmeans --eval-labels hard --train-seeds 1 "
    f"{study_tables.OURS}",
}
# Of equal cost: is it what the networks know, or that there are networks?
_KNOW_LITTLE = {f"DM + MetaDD, networks of {epochs} epochs": f"--seen-epochs {epochs}" for epochs in (0, 1)}
STUDIES["default"] = {
    "about": "The loss as it is without any option, over every base method, each from k-means images and under hard "
    "labels: what a user gets who chooses nothing.",
    "options": f"{_AS_JUDGED} {_THREE} {_UNSEEN}",
    "rows": {
        name: f"{added} {words}"
        for base, words in _BASES.items()
        for name, added in {base: "--no-wrapped", f"{base} + MetaDD": ""}.items()
    }
    | _KNOW_LITTLE,
    "against": {f"{base} + MetaDD": base for base in _BASES} | dict.fromkeys(_KNOW_LITTLE, "DM"),
}
STUDIES["gpu"] = {
    "about": "DM as published but for 5,000 steps, with the cross-entropy and with MetaDD, full-size networks of the "
    "paper's table, judged by the published recipe at 300 epochs: 13 minutes of one accelerator.",
    "preset": "dm/cifar10/10",
    # Four of the paper's eight foreign networks: all of them would take the time of the second seed to compile.
    "options": "--init kmeans --steps 5000 --chunk 250 --class-batch 10 --pretrain-epochs 4 --eval-epochs 300 "
    "--train-seeds 1 --seen resnet34 vgg11 --unseen alexnet resnet50:norm=batch --metadd.subset 10 "
    f"{study_tables.OURS}",
    "rows": {
        "DM": "--no-wrapped",
        "DM + CE": _CE,
        "DM + MetaDD": "",
        "k-means": "kmeans --no-wrapped",
    },
    "seeds": 3,
    "references": ("DM",),
}
