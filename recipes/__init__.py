"""planish.recipes."""
