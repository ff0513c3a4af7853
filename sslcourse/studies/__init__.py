"""What a single lesson needs and a user does not: the ladder, rank proofs, cost models, pictures."""
