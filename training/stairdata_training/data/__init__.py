"""From the rows of an artifact to the token ids that a trainer reads, in the order in which it reads them."""
