"""The embedded data set: real handwritten digits, tinted, and questions about them."""
