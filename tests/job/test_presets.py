"""Reading a variant of the invariant loss from text."""

import dataclasses

import pytest

from metadd_jax.invariant import InvariantConfig
from metadd_jax.job import prepare, presets


def test_a_variant_changes_what_it_names_and_nothing_else():
    config = InvariantConfig(views="auto")
    changed = presets.variant(config, "ai=0.3, kl=-0.5,kl_cap=5,views=none,kl_reverse=True,cam.low_confidence=soft")
    assert changed == InvariantConfig(
        ai=0.3, kl=-0.5, kl_cap=5.0, views="none", kl_reverse=True, cam=changed.cam
    ) and changed.cam.low_confidence == "soft"  # fmt: skip
    assert config == InvariantConfig(views="auto")


def test_the_papers_reading_is_a_word_that_keeps_views_and_memory_settings():
    config = InvariantConfig(views="auto", subset=5, ai=3.0, kl=0.5, kl_cap=2.0)
    paper = presets.variant(config, "paper")
    assert (paper.ai, paper.pos, paper.var, paper.weighting, paper.kl, paper.kl_cap) == (1, 1, 1, "raw", 1, 0)
    assert (paper.views, paper.subset) == ("auto", 5)
    assert presets.variant(config, "paper, kl=0,cam.low_confidence=hard") == dataclasses.replace(
        paper, kl=0.0, cam=dataclasses.replace(paper.cam, low_confidence="hard")
    )
    with pytest.raises(ValueError, match=r"cannot read 'paper' .*write paper, or NAME=VALUE"):
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
        ("papers", "write paper, or"),
        ("aj=1", "cannot read 'aj=1'.*cam.low_confidence"),
        ("cam=1", "cannot read"),
        ("strengths=1", "cannot read"),
        ("ai=much", "write a number like 0.3"),
        ("subset=1.5", "write a number like 0"),
        ("kl_reverse=yes", "True or False"),
        ("kl=-1", "kl_cap"),
    ],
)
def test_a_variant_that_cannot_be_read_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message):
        presets.variant(InvariantConfig(), text)
