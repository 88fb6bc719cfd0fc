"""planish.export."""
