"""Builds whose requests go through batches: submit and leave, look, collect, cancel."""
