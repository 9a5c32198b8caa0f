"""The one training loop and what it needs: distribution, mixed precision, checkpoints."""
