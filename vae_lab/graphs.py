"""A step of a cohort, forward and backward pass, as one compiled graph.

`torch.compile` alone makes several graphs of a step, since it cannot follow all of its Python (how torch.distributions finds
a KL, say). So a step is run once and its operations are recorded, whatever Python led to them; the record is compiled.
"""

import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vae_lab.blocks import Block, State
from vae_lab.errors import ConfigError
from vae_lab.objectives.base import Batch, Noise, Terms

log = logging.getLogger(__name__)

# In bf16 these return another type than torch.compile believes, so that they are recorded as what they are made of.
MIXED = [torch.ops.aten.native_group_norm.default, torch.ops.aten.native_group_norm_backward.default]

Whole = Callable[[list[Block], State, Batch, Noise, Int[Tensor, ""]], tuple[Terms, list[Block]]]


class Graphs:
    """Compiled steps of one architecture, by the shape of their images: the number of runs, and of a batch.

    On CUDA a graph is launched as one, instead of one launch an operation; what it returned stands until the next call.
    """

    def __init__(self, device: torch.device):
        self.mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.compiled: dict[torch.Size, Callable[..., Any]] = {}

    def call(
        self, whole: Whole, blocks: list[Block], buffers: State, batch: Batch, noise: Noise, step: Int[Tensor, ""]
    ) -> tuple[Terms, list[Block]]:
        """What `whole` returns, which must depend on its arguments alone."""
        graph = self.compiled.get(batch.x.shape)
        if graph is not None:
            return graph(blocks, buffers, batch, noise, step)
        from torch._decomp import get_decompositions
        from torch.fx.experimental.proxy_tensor import make_fx  # 0.8 s, which others do not wait for

        began = time.perf_counter()
        try:
            table: Any = get_decompositions(MIXED)
            # Recording runs the step: on copies, since a step may write to its buffers.
            copies = [block.clone() for block in blocks], {name: leaf.clone() for name, leaf in buffers.items()}
            record = make_fx(lambda *inputs: whole(*inputs), table)(*copies, batch, noise, step)
            graph = torch.compile(record, fullgraph=True, dynamic=False, mode=self.mode)
            outputs = graph(blocks, buffers, batch, noise, step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().split("\n\n")[0]
            raise ConfigError(f"trainer.compile=true: torch cannot compile this: {reason}. Set trainer.compile=false.") from error
        self.compiled[batch.x.shape] = graph
        log.info("compiled a step for images of shape %s in %.1f s", tuple(batch.x.shape), time.perf_counter() - began)
        return outputs


def check_compiler() -> None:
    """Raise `ConfigError` where torch.compile will find no C++ compiler."""
    command = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(shlex.split(command)[0]) is None:
        raise ConfigError(
            f"trainer.compile=true needs a C++ compiler, and there is no {command} here. Install one (on Debian: apt install g++), "
            "name yours in the environment variable CXX, or set trainer.compile=false."
        )


def roomy(num_runs: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: sizes that a shrinking cohort takes, so that few of them are compiled."""
    size = 1
    while size < num_runs:
        size = size + 1 if size < 4 else size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
