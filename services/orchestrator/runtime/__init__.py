"""The coat of the core: the driver that alone changes it, the sessions that carry its effects, what people see of it."""
