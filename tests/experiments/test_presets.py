"""Reading a variant of the invariant loss from text."""

import presets
import pytest

from metadd_jax.invariant import InvariantConfig


def test_a_variant_changes_what_it_names_and_nothing_else():
    config = InvariantConfig(views="auto")
    changed = presets.variant(config, "ai=0.3, kl=-0.5,kl_cap=5,views=none,kl_reverse=True,cam.low_confidence=soft")
    assert changed == InvariantConfig(
        ai=0.3, kl=-0.5, kl_cap=5.0, views="none", kl_reverse=True, cam=changed.cam
    ) and changed.cam.low_confidence == "soft"  # fmt: skip
    assert config == InvariantConfig(views="auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ai", "write NAME=VALUE"),
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
