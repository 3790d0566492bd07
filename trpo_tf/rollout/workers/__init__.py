"""Rollout workers: processes that step environments, replaced when they die, and what is learned from them."""
