"""The agent: wires the link, the decisions and the processes; owns what is on disk."""
