"""Processes that run tasks, seen from the agent."""
