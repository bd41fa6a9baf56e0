"""Generation: one pass over the prompt fills the caches, then a jitted loop extends the text."""
