"""Kind `structured_cot`: reasoning by teachers, from a file, from the Hub, or out of trees."""
