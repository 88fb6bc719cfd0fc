"""planish.compress."""
