"""A checkpoint as a session, which PyTorch runs."""
