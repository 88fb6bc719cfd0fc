"""planish.gate."""
