"""A differentiable map from the value space and size of a synthetic set to those of a network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Maps standardised images of a set to the images a network was trained on. Hashable (static under jit).

    x -> ((x * source_std + source_mean) resized and repeated - target_mean) / target_std

    Pass it as ``preprocess`` to ``features.freeze``, so that a network of another size or other constants
    (torchvision's at 224 pixels) can be an auxiliary of the set (docs/extend.md). The gradient flows back to the set's
    own pixels.

    Attributes:
      source_mean: mean of each channel of the set, of pixels in [0, 1].
      source_std: standard deviation of each channel of the set, above 0.
      target_mean: mean of each channel that the network was trained with.
      target_std: standard deviation of the same, above 0.
      size: (H, W) in pixels that the network takes, or None to keep the size. Bilinear; when shrinking, with
        the kernel widened against aliasing (``jax.image.resize``), as pictures are resized on loading.
      channels: channels that the network takes where the set is grey (3: grey -> RGB by repetition), or None.

    Raises:
      ValueError: if the numbers of channels do not fit together, or a deviation is not above 0.
    """

    # Tuples and not arrays: the record is a static field of ``Auxiliary`` and must be hashable.

    source_mean: tuple[float, ...]
    source_std: tuple[float, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    size: tuple[int, int] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        source, target = len(self.source_mean), len(self.target_mean)
        if len(self.source_std) != source or len(self.target_std) != target:
            raise ValueError(
                f"means of {source} and {target} channels, deviations of {len(self.source_std)} and "
                f"{len(self.target_std)}; give one of each per channel"
            )
        if self.channels is not None and source != 1:
            raise ValueError(f"cannot repeat {source} channels to {self.channels}; leave channels at None")
        if target != (self.channels or source):
            raise ValueError(
                f"the set gives {self.channels or source} channels and the network takes {target}; "
                "set channels to repeat a grey one"
            )
        if min(*self.source_std, *self.target_std) <= 0:
            raise ValueError(f"deviations {self.source_std} and {self.target_std}; give numbers above 0")

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps ``images`` [B, H, W, C] float in the set's space to [B, H', W', C'] in the network's."""
        # Nothing is clipped to [0, 1]: distilled pixels lie outside, and a clipped one has no gradient.
        pixels = images * jnp.asarray(self.source_std) + jnp.asarray(self.source_mean)
        if self.size is not None and self.size != images.shape[1:3]:
            shape = (images.shape[0], *self.size, images.shape[3])
            pixels = jax.image.resize(pixels, shape, "bilinear")
        # After resizing, which then works on one channel.
        if self.channels is not None:
            pixels = jnp.repeat(pixels, self.channels, axis=-1)
        return (pixels - jnp.asarray(self.target_mean)) / jnp.asarray(self.target_std)
