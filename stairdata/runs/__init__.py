"""What all builds share: units of work, executors, inputs, journals, progress."""
