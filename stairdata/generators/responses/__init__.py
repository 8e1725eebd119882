"""Kind `responses`: answers of a model to prompts."""
