"""Commands that compare and summarise what was built."""
