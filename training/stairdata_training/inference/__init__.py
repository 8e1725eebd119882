"""Models at work: forward passes without gradients, over batches of similar length."""
