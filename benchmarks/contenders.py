"""Training loops that are compared: each trains the same layers from the same initial parameters on the same images.

Each takes a run's config and `report`, which it calls with the mean training loss of every epoch, in nats per image, until that
returns false.
"""

import importlib.util
import math
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vae_lab.arithmetic import arithmetic
from vae_lab.config import Precision, TrainerConfig, typed
from vae_lab.data import Images, load
from vae_lab.data.base import dataset
from vae_lab.engine import Run, fit
from vae_lab.job import make_run
from vae_lab.system import build_system

Config = dict[str, Any]
Report = Callable[[float], bool]


def engine(cfg: Config, report: Report) -> None:
    """Ours."""

    class Observer:
        """Passes each epoch's loss on."""

        going_on = True

        def on_step(self, runs: object, means: object) -> None:
            pass

        def on_epoch(self, run: Run, metrics: dict[str, float]) -> None:
            self.going_on = report(metrics["train/loss"])

        def on_state(self, run: Run) -> None:
            pass

        def should_stop(self) -> bool:
            return not self.going_on

    splits = load(cfg["data"])
    fit([make_run(cfg, splits)], splits, typed(TrainerConfig, cfg["trainer"], "trainer"), torch.device("cpu"), Observer())


def plain(cfg: Config, report: Report) -> None:
    """What one writes by hand with care: resident images, logits, a fused optimiser, nothing else."""
    encoder, decoder, shape = layers(cfg)
    images = load(cfg["data"]).train.x
    images, batch = images.view(len(images), *shape), cfg["trainer"]["batch_size"]
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=cfg["optimizer"]["lr"], fused=True)
    going_on = True
    while going_on:
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
        going_on = report(total / len(images))


def tutorial(cfg: Config, report: Report) -> None:
    """What introductions show: a DataLoader that decodes one picture after another, probabilities, Adam as it comes."""
    from PIL import Image
    from torchvision.transforms import ToTensor

    class Pictures(Dataset):
        """As torchvision's MNIST hands out pictures and labels: one by one, by way of PIL."""

        def __init__(self, images: Images):
            assert images.y is not None
            self.data, self.targets, self.transform = images.x[:, 0], images.y, ToTensor()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            picture, target = self.data[index], int(self.targets[index])
            return self.transform(Image.fromarray(picture.numpy(), mode="L")), target

    encoder, decoder, shape = layers(cfg)
    loader = DataLoader(Pictures(load(cfg["data"]).train), batch_size=cfg["trainer"]["batch_size"], shuffle=True)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=cfg["optimizer"]["lr"])
    going_on = True
    while going_on:
        total, seen = 0.0, 0
        for pictures, _ in loader:
            x = pictures.view(len(pictures), *shape)
            mu, logvar = encoder(x).chunk(2, dim=1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(logvar)
            reconstruction = torch.sigmoid(decoder(z))
            nll = F.binary_cross_entropy(reconstruction, x, reduction="sum")
            loss = nll - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            optimizer.zero_grad()
            loss.backward()
            total, seen = total + loss.item(), seen + len(x)
            optimizer.step()
        going_on = report(total / seen)


def lightning(cfg: Config, report: Report) -> None:
    """A LightningModule over ready tensors, without logger, checkpoints and progress bar."""
    import lightning as L

    encoder, decoder, shape = layers(cfg)

    class Module(L.LightningModule):
        """The same model."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder, self.total, self.seen = encoder, decoder, torch.zeros(()), 0

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            (x,) = batch
            mu, logvar = self.encoder(x).chunk(2, dim=1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            nll = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
            loss = (nll - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()) / len(x)
            self.total, self.seen = self.total + loss.detach() * len(x), self.seen + len(x)
            return loss

        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = not report(float(self.total) / self.seen)
            self.total, self.seen = torch.zeros(()), 0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=cfg["optimizer"]["lr"])

    trainer = L.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(ready(cfg, shape)), batch_size=cfg["trainer"]["batch_size"], shuffle=True))


def pythae(cfg: Config, report: Report) -> None:
    """pythae's VAE and BaseTrainer over ready tensors."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    inner, outer, shape = layers(cfg)
    latent_dim = cfg["latent_dim"]

    class Encoder(BaseEncoder):
        """The same layers."""

        def __init__(self) -> None:
            super().__init__()
            self.layers, self.latent_dim = inner, latent_dim

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.layers(x).chunk(2, dim=1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        """The same layers."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = outer

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))

    class Ended(Exception):
        """pythae trains to its last epoch otherwise."""

    class Callback(TrainingCallback):
        """Passes each epoch's loss on."""

        def on_log(self, training_config: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "train_epoch_loss" in logs and not report(float(logs["train_epoch_loss"])):
                raise Ended

    x = ready(cfg, shape)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=10**6,
            learning_rate=cfg["optimizer"]["lr"],
            per_device_train_batch_size=cfg["trainer"]["batch_size"],
            no_cuda=True,
        )
        model = VAE(VAEConfig(input_dim=tuple(shape), latent_dim=latent_dim, reconstruction_loss="bce"), Encoder(), Decoder())
        trainer = BaseTrainer(
            model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=config, callbacks=[Callback()]
        )
        try:
            trainer.train()
        except Ended:
            return


def floor(cfg: Config, report: Report) -> None:
    """The bare products of an epoch: of each layer its output and the gradients of its weights and, but for the first, inputs."""
    encoder, decoder, shape = layers(cfg)
    images, batch = load(cfg["data"]).train.x, cfg["trainer"]["batch_size"]
    products: list[Callable[[], object]] = []

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x, first, gradient = inputs[0].contiguous(), not products, torch.randn_like(output)
        if isinstance(module, nn.Linear):
            products.append(lambda: torch.mm(x, module.weight.t()))
            products.append(lambda: torch.mm(gradient.t(), x))
            if not first:
                products.append(lambda: torch.mm(gradient, module.weight))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            options = (module.stride, module.padding, module.dilation, isinstance(module, nn.ConvTranspose2d))
            options += (module.output_padding, module.groups)
            products.append(lambda: torch.convolution(x, module.weight, None, *options))
            wanted = [not first, True, False]
            products.append(lambda: torch.ops.aten.convolution_backward(gradient, x, module.weight, None, *options, wanted))

    hooks = [module.register_forward_hook(add) for module in (*encoder.modules(), *decoder.modules())]
    with torch.no_grad():
        decoder(encoder(torch.rand(batch, *shape)).chunk(2, dim=1)[0])
        for hook in hooks:
            hook.remove()
        going_on = True
        while going_on:
            for _ in range(math.ceil(len(images) / batch)):
                for product in products:
                    product()
            going_on = report(math.nan)


def floor_onednn(cfg: Config, report: Report) -> None:
    """The same by oneDNN, where the engine would choose it."""
    with arithmetic(Precision.fp32, torch.device("cpu"), math.inf):
        floor(cfg, report)


def layers(cfg: Config) -> tuple[nn.Sequential, nn.Sequential, tuple[int, ...]]:
    """The layers with the run's initial parameters, and the shape in which they take images."""
    model = build_system(cfg, dataset(cfg["data"]).image_shape).model
    encoder, decoder = model.get_submodule("encoder"), model.decoder
    assert isinstance(encoder, nn.Sequential)
    assert isinstance(decoder, nn.Sequential)
    shape = dataset(cfg["data"]).image_shape
    if cfg["network"]["name"] == "mlp":  # nobody flattens what need not be an image
        return encoder[1:], decoder[:-1], (math.prod(shape),)
    return encoder, decoder, shape


def ready(cfg: Config, shape: tuple[int, ...]) -> Tensor:
    """All training images as floats."""
    x = load(cfg["data"]).train.x
    return x.view(len(x), *shape).float().div(255)


CONTENDERS: dict[str, tuple[Callable[[Config, Report], None], list[str]]] = {
    "engine": (engine, []),
    "engine, bf16": (engine, ["trainer.precision=bf16"]),
    "engine, compiled": (engine, ["trainer.compile=true"]),
    "engine, bf16, compiled": (engine, ["trainer.precision=bf16", "trainer.compile=true"]),
    "plain loop": (plain, []),
    "tutorial loop": (tutorial, []),
    "pythae": (pythae, []),
    "Lightning": (lightning, []),
    "floor": (floor, []),
    "floor, oneDNN": (floor_onednn, []),
}


def installed(name: str) -> bool:
    """Whether what a contender needs is there."""
    return name not in ("pythae", "Lightning") or importlib.util.find_spec(name.lower()) is not None
