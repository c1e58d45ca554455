"""What one does with a trained run: a file each, its functions and its `vae-lab` sub-command."""
