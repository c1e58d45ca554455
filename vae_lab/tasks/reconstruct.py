"""Images beside their reconstructions."""

import argparse

import numpy as np
import torch

from vae_lab.tasks import picture, source
from vae_lab.tasks.anomaly import reconstruction_error
from vae_lab.tasks.command import open_run, say, say_written
from vae_lab.tasks.files import output, write_all


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab reconstruct`: a picture of the first images, or every reconstruction as an array."""
    run = open_run(arguments)
    path = output(arguments.out, run.run_dir.tasks / "reconstructions.png", ".png", ".npy")
    images = source.read(run, arguments.data, arguments.fit)
    if path.suffix == ".npy":
        decoded = run.reconstruct(images.x)
        return say_written(write_all({path: lambda file: np.save(file, decoded.numpy())}))
    error = reconstruction_error(run, images.x)
    some = images.first(arguments.n)
    x = picture.as_float(some.x)
    both = torch.stack([x, run.reconstruct(some.x)])
    note = f"squared error per image, all {len(images):,}: {float(error.mean()):.2f}"
    title = f"{run.name}: reconstructions of {images.title}"
    figure = picture.table(both, title, ["image", "reconstruction"], note=note)
    say(note)
    return say_written(write_all({path: picture.png(figure)}))
