"""Secrets: which environment variables hold some, and that none of them gets into a config or a file."""

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vae_lab.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"
MIN_LENGTH = 8  # a shorter value stands in too many innocent texts to be looked for
WHOLE_WORDS = {"key", "keys", "auth", "pat", "pw", "pass"}  # of a variable's name
LONG_WORDS = re.compile(r"token(?!i)|secret|passw|passphrase|credential|sshpass|(api|access|private|my)key", re.IGNORECASE)
SECRET_KEY = re.compile(
    r"(^|_)(api_?key|(access|private|secret|auth)_key|token|secrets?|passwords?|passwd|passphrase|credentials?|auth)$"
)
TEXT_TOKENS = re.compile(r"(pad|mask|cls|sep|bos|eos|unk|start|end|class|special)_token$")  # of a vocabulary
URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)


def names_a_secret(variable: str) -> bool:
    """Whether an environment variable of this name is taken for a secret: MY_TOKEN and PGPASSWORD are, KEYBOARD is not."""
    return bool(LONG_WORDS.search(variable)) or not WHOLE_WORDS.isdisjoint(_snake(variable).split("_"))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\W+", "_", name).lower()


def secret_values() -> set[str]:
    """The values of environment variables with secret-like names; no numbers, places on disk, nor words of this project."""
    found = {value for name, value in os.environ.items() if len(value) >= MIN_LENGTH and names_a_secret(name)}
    return {value for value in found if not (_is_common(value) or value in _own_words())}


def _is_common(value: str) -> bool:
    """A short number, or the path of something that is there."""
    return (value.isdigit() and len(value) < 12) or (os.path.isabs(value) and os.path.exists(value))  # noqa: PTH110, PTH117


@cache
def _own_words() -> frozenset[str]:
    """Names and values of `conf/`: AUTH_MODEL=autoencoder is no secret."""
    files = list(CONF.rglob("*.yaml"))
    words = (re.findall(r"[^\s:,\[\]{}'\"]+", path.read_text(encoding="utf-8")) for path in files)
    return frozenset(path.stem for path in files).union(*words)


def check_values(leaves: Iterable[tuple[str, object]]) -> None:
    """Refuse values, and keys, that hold a secret of the environment or a password; and texts under a key made for one.

    Raises:
        ConfigError: names the key, and never the value.
    """
    secrets = secret_values()
    for key, value in leaves:
        check_text("A key", key, secrets)
        if not isinstance(value, str):
            continue
        check_text(key, value, secrets)
        name = _snake(key.rpartition(".")[2])
        if value and SECRET_KEY.search(name) and not TEXT_TOKENS.search(name):
            raise ConfigError(f"{key}: refused. Nothing secret belongs in a config.")


def check_text(where: str, text: str, secrets: Iterable[str] | None = None) -> None:
    """Raise `ConfigError` for a text that holds one of `secrets` (None: of the environment's), or a password in a URL."""
    if any(secret in text for secret in (secret_values() if secrets is None else secrets)):
        raise ConfigError(f"{where}: holds the value of a secret environment variable; nothing secret belongs here.")
    if URL_PASSWORD.search(text):
        raise ConfigError(f"{where}: holds a password in a URL; nothing secret belongs here.")


def environment(name: str, *default: Any) -> str | None:
    """OmegaConf's `oc.env`, but for variables that hold secrets; here, so that no spelling gets around it.

    Raises:
        ConfigError: the variable's name is that of a secret.
        KeyError: it is not set, and there is no default.
    """
    if names_a_secret(name):
        raise ConfigError(f"refused to copy {name} from the environment; W&B reads its key itself.")
    if name not in os.environ and not default:
        raise KeyError(f"Environment variable '{name}' not found")
    return os.environ.get(name, *(None if value is None else str(value) for value in default))


OmegaConf.register_new_resolver("oc.env", environment, replace=True)


def redact_folder(folder: Path) -> None:
    """Blot out secret values in every file below a folder, byte for byte, so that offsets and lengths stay."""
    secrets = {secret.encode() for secret in secret_values()}
    for path in folder.rglob("*") if secrets else ():
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            clean = data
            for secret in secrets:
                clean = clean.replace(secret, b"*" * len(secret))
            if clean != data:
                path.write_bytes(clean)
