"""Measure edits from their files alone. Nothing here depends on how an edit was made.

Axes: ``f`` frames, ``H W`` pixels, ``h w`` latent cells, ``n`` items, ``d`` width of an embedding. Unless stated
otherwise, clips are float32 ``f 3 H W`` in [-1, 1], regions and masks bool ``f H W`` with True inside, embeddings unit
vectors ``f d``. A metric without a pixel or frame to measure is ``None``, which JSON writes as ``null``.
"""


class EvalError(ValueError):
    """Inputs that can't be measured; the message is one line that names the file or argument and the remedy."""


class WeightsError(EvalError):
    """Weights that are missing, damaged or of another model."""
