"""A build cut into shards that machines work on apart, and one artifact out of all of them."""
