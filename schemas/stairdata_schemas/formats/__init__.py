"""Files that people write: read strictly, so that nothing in them is lost without a word."""
