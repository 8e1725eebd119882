"""What a release says of itself: the dataset card, and Croissant metadata."""
