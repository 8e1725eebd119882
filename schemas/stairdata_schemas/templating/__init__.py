"""Templates that others wrote, rendered under limits on time and memory."""
