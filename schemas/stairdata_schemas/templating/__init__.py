"""Templates that others wrote, rendered under limits; and no text in them is read as control tokens."""
