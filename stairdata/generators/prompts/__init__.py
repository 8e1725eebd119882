"""Kind `prompts`: rows from files and Hub datasets, filtered, deduplicated, sampled."""
