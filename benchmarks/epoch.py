"""An epoch of the engine beside one of a careful plain PyTorch loop, in turns: python benchmarks/epoch.py."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from vae_lab.config import TrainerConfig, to_plain, typed
from vae_lab.data import load
from vae_lab.engine import fit
from vae_lab.entry import compose_checked
from vae_lab.job import make_run

SETTINGS = {
    "784-400-20, MNIST": ["data=mnist", "data.val_size=0", "size=medium"],
    "64-64-2, digits": ["data.val_size=0", "size=tiny"],
}


class Silent:
    """An observer that keeps nothing but the last training loss."""

    loss = 0.0

    def on_step(self, runs: object, means: object) -> None:
        pass

    def on_epoch(self, run: object, metrics: dict[str, float]) -> None:
        self.loss = metrics["train/loss"]

    def on_state(self, run: object) -> None:
        pass

    def should_stop(self) -> bool:
        return False


def engine(cfg: dict) -> tuple[float, float]:
    """Seconds an epoch, and the loss of the last one."""
    splits = load(cfg["data"])
    run, observer = make_run(cfg, splits), Silent()
    start = time.perf_counter()
    fit([run], splits, typed(TrainerConfig, cfg["trainer"], "trainer"), torch.device("cpu"), observer)
    return (time.perf_counter() - start) / run.epoch, observer.loss


def plain(cfg: dict) -> tuple[float, float]:
    """The same model as one would write it by hand: resident images, logits, fused Adam, no library."""
    images = load(cfg["data"]).train.x.flatten(1)
    hidden, latent, batch = cfg["hidden_dims"][0], cfg["latent_dim"], cfg["trainer"]["batch_size"]
    pixels = images.shape[1]
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    start, total = time.perf_counter(), 0.0
    for _ in range(cfg["trainer"]["epochs"]):
        order, total = torch.randperm(len(images)), 0.0
        for first in range(0, len(images), batch):
            x = images[order[first : first + batch]].float().div_(255)
            mu, logvar = encoder(x).chunk(2, dim=1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            nll = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
            loss = (nll + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
    return (time.perf_counter() - start) / cfg["trainer"]["epochs"], total / len(images)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    print("| setting | engine, s an epoch | plain loop | ratio | loss, engine | loss, plain |\n|---|---|---|---|---|---|")
    for name, overrides in SETTINGS.items():
        cfg = to_plain(compose_checked([*overrides, f"trainer.epochs={2 if 'MNIST' in name else 100}", "device=cpu"])[0])
        rows: dict[Callable, list[tuple[float, float]]] = {engine: [], plain: []}
        engine(cfg | {"trainer": cfg["trainer"] | {"epochs": 1}})  # warm up
        for _ in range(turns):
            for function, results in rows.items():
                results.append(function(cfg))
        ours, theirs = (statistics.median(seconds for seconds, _ in results) for results in rows.values())
        losses = [results[-1][1] for results in rows.values()]
        print(f"| {name} | {ours:.4f} | {theirs:.4f} | {ours / theirs:.2f} | {losses[0]:.2f} | {losses[1]:.2f} |")
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, medians of {turns} turns")


if __name__ == "__main__":
    main()
