"""Training against exact answers computed from the data: PCA, probabilistic PCA, and the floors of each loss."""

import math

import numpy as np
import pytest
from sklearn.decomposition import PCA

from vae_lab.data import load


def flat(images) -> np.ndarray:
    return images.x.reshape(len(images), -1).numpy() / 255.0


def test_linear_autoencoder_reaches_pca(train_quiet, compose) -> None:
    """Baldi & Hornik 1989: the minimum of a linear autoencoder under squared error is PCA."""
    overrides = (
        "model=autoencoder",
        "loss=mse",
        "hidden_dims=[]",
        "latent_dim=5",
        "trainer.epochs=400",
        "data.val_size=0",
        "trainer.batch_size=500",
    )
    results = train_quiet(*overrides, "optimizer.lr=3e-2", "scheduler=cosine")
    splits = load(compose(*overrides)["data"])
    pca = PCA(5, svd_solver="full").fit(flat(splits.train))
    for split, images in (("train", splits.train), ("test", splits.test)):
        x = flat(images)
        expected = ((pca.inverse_transform(pca.transform(x)) - x) ** 2).sum(1).mean()
        assert results[split]["sse"] == pytest.approx(expected, rel=0.005)
        assert split == "test" or results[split]["sse"] > expected


def test_linear_vae_reaches_probabilistic_pca(train_quiet, compose) -> None:
    """Lucas et al. 2019: the ELBO of a linear VAE with learned sigma is tight, so its maximum is PPCA's log-likelihood."""
    overrides = ("loss=gaussian", "hidden_dims=[]", "latent_dim=5", "data.val_size=0")
    results = train_quiet(*overrides, "trainer.epochs=500", "optimizer.lr=1e-2", "scheduler=cosine", "trainer.batch_size=250")
    x = flat(load(compose(*overrides)["data"]).train)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = eigenvalues[5:].mean()  # Tipping & Bishop 1999, equation 8
    log_determinant = np.log(eigenvalues[:5]).sum() + (64 - 5) * math.log(noise)
    exact = -0.5 * (64 * math.log(2 * math.pi) + log_determinant + 64)
    assert -results["train"]["loss"] == pytest.approx(exact, abs=0.15)
    assert -results["train"]["loss"] < exact + 0.05  # the mean over an epoch's own samples may be lucky, not better
    assert results["beta_eff"] == pytest.approx(noise, rel=0.02)


def test_linear_vae_collapses_beyond_the_largest_eigenvalue(train_quiet, compose) -> None:
    """Lucas et al. 2019: no latent is worth its KL once the variance exceeds every eigenvalue of the covariance."""
    x = flat(load(compose("data.val_size=0")["data"]).train)
    largest = np.linalg.eigvalsh(np.cov(x.T, bias=True))[-1]
    overrides = ("loss=mse", "hidden_dims=[]", "latent_dim=3", "trainer.epochs=150", "optimizer.lr=1e-2", "data.val_size=0")
    beta = 1.3 * largest / 0.5  # beta times the variance 1/2 is the variance that counts
    assert train_quiet(*overrides, f"objective.beta={beta}", folder="above")["test"]["active_units"] == 0
    assert train_quiet(*overrides, f"objective.beta={beta / 2}", folder="below")["test"]["active_units"] > 0


def test_a_decoder_that_ignores_z_sits_at_the_mean_image(train_quiet, compose) -> None:
    results = train_quiet("objective.beta=1000", "trainer.epochs=100", "optimizer.lr=1e-2", "scheduler=cosine")
    splits = load(compose()["data"])
    mean = flat(splits.train).mean(0).clip(1e-6, 1 - 1e-6)
    x = flat(splits.test)
    cross_entropy = -(x * np.log(mean) + (1 - x) * np.log(1 - mean)).sum(1).mean()
    assert results["test"]["nll"] == pytest.approx(cross_entropy, rel=0.01)
    assert 0 <= results["test"]["kl"] < 0.01


def test_cross_entropy_stays_above_the_pixels_entropy(train_quiet, compose) -> None:
    results = train_quiet("model=autoencoder", "latent_dim=16", "trainer.epochs=60", "optimizer.lr=3e-3")
    x = flat(load(compose()["data"]).test).clip(1e-12, 1 - 1e-12)
    entropy = -(x * np.log(x) + (1 - x) * np.log(1 - x)).sum(1).mean()
    assert entropy < results["test"]["nll"] < 1.3 * entropy


@pytest.mark.slow
@pytest.mark.mnist
def test_linear_autoencoder_reaches_pca_on_mnist(train_quiet, compose, mnist_root) -> None:
    overrides = ("model=autoencoder", "data=mnist", f"data.root={mnist_root}", "hidden_dims=[]", "loss=mse", "latent_dim=10")
    results = train_quiet(*overrides, "trainer.epochs=20")
    splits = load(compose(*overrides)["data"])
    pca = PCA(10, svd_solver="full").fit(flat(splits.train))
    x = flat(splits.test)
    expected = ((pca.inverse_transform(pca.transform(x)) - x) ** 2).mean()
    assert results["test"]["mse"] == pytest.approx(expected, rel=0.005)


@pytest.mark.slow
@pytest.mark.mnist
def test_the_reference_vae_on_mnist(train_quiet, mnist_root) -> None:
    """The published training losses of epochs 2 to 5, within 1 nat."""
    from vae_lab.run_dir import RunDir

    results = train_quiet("experiment=mnist_vae_h400_z20", f"data.root={mnist_root}")
    losses = [row["train/loss"] for row in RunDir(results["dir"]).read_metrics()]
    assert losses[1:] == pytest.approx([121.76, 114.64, 111.72, 110.05], abs=1.0)
