"""Scores of a trained model: which questions are asked, how they are answered in batches, and what is written down."""
