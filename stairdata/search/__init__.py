"""Search as pure algorithms: they ask for samples and rewards, somebody else fetches them."""
