"""Text as ids: tokenizer, chat, positions."""
