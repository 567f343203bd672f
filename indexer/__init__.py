"""A repository on its way into memory: walked, read, checked for secrets."""
