"""Reading a variant of the invariant loss from text."""

import dataclasses

import pytest

from metadd_jax.invariant import InvariantConfig, terms
from metadd_jax.job import prepare, presets


def test_a_variant_changes_what_it_names_and_nothing_else():
    config = InvariantConfig(views="auto")
    changed = presets.variant(config, "ai=0.3, kl=-0.5,kl_cap=5,views=none,kl_reverse=True,cam.low_confidence=soft")
    assert changed == InvariantConfig(
        ai=0.3, kl=-0.5, kl_cap=5.0, views="none", kl_reverse=True, cam=changed.cam
    ) and changed.cam.low_confidence == "soft"  # fmt: skip
    assert config == InvariantConfig(views="auto")


def test_none_and_a_registered_term_can_be_said(monkeypatch):
    monkeypatch.setitem(terms.TERMS, "bright", terms.Term("bright", lambda seen: seen.images.mean((1, 2, 3))))
    config = InvariantConfig(subset=5, kl_cap=2.0, pos=0.1, var=0.1)
    changed = presets.variant(config, "subset=None,kl_cap=3")
    assert changed == InvariantConfig(kl_cap=3.0, pos=0.1, var=0.1)
    changed = presets.variant(config, "bright=0.5,ai=0")
    assert changed.strengths == {"pos": 0.1, "var": 0.1, "bright": 0.5} and changed.subset == 5
    assert presets.variant(changed, "bright=2").strengths["bright"] == 2


def test_only_leaves_the_terms_that_are_named():
    config = InvariantConfig(views="auto", subset=5, pos=0.1, extra=(("cos", 1.0),))
    assert presets.variant(config, "only,ce=3") == InvariantConfig(
        views="auto", subset=5, ai=0, pos=0, var=0, extra=(("ce", 3.0),)
    )
    assert presets.variant(config, "only,ai=0.5,cos=2").strengths == {"ai": 0.5, "cos": 2.0}


def test_the_papers_reading_is_a_word_that_keeps_views_and_memory_settings():
    config = InvariantConfig(views="auto", subset=5, ai=2.0, kl=0.5, kl_cap=2.0)
    paper = presets.variant(config, "paper")
    assert (paper.ai, paper.pos, paper.var, paper.weighting, paper.kl, paper.kl_cap) == (1, 1, 1, "raw", 1, None)
    assert (paper.views, paper.subset) == ("auto", 5)
    assert presets.variant(config, "paper, kl=0,cam.low_confidence=hard") == dataclasses.replace(
        paper, kl=0.0, cam=dataclasses.replace(paper.cam, low_confidence="hard")
    )
    with pytest.raises(ValueError, match=r"cannot read 'paper' .*write paper or only, or NAME=VALUE"):
        presets.variant(config, "kl=0,paper")


@pytest.mark.parametrize("name", ["mnist5k", "cifar10_cpu", "cifar10_published"])
def test_a_paper_preset_is_the_same_run_with_the_papers_loss_beside_ours(name):
    usual, both = presets.preset(name), presets.preset(f"{name}_paper")
    assert both.variants == ("paper",) and dataclasses.replace(both, variants=()) == usual
    settings = prepare.settings(both)
    assert list(settings) == ["", ",paper"] and settings[""] == usual.metadd
    assert settings[",paper"] == InvariantConfig.paper(views="auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ai", "or NAME=VALUE"),
        ("papers", "write paper or only, or"),
        ("aj=1", "cannot read 'aj=1'.*cam.low_confidence"),
        ("cam=1", "cannot read"),
        ("strengths=1", "cannot read"),
        ("ai=much", "write a number like 1.0$"),
        ("subset=1.5", "write a number like 1 or None"),
        ("subset=0", "subset=0 must be a whole number, at least 1"),
        ("extra=1", "cannot read"),
        ("kl_reverse=yes", "True or False"),
        ("kl=-1", "kl_cap"),
        ("only", "leaves no term; name those that shall stay: only,ce=3"),
    ],
)
def test_a_variant_that_cannot_be_read_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message):
        presets.variant(InvariantConfig(), text)
