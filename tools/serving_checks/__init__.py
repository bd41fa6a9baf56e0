"""What the checks of a running server share: the server, requests whose answers are known, and clients."""
