"""planish.runtime."""
