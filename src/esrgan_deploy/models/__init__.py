"""The default model that ships, with its card."""
