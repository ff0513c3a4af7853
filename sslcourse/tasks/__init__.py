"""What a pretrained encoder is for: heads, their training, scores, remedies, a look inside."""
