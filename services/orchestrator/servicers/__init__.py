"""The services on the wire: they translate messages to events and state to messages, and decide nothing."""
