"""Text in, rows of token ids out: sources, mixture, tokenizer, packing, chat."""
