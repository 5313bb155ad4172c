"""A listener's list: candidates, rules and ranking."""
