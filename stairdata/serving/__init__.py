"""A server that searches: OpenAI's chat protocol outside, test-time search under a reward model inside."""
