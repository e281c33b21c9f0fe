"""One edit by hand: the method from top to bottom with tave's functions, without Lightning, Hydra or a run folder.

    python docs/edit_by_hand.py

A white bus becomes a red SUV, in about three minutes on two CPU cores; the result is in outputs/by_hand. Sections are
those of docs/method.md. `python -m tave.train video=bus_to_suv` does the same with caches, logs and metrics.
"""

from pathlib import Path

import torch
from torch.nn.functional import mse_loss

from tave import config
from tave.backbone import load_backbone
from tave.correction import Background, InterFrame
from tave.denoiser import Denoiser
from tave.encoders import Condition, Encoders
from tave.inflate import inflate, select_trainables
from tave.inversion import invert
from tave.masking import compare, drop_unchanged, make_mask
from tave.reference import TargetImage, find_place, first_pass, second_pass, source_frames
from tave.roadside.resolver import drawn
from tave.sampling import composite, composite_alpha, resize_mask, sample, start_latents
from tave.schedule import Schedule, add_noise, training_target
from tave.seeds import generator_for
from tave.video import mask_frames, read_clip, read_image, side_by_side, write_image, write_video

CLIP = Path(drawn("bus_to_suv"))
SOURCE_PROMPT = "a white bus on a mountain road"
TARGET_PROMPT = "a red suv on a mountain road"
OUT = Path("outputs/by_hand")
SEED = 33
TUNING_STEPS, LEARNING_RATE = 120, 2e-4  # these and the next are what conf/backbone/roadside.yaml sets
STEPS, SAMPLER, CORRECTION = 25, config.SamplerOptions(guidance_scale=5.0), config.CorrectionOptions(block=-1)
MASK, REFERENCE = config.MaskOptions(), config.ReferenceOptions()

# ---- 1. backbone and conditions: the clip as latents, prompt and picture as a condition ------------------------------

clip = read_clip(CLIP / "source.mp4", config.ReadOptions(frames=8, width=96, height=96))
image = TargetImage(*read_image(CLIP / "target.png"))
backbone = load_backbone(config.BackboneOptions(path=str(config.PACKAGE / "roadside" / "weights" / "backbone")))
encoders = Encoders(backbone, seed=SEED)
latents = encoders.encode(clip.frames)  # 1 f c h w
source = encoders.condition(SOURCE_PROMPT, [source_frames(clip.frames, "per_frame")])

# ---- 2. inflation: the image UNet looks at several frames, and gets a temporal attention -----------------------------

unet = inflate(backbone.unet, len(clip.frames))
select_trainables(unet, "patent")  # Q of both spatial attentions, all of the temporal one
denoiser = Denoiser(unet, backbone.scheduler)

# ---- 3. tuning: one clip, one random frame of it as the picture, a random timestep per step --------------------------

trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
embeds = encoders.embed(clip.frames)  # f e
for step in range(TUNING_STEPS):
    generator = generator_for(SEED, "tuning", step)
    t, level, frame = (int(torch.randint(n, (), generator=generator)) for n in (1000, encoders.levels, len(embeds)))
    shown = embeds[frame, None]
    vector = encoders.image_vector(shown, level, torch.randn(shown.shape, generator=generator))[None]
    keep = float(torch.rand((), generator=generator) > 0.1)  # no picture in one step of ten, for the guidance
    condition = Condition(text=source.text, image=vector * keep, null_text=source.null_text)
    noise, alpha = torch.randn(latents.shape, generator=generator), denoiser.alphas_cumprod[t]
    output = denoiser.output(add_noise(latents, noise, alpha), torch.tensor([t]), condition)
    loss = mse_loss(output, training_target(latents, noise, alpha, denoiser.prediction_type))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss:.4f}")

# ---- 4. inversion: every level from the clean latents to noise -------------------------------------------------------

schedule = Schedule.from_scheduler(backbone.scheduler, STEPS)
trajectory = invert(denoiser, schedule, latents, source, refine=0)

# ---- 5. mask: where source and target condition predict different noise ----------------------------------------------

# Twice: the first mask, with the target on grey, gives the place in which the second one sees the target.
first = first_pass(image, REFERENCE)
condition = encoders.condition(TARGET_PROMPT, first.pictures)
mask = make_mask(compare(denoiser, schedule, trajectory, source, condition, MASK), MASK)
place = find_place(clip.frames, resize_mask(mask.source_object, *clip.frames.shape[-2:]))
assert place is not None, "nothing to edit was found"
in_place, as_it_is = second_pass(first, image, place, REFERENCE).pictures
condition = encoders.condition(TARGET_PROMPT, [in_place])
mask = make_mask(compare(denoiser, schedule, trajectory, source, condition, MASK), MASK)

# ---- 6. sampling: from the inverted latents, with the inter-frame correction and the source's background -------------

condition = encoders.condition(TARGET_PROMPT, [in_place, as_it_is])
noisiest, generator = trajectory.level(STEPS), generator_for(SEED, "start noise")
start = start_latents(noisiest, mask.mask, mask.binary, SAMPLER.fresh_noise, generator)
corrections = [InterFrame(mask.mask, CORRECTION), Background(mask.mask, trajectory)]
edited = sample(denoiser, schedule, start, condition, guidance_scale=SAMPLER.guidance_scale, corrections=corrections)

# ---- 7. output: decode, and put the source's pixels back outside the mask --------------------------------------------

frames = encoders.decode(edited)  # f 3 H W
final = drop_unchanged(mask.mask, frames, encoders.decode(latents), MASK.drop_unchanged)
region = resize_mask(final, *frames.shape[-2:])
frames = composite(frames, clip.frames, composite_alpha(region, SAMPLER.feather))
OUT.mkdir(parents=True, exist_ok=True)
write_video(OUT / "edited.mp4", frames, clip.fps)
write_video(OUT / "side_by_side.mp4", side_by_side([clip.frames, mask_frames(region), frames]), clip.fps)
write_image(OUT / "reference.png", in_place[len(in_place) // 2])
print(OUT / "side_by_side.mp4")
