"""What runs inside the process of a vLLM server, not in the one that started it."""
