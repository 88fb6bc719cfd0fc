"""planish: make trained BERT- and GPT-family models small and fast, and prove they still work."""

__all__ = ["__version__"]

__version__ = "0.1.0"
