"""Examples read out of artifacts, and conversations made of them: what exports and the Hub's views share."""
