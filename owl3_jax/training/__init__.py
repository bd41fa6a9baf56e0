"""Pure train step, straight loop, checkpoints that resume bit for bit."""
