"""Text and images to what the model reads: numpy, Pillow and tokenizers only."""
