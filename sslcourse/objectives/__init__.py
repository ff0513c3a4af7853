"""What is hidden, what is asked and how it is scored: masking, its loss, and how low that can go."""
