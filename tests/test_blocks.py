"""Blocks hold every parameter once, and give views of it back."""

import pytest
import torch

from vae_lab.blocks import LARGE, Layout

SHAPES = {"scalar": (), "weight": (4, 3), "wide": (LARGE, 1), "bias": (5,), "wider": (2, LARGE)}


@pytest.mark.parametrize("names", [list(SHAPES), ["scalar", "weight", "bias"], ["wide", "wider"]])
@pytest.mark.parametrize("runs", [1, 3])
def test_leaves_come_back_as_views(names: list[str], runs: int) -> None:
    leaves = {name: torch.randn(runs, *SHAPES[name]) for name in names}
    layout = Layout({name: torch.Size(SHAPES[name]) for name in names})
    blocks = layout.blocks(leaves)
    assert sum(block.shape[1] for block in blocks) == sum(leaf[0].numel() for leaf in leaves.values())
    assert len(blocks) == len({"wide", "wider"} & set(names)) + bool(layout.num_small)
    views = layout.leaves(blocks)
    assert set(views) == set(names)
    for name, leaf in leaves.items():
        assert torch.equal(views[name], leaf)
        views[name].fill_(7)
    assert all((block == 7).all() for block in blocks)


def test_small_tensors_come_first() -> None:
    layout = Layout({name: torch.Size(shape) for name, shape in SHAPES.items()})
    assert layout.groups == [["scalar", "weight", "bias"], ["wide"], ["wider"]]
    assert layout.num_small == 3
