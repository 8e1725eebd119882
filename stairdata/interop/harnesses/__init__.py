"""Sample logs of other evaluation harnesses, as rows of kind `evaluations`."""
