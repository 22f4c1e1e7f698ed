"""Files to token rows: readers, prompt formats, tokenizer, exact order."""
