"""planish.profiles."""
