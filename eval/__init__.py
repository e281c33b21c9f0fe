"""Run folders -> numbers. Pure functions over what a run's files hold; nothing here knows how an edit was made.

Axes: ``f`` frame, ``H W`` pixels, ``h w`` latent cells, ``n`` items, ``d`` width. Pixels are float32 ``f 3 H W`` in
[-1, 1] as everywhere in tave, regions are bool with True = inside, PSNR is in dB and capped at 100. A figure over no pixel
at all (an empty region) is ``None``, which JSON writes as ``null``: it is neither perfect nor a failure.
"""
