"""Models: the encoder, its heads, losses, adapters and strategies; they know batches and tensors, never cohorts."""
