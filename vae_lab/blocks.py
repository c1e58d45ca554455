"""How the parameters of R runs lie in memory: as blocks of rows, [R, P].

A large tensor is a block of its own; all small ones of a run lie in one, since an optimiser's cost for a small tensor is the
call: 64-64-2 has eight tensors and takes 27 instead of 62 microseconds a step for them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

State = dict[str, Tensor]
Block = Float[Tensor, "R _P"]
LARGE = 2**15  # numbers of one tensor from which on copying its gradient costs more than a call


class Layout:
    """Which named tensors are in which block; the small ones' comes first.

    Attributes:
        groups: names, by block.
        num_small: how many of all names, counted from the first, share the first block.
    """

    def __init__(self, shapes: dict[str, torch.Size]):
        self.shapes = shapes
        small = [name for name, shape in shapes.items() if shape.numel() < LARGE]
        self.groups = [group for group in (small, *([name] for name in shapes if name not in small)) if group]
        self.num_small = len(small)

    def blocks(self, leaves: State) -> list[Block]:
        """Leaves [R, *shape], copied into blocks."""
        return [
            torch.cat([leaves[name].reshape(len(leaves[name]), self.shapes[name].numel()) for name in group], dim=1)
            for group in self.groups
        ]

    def leaves(self, blocks: Sequence[Float[Tensor, "*runs _P"]]) -> State:
        """Views [*runs, *shape] into blocks, by name, in the order of the blocks."""
        views = {}
        for group, block in zip(self.groups, blocks, strict=True):
            shapes = [self.shapes[name] for name in group]
            for name, shape, part in zip(group, shapes, block.split([shape.numel() for shape in shapes], dim=-1), strict=True):
                views[name] = part.view((*part.shape[:-1], *shape))
        return views
