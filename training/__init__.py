"""Trains the demo model of mlx-ltx2 in PyTorch, with the modules of diffusers. See MODEL_CARD.md."""
