"""What is written beside a trained model: the card, its curves, and what the training ran on."""
