"""What training leaves behind: run folders and checkpoints, and how a model is found by name."""
