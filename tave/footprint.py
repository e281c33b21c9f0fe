"""How much memory full-size models need, by preset: counted from shapes, or measured on a GPU.

python -m tave.footprint
python -m tave.footprint backbones=[sd15_ip_adapter] presets=[8gb,16gb] frames=[8] sizes=[512,768]
python -m tave.footprint measure=true
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from tave.cli import Context, compose_options, entry_point
from tave.config import FootprintOptions, MemoryOptions, OptionError
from tave.fitting import GIB


def preset(name: str) -> tuple[MemoryOptions, str]:
    """What ``memory=NAME`` sets: the options and the Trainer's precision."""
    options = compose_options("train", ["video=bus_to_suv", f"memory={name}"])
    return options.memory, options.precision


def table(options: FootprintOptions, on_line: Callable[[str], None]) -> None:
    """The footprints in GiB as Markdown, a line at a time."""
    import torch

    from tave.counting import SHAPES, footprint

    columns = ("resident", "optimizer", "gradients", "activations", "tuning", "editing", "coding")
    on_line(f"| backbone | preset | frames | px | {' | '.join(columns)} | peak |")
    on_line(f"| --- | --- {'| ---: ' * (len(columns) + 3)}|")
    for backbone, name in product(options.backbones, options.presets):
        memory, precision = preset(name)
        for frames, side in product(options.frames, options.sizes):
            settings = {"trainables": options.trainables, "measured": options.measure}
            try:
                found = footprint(SHAPES[backbone], memory, precision, frames, side, **settings)
                cells = [f"{getattr(found, column) / GIB:.2f}" for column in columns] + [f"**{found.peak / GIB:.1f}**"]
            except torch.OutOfMemoryError:  # the card is too small for this line, not for all
                cells = [*["-"] * len(columns), "doesn't fit"]
            on_line(f"| {backbone} | {name} | {frames} | {side} | {' | '.join(cells)} |")
            if options.measure:
                torch.cuda.empty_cache()


def host_table(options: FootprintOptions, on_line: Callable[[str], None]) -> None:
    """What the weights need of the CPU's memory, in GiB as Markdown, a line at a time."""
    from tave.counting import SHAPES, host

    on_line("| backbone | UNet | encoders | autoencoder | together |")
    on_line("| --- | ---: | ---: | ---: | ---: |")
    for name in options.backbones:
        parts = host(SHAPES[name])
        on_line(f"| {name} | {' | '.join(f'{part / GIB:.2f}' for part in parts)} | **{sum(parts) / GIB:.1f}** |")


def run(options: FootprintOptions, _: Context | None = None) -> None:
    """Print both tables. Raises :class:`OptionError` if there is no device to measure on."""
    import torch

    if options.measure and not torch.cuda.is_available():
        raise OptionError("measure=true needs a CUDA device, but torch finds none: leave it out to compute from shapes")
    how = f"measured on {torch.cuda.get_device_name()}" if options.measure else "computed from shapes"
    print(f"GiB, {how}, trainables={options.trainables}, torch {torch.__version__.partition('+')[0]}\n")
    table(options, lambda line: print(line, flush=True))
    print("\nGiB of the CPU's memory for the weights, float32 as they are read, computed from shapes\n")
    host_table(options, print)


main = entry_point("memory of the full-size models", "footprint", run)

if __name__ == "__main__":
    main()
