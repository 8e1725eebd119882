"""Secrets: what they look like, which ones this machine holds, and keeping them out of messages and URLs."""
