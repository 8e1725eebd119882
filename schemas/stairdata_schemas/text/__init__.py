"""What texts are compared by: their visible characters and their words."""
