"""Numbers of a config inside a module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Configured(nn.Module):
    """A module that keeps numbers of its config as buffers, so that stacked runs each have their own.

    A setting is not state: it stands in no checkpoint, and a run that goes on takes it from its config.
    """

    def setting(self, name: str, value: float | Sequence[float] | Tensor) -> None:
        """Keep `value` as the attribute `name`, a tensor on the module's device."""
        self.register_buffer(name, torch.as_tensor(value), persistent=False)


def setting_names(module: nn.Module) -> set[str]:
    """Names, as in `named_buffers`, of all settings of a module and its children."""
    return {name for name, _ in module.named_buffers()} - module.state_dict().keys()
