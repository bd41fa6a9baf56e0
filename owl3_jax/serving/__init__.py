"""A server that many users share: HTTP in front, one engine behind it (docs/serving.md)."""
