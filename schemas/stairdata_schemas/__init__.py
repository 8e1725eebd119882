"""What an artifact is: row schemas, the step grammar, the manifest, reading and writing."""
