"""tave: edit a video by showing what you want.

    from tave import edit_clip, tune_clip
    run = tune_clip("clip.mp4", "a white bus on a mountain road")
    made = edit_clip(run, "suv.png", "a red suv on a mountain road")

Axes, everywhere: ``b`` batch or guidance branch, ``f`` frame, ``c`` channel, ``H W`` pixels, ``h w`` latent cells,
``n = h w`` tokens, ``l`` text tokens, ``d`` width, ``T`` denoising steps. Latents are ``b f c h w``, pixels
``f 3 H W`` float32 in [-1, 1], masks 1 where the edit goes.
"""

from tave.story import edit_clip, tune_clip

__all__ = ["edit_clip", "tune_clip"]
