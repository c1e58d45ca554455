"""The sub-commands of `vae-lab` that use a trained run. Nothing here imports torch before a command runs."""

import argparse
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_lab.trained import TrainedRun

DATA_HELP = (
    "images: a data set, its split and classes (mnist, mnist:val, digits:test:0-4; :train is the run's own), classes alone (7 or "
    "0-4,9), an image file, a folder of images, or an .npy; default: the run's own test images"
)


def add_commands(commands: Any) -> None:
    """Add a parser for each command to argparse's sub-parsers."""
    for add in (_encode, _sample, _reconstruct, _interpolate, _traverse, _anomaly, _impute, _export, _card, _push):
        add(commands)


def open_run(arguments: argparse.Namespace) -> "TrainedRun":
    """Load the run that a command names, with a progress bar for what takes long on a terminal."""
    from vae_lab.places import check_plain
    from vae_lab.run_dir import RunDir
    from vae_lab.tasks.progress import Bar
    from vae_lab.trained import load

    run_dir = RunDir(arguments.run_dir)
    check_plain([run_dir.tasks, run_dir.export])
    return load(arguments.run_dir, arguments.checkpoint, arguments.device, Bar())


def say(line: str) -> None:
    """A line of a command's answer."""
    from rich.console import Console

    from vae_lab import console

    console.say(Console(), line)


def say_written(paths: list[Path]) -> int:
    """Name the files that were written; the exit code of success."""
    say("wrote " + ", ".join(map(str, paths)))
    return 0


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: at least {low}")
        return value

    return number


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: must be finite")
    return value


_finite.__name__ = "number"  # argparse names the type that a word is not


def _not_negative(text: str) -> float:
    if (value := _finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more")
    return value


_not_negative.__name__ = "number"


def _share(text: str) -> float:
    if not 0 < (value := _finite(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: between 0 and 1")
    return value


_share.__name__ = "number"


def _parser(
    commands: Any, name: str, does: str, out: str = "", data: bool = True, seed: bool = True, weights: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a folder that python run.py left")
    if weights:
        parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="default: best, by validation loss")
        parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="default: auto")
    if data:
        parser.add_argument("--data", metavar="DATA", help=DATA_HELP)
        parser.add_argument("--fit", action="store_true", help="crop, scale and convert image files to what the model takes")
    if seed:
        parser.add_argument("--seed", type=_at_least(0), default=0, help="of everything that is drawn; default: 0")
    if out:
        parser.add_argument("--out", metavar="FILE", help=f"default: {out}")

    def run(arguments: argparse.Namespace) -> int:
        from vae_lab.interrupt import interrupts

        interrupts.install()
        with interrupts.deferred():
            return importlib.import_module(f"vae_lab.tasks.{name}").command(arguments)

    parser.set_defaults(run=run)
    return parser


def _encode(commands: Any) -> None:
    parser = _parser(commands, "encode", "codes of images: posterior means, variances, labels", "RUN_DIR/tasks/codes.npz (or .csv)")
    parser.add_argument(
        "--plot",
        nargs="?",
        const="auto",
        choices=["auto", "plane", "pca", "tsne"],
        help="a scatter beside it: the plane itself (two latents), PCA, or t-SNE of at most 3,000 codes",
    )


def _sample(commands: Any) -> None:
    parser = _parser(commands, "sample", "new images, as a grid and an .npy", "RUN_DIR/tasks/samples.png", data=False)
    parser.add_argument("--n", type=_at_least(1), default=64, help="how many; default: 64")
    parser.add_argument("--temperature", type=_not_negative, default=1.0, help="scales the deviations of the codes; default: 1")
    parser.add_argument(
        "--source",
        choices=["prior", "mixture"],
        help="where codes come from; default: the prior, or the mixture where there is none",
    )
    parser.add_argument("--components", type=_at_least(1), help="of the mixture fitted to training codes; default: 10")


def _reconstruct(commands: Any) -> None:
    parser = _parser(
        commands, "reconstruct", "images beside their reconstructions", "RUN_DIR/tasks/reconstructions.png (or .npy: all)"
    )
    parser.add_argument("--n", type=_at_least(1), default=10, help="images in the picture; default: 10")


def _interpolate(commands: Any) -> None:
    out = "RUN_DIR/tasks/interpolation.png"
    parser = _parser(commands, "interpolate", "ways between images through the latent space, as rows and as a GIF", out, seed=False)
    pair: dict[str, Any] = {"nargs": 2, "action": "append", "metavar": ("A", "B"), "default": []}
    parser.add_argument("--classes", **pair, type=_at_least(0), help="between the mean codes of two classes; may be repeated")
    parser.add_argument("--indices", **pair, type=_at_least(0), help="between two images of DATA; may be repeated")
    parser.add_argument("--images", **pair, help="between two image files; may be repeated")
    parser.add_argument("--kind", choices=["linear", "spherical"], default="linear", help="default: linear")
    parser.add_argument("--frames", type=_at_least(2), default=20, help="from A to B in the GIF, which also goes back; default: 20")
    parser.add_argument("--columns", type=_at_least(2), default=9, help="from A to B in the picture; default: 9")


def _traverse(commands: Any) -> None:
    out = "RUN_DIR/tasks/traversal.png"
    parser = _parser(
        commands, "traverse", "each latent over a range while the others stay, as a grid and as a GIF", out, seed=False
    )
    parser.add_argument("--index", type=_at_least(0), help="start from the code of this image of DATA; default: the prior's mean")
    parser.add_argument("--latents", type=_at_least(0), nargs="+", help="which, in order; default: by KL, largest first")
    parser.add_argument("--top", type=_at_least(1), default=10, help="at most so many, where --latents is not given; default: 10")
    parser.add_argument(
        "--span", type=_finite, nargs=2, default=[-3.0, 3.0], metavar=("FROM", "TO"), help="deviations; default: -3 3"
    )
    parser.add_argument("--steps", type=_at_least(2), default=11, help="values per latent in the picture; default: 11")
    parser.add_argument(
        "--frames", type=_at_least(2), default=20, help="from FROM to TO in the GIF, which also goes back; default: 20"
    )


def _anomaly(commands: Any) -> None:
    does = "how unusual images are, and how well that tells outliers from inliers"
    parser = _parser(commands, "anomaly", does, "RUN_DIR/tasks/anomaly.csv")
    parser.add_argument("--inliers", metavar="DATA", help="usual images; default, with --outliers: the run's other test images")
    parser.add_argument("--outliers", metavar="DATA", help="unusual images, for AUROC and average precision")
    parser.add_argument("--draws", type=_at_least(1), default=8, help="of the code, in the ELBO; default: 8")


def _impute(commands: Any) -> None:
    parser = _parser(
        commands, "impute", "fill in missing pixels, and measure it against mean-filling", "RUN_DIR/tasks/imputation.png"
    )
    parser.add_argument(
        "--mask",
        default="random",
        metavar="MASK",
        help="what is missing: random, centre, lower, upper, left, right, or a file (an image, black where pixels are missing, or "
        "an .npy, true there); default: random",
    )
    parser.add_argument("--share", type=_share, default=0.5, help="of the pixels that --mask random leaves out; default: 0.5")
    parser.add_argument("--side", type=_at_least(1), help="of the square that --mask centre leaves out; default: 3/7 of the image")
    parser.add_argument("--n", type=_at_least(1), default=200, help="the first images of DATA; default: 200")
    parser.add_argument("--method", choices=["both", "chains", "optimise"], default="both", help="default: both")
    parser.add_argument("--chains", type=_at_least(1), default=8, help="Markov chains per image; default: 8")
    parser.add_argument("--steps", type=_at_least(1), default=50, help="rounds of each chain; default: 50")


def _export(commands: Any) -> None:
    parser = _parser(commands, "export", "the weights, or encoder and decoder as programs", data=False, seed=False)
    formats = ["safetensors", "state_dict", "torchscript", "onnx"]
    parser.add_argument("--format", choices=formats, required=True, dest="format_")
    parser.add_argument("--out", metavar="FOLDER", help="default: RUN_DIR/export")


def _card(commands: Any) -> None:
    parser = _parser(
        commands, "card", "write RUN_DIR/README.md: settings, numbers, pictures", data=False, seed=False, weights=False
    )
    parser.add_argument("--license", help="of the weights, as Hugging Face spells it (mit, apache-2.0, ...); default: none said")


def _push(commands: Any) -> None:
    does = "upload a run with its card to the Hugging Face Hub"
    parser = _parser(commands, "push", does, data=False, seed=False, weights=False)
    parser.add_argument("repo", metavar="USER/NAME")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is created now")
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    parser.add_argument("--license", help="of the weights, as Hugging Face spells it; default: none said")
