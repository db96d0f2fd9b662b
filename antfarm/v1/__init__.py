"""Generated from protos/antfarm/v1 by `make protos`. Not edited by hand; touched only by the adapters."""
