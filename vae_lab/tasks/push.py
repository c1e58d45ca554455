"""A run and its card, uploaded to the Hugging Face Hub."""

import argparse
import re
from pathlib import Path

import yaml

from vae_lab import secrecy
from vae_lab.checkpoint import MANIFEST, MODEL, TRAINING
from vae_lab.errors import ConfigError, DataError, ServiceError
from vae_lab.places import is_own_file
from vae_lab.reading import CHECKPOINTS, read_config
from vae_lab.run_dir import RunDir
from vae_lab.tasks.card import card, card_files
from vae_lab.tasks.command import say
from vae_lab.tasks.export import needs
from vae_lab.trained import load

HERE = {"root": "data", "cache": None}  # of `data`, instead of this machine's paths
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab push`."""
    if not REPO.fullmatch(arguments.repo):
        raise ConfigError(f"{arguments.repo}: a repository is USER/NAME, of letters, digits, '-', '_' and '.'.")
    load(arguments.run_dir, device="cpu")  # nobody wants weights that do not load
    run_dir = RunDir(arguments.run_dir)
    files = contents(run_dir, arguments.repo, arguments.license)
    for path in left_out(run_dir, files):
        say(f"left out: {path.relative_to(run_dir.path)}")
    total = sum(map(len, files.values()))
    if arguments.dry_run:
        for name, data in files.items():
            say(f"{len(data):>12,} bytes  {name}")
        say(f"{total:>12,} bytes in {len(files)} files would go to {arguments.repo}; nothing was uploaded")
        return 0
    url = upload(files, arguments.repo, arguments.private)
    say(f"uploaded {len(files)} files, {total:,} bytes: {url}")
    return 0


def contents(run_dir: RunDir, repo: str, license: str | None = None) -> dict[str, bytes]:
    """What is uploaded, by its name in the repository: the card, and all that `vae_lab.load` needs.

    The config goes without the paths of this machine. Neither the log, W&B's files nor the state of the optimiser go.

    Raises:
        ConfigError: a file holds the value of a secret environment variable.
        DataError: a file is missing, not readable, or no file of this run directory but a link to one elsewhere.
    """
    cfg = read_config(run_dir)
    cfg["data"] |= {key: here for key, here in HERE.items() if key in cfg["data"]}
    files = {
        run_dir.card.name: card(run_dir, license, repo).encode(),
        run_dir.config.name: yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True).encode(),
    }
    weights = [run_dir.checkpoints / CHECKPOINTS[0] / name for name in (MANIFEST, MODEL, TRAINING)]
    for path in (run_dir.results, run_dir.metrics, *weights, *card_files(run_dir)):
        if not is_own_file(run_dir.path, path):
            raise DataError(f"{path}: missing, a link, or no regular file; nothing was uploaded.")
        try:
            files[path.relative_to(run_dir.path).as_posix()] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}.") from error
    for name, data in files.items():
        if any(secret.encode() in data for secret in secrecy.secret_values()):
            raise ConfigError(f"{name} holds the value of a secret environment variable; nothing was uploaded.")
    return files


def left_out(run_dir: RunDir, files: dict[str, bytes]) -> list[Path]:
    """What lies beside the files that are uploaded: of no known name, or links, which may lead out of the run directory."""
    beside = [*(run_dir.checkpoints / CHECKPOINTS[0]).iterdir(), *(run_dir.figures.iterdir() if run_dir.figures.is_dir() else ())]
    return sorted(path for path in beside if path.relative_to(run_dir.path).as_posix() not in files)


def upload(files: dict[str, bytes], repo: str, private: bool) -> str:
    """Create the repository, where it is not there yet, and commit all files at once; returns its address.

    The token is the one that `hf auth login` left, or HF_TOKEN.

    Raises:
        ConfigError: huggingface_hub is not installed.
        ServiceError: the Hub was not reached, or refused.
    """
    needs("huggingface_hub", "hub", "vae-lab push needs huggingface_hub")
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, HfApi

    huggingface_hub.utils.disable_progress_bars()
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    try:
        api = HfApi(library_name="vae_lab")
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=f"Upload {Path(repo).name} with vae_lab")
    except Exception as error:  # the client raises of many kinds: HTTP, network, no token, offline
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = " Log in with: hf auth login, or set HF_TOKEN." if "401" in reason or "token" in reason.lower() else ""
        raise ServiceError(f"The upload to {repo} failed ({type(error).__name__}: {reason}).{hint}") from error
    return commit.repo_url.url if hasattr(commit.repo_url, "url") else str(commit.repo_url)
