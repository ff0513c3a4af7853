"""What goes in: the corpus, labelled tasks, tokenizer, files of text and of tokens, packing."""
