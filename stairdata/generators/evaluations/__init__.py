"""Kind `evaluations`: benchmarks, attacks on their prompts, answers, and judgements of them."""
