"""Publishing artifacts on the Hugging Face Hub, and fetching them from there."""
