"""Networks and their weights: the encoder, where its weights begin, LoRA, the numbers they are kept in."""
