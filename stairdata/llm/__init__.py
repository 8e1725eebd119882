"""Access to language models: a client, a managed server, the actor."""
